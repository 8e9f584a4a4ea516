"""Files beside an artefact's files that come from outside: damaged, edited, of other types, or hostile."""

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantune.artefacts import freshness, layout, lineage, making, record, sealed
from quantune.artefacts.freshness import State
from quantune.artefacts.hashes import Hashes
from quantune.artefacts.record import Artefact
from quantune.core.errors import QuantuneError, printable
from quantune.planning import costs
from quantune.report import wording
from quantune.upkeep import dvc, verify
from tests import records

DAMAGED = {
    "empty": b"",
    "binary": b"\xff\xfe\x00\x01\x02",
    "a list": b"[]",
    "a number": b"1",
    "half": b'{"check": "ab',
    "deep": b"[" * 100_000,
}
TYPES = {
    "files null": {"files": None},
    "files of numbers": {"files": [1]},
    "a size as text": {"files": [{"path": "a", "size": "1", "sha256": "x"}]},
    "parents a list": {"parents": []},
    "a parent without digest": {"parents": {"parent": [{"path": "work/x"}]}},
    "recipe a text": {"recipe": "bits"},
    "facts null": {"facts": None},
    "version a text": {"version": "1"},
    "stage a number": {"stage": 3},
}
RUNS = {
    "seconds a text": {"seconds": "fast"},
    "hardware null": {"hardware": None},
    "memory a text": {"hardware": {"cpu": "x", "cores": 2, "memory_bytes": "much"}},
    "predicted a list": {"predicted": [1]},
    "command a number": {"command": 1},
    "started null": {"started": None},
    "a factor as text": {"real_time_factor": "0.5"},
    "of another artefact": {"digest": "0" * 64},
}


@pytest.fixture
def made(tmp_path) -> Artefact:
    """An artefact on disk."""
    work = str(tmp_path / "work")
    artefact = Artefact(f"{work}/checkpoints/opt", "model", 1, {"bits": 4}, options={"work": work})
    making.make(artefact.order(), lambda folder, _: (folder / "config.json").write_text("{}") and None, time.time())
    assert freshness.Disk().state(artefact) is State.CURRENT
    assert list(verify.corrupted(tmp_path / "work")) == []
    return artefact


def spoil(path: Path, content: bytes | dict) -> None:
    """Write other bytes, or other values with the right checksum."""
    path.write_bytes(content) if isinstance(content, bytes) else records.change(path, lambda read: read.update(content))


@pytest.mark.parametrize("name", ["provenance.json", "run.json"])
@pytest.mark.parametrize("content", [*DAMAGED.values()], ids=[*DAMAGED])
def test_a_damaged_record_is_stale_and_named_by_all_readers(made, name, content):
    reads_as_damaged(made, name, content)


@pytest.mark.parametrize("content", [*TYPES.values()], ids=[*TYPES])
def test_other_types_in_a_provenance_are_damage(made, content):
    reads_as_damaged(made, "provenance.json", content)


@pytest.mark.parametrize("content", [*RUNS.values()], ids=[*RUNS])
def test_other_types_in_the_record_of_a_run_are_damage(made, content):
    reads_as_damaged(made, "run.json", content)


@pytest.mark.parametrize("name", ["provenance.json", "run.json"])
@pytest.mark.parametrize("old", [b'"bits"', b"2"], ids=["a key", "a digit"])
def test_an_edited_byte_is_damage(made, name, old):
    path = Path(made.path, name)
    place = path.read_bytes().index(old if name == "provenance.json" or old == b"2" else b'"threads"')
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    reads_as_damaged(made, name, bytes(content))


def reads_as_damaged(made: Artefact, name: str, content: bytes | dict) -> None:
    """Damage a record: the plan makes the artefact again and says why, `make check` and the report name the file."""
    spoil(Path(made.path, name), content)
    assert freshness.Disk().state(made) is State.STALE
    assert name in freshness.Disk().differences(made)[0]
    assert any(name in line for line in verify.corrupted(Path(made.options["work"])))
    assert costs.past_runs(made.options["work"]) == [] or name == "run.json"
    assert freshness.Disk().changed_ancestor(made.path) is None
    with pytest.raises(QuantuneError, match=rf"{name} .*run the same snakemake command again"):
        lineage.read_lineage([{"path": made.path, "digest": made.digest}])
    making.make(made.order(), lambda folder, _: (folder / "config.json").write_text("{}") and None, time.time())
    assert freshness.Disk().state(made) is State.CURRENT


def test_without_a_record_of_the_run_an_artefact_is_made_again(made):
    Path(made.path, "run.json").unlink()
    assert freshness.Disk().differences(made) == ["run.json is missing"]


MEMORIES = {
    "text": {"files": "x"},
    "an entry of text": {"files": {"PATH": "abc"}},
    "an entry null": {"files": {"PATH": None}},
    "an empty entry": {"files": {"PATH": []}},
    "nested": {"files": {"PATH": [[1], {}]}},
}


@pytest.mark.parametrize("content", [*DAMAGED.values(), *MEMORIES.values()], ids=[*DAMAGED, *MEMORIES])
@pytest.mark.parametrize("checked", [True, False], ids=["with checksum", "without"])
def test_a_damaged_memory_of_hashes_is_forgotten(tmp_path, content, checked):
    path, memory = tmp_path / "weights", tmp_path / ".hashes.json"
    path.write_text("abc")
    os.utime(path, (0, 0))
    if isinstance(content, bytes):
        memory.write_bytes(content)
    else:
        content = json.loads(json.dumps(content).replace("PATH", str(path)))
        sealed.write(memory, content) if checked else memory.write_text(json.dumps(content))
    assert Hashes(memory).file(path) == record.sha256("abc")
    assert Hashes(memory).combined(tmp_path, [path])


def test_a_changed_digit_in_the_memory_makes_no_file_look_damaged(made):
    memory = layout.hash_cache(made.options["work"])
    path = Path(made.path, "config.json")
    memory.write_text(re.sub(r'"([0-9a-f])([0-9a-f]{63})"\]', r'"0\2"]', memory.read_text()))
    assert Hashes(memory).file(path) == record.sha256("{}")


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_text("abc")
    os.utime(path, (0, 0))

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sealed, "write", refuse)
    assert Hashes(tmp_path / "work/.hashes.json").file(path) == record.sha256("abc")


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 100, {"stages": []}, {"stages": {"a": None}}, {"stages": {"a": {"outs": [{"md5": 1}]}}}, []],
)
def test_a_damaged_dvc_lock_names_nothing(tmp_path, content):
    (tmp_path / "dvc.lock").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert dvc.tracked_paths(tmp_path, tmp_path) == {}


@pytest.mark.parametrize("listed", ["", "[1]", "{}", '[{"md5": 1}]', "null"])
def test_a_damaged_folder_in_the_cache_names_nothing(tmp_path, listed):
    out = {"stages": {"a": {"outs": [{"md5": "abcd.dir", "path": "work"}]}}}
    (tmp_path / "dvc.lock").write_text(json.dumps(out))
    (tmp_path / "files/md5/ab").mkdir(parents=True)
    (tmp_path / "files/md5/ab/cd.dir").write_text(listed)
    assert dvc.tracked_paths(tmp_path, tmp_path) == {"abcd.dir": "work"}


HOSTILE = ["; touch pwned", "$(touch pwned)", "--orphan=x", "`touch pwned`", "abc\ntouch pwned", "\x1b[2J"]


@pytest.mark.parametrize(("path", "commit"), [("work/x", text) for text in HOSTILE] + [(text, "") for text in HOSTILE])
def test_the_command_that_makes_an_artefact_again_is_one_command(tmp_path, commit, path):
    (tmp_path / "bin").mkdir()
    for name in ("snakemake", "git"):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\necho "$0" "$#" "$1"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    line = wording.again(path, "snakemake --configfile 'a b.yaml'", commit)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not (tmp_path / "pwned").exists() and "\x1b" not in line
    assert done.stdout.startswith(f"{tmp_path}/bin/snakemake 3 ")
    assert not done.stdout.split(" ")[2].startswith("-")
    assert wording.again("work/x", "snakemake", "ab12cd34ef").startswith("git checkout ab12cd34ef && ")


@pytest.mark.parametrize("command", ["snakemake; touch x", "snakemake $(touch x)", "snakemake 'unclosed", "a\x1b[2J"])
def test_a_recorded_command_is_shown_as_one_command(command):
    line = wording.quoted(command)
    done = subprocess.run(["bash", "-c", f'set -- {line}; echo "$#"'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "\x1b" not in line
    assert not Path("x").exists()


@pytest.mark.parametrize("steering", ["\x1b[2J", "\r", "\x07", "\x9b2J", "\u202e", "\ud800", "\x00", "\x7f"])
def test_errors_hold_no_characters_that_steer_a_terminal(steering):
    assert str(QuantuneError(f"'{steering}name' is wrong")) == f"'{printable(steering)}name' is wrong"
    assert printable(f"a{steering}b\tc\nd").encode() == f"a{printable(steering)}b\tc\nd".encode()
    assert len(printable(steering)) < len(steering)


def test_facts_hold_no_memory_addresses(made):
    def body(folder: Path, _):
        return {"reason": f"{body}", "nested": [{"of": object()}.__repr__()], "number": 1.5, "text": "at 0x12 o'clock"}

    artefact = replace(made, path=f"{made.path}2")
    making.make(artefact.order(), body, time.time())
    content = Path(artefact.path, "provenance.json").read_text()
    assert not re.search(r" at 0x[0-9a-f]{6,}", content)
    assert record.read_provenance(artefact.path)["facts"]["text"] == "at 0x12 o'clock"
    shutil.rmtree(artefact.path)
    making.make(artefact.order(), body, time.time())
    assert Path(artefact.path, "provenance.json").read_text() == content
