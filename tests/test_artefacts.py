"""Digests, states and what the plan says is made from what."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from quantune.artefacts import freshness, making, record
from quantune.artefacts.freshness import State
from quantune.artefacts.hashes import file_sha256
from quantune.artefacts.record import Artefact
from quantune.core.errors import QuantuneError
from quantune.planning import load
from quantune.planning.plan import Plan
from tests import records

HOUR = 3_600_000_000_000  # in nanoseconds
PARENT = Artefact("work/checkpoints/opt", "model", 1, {}, sources={"model.safetensors": "ab"})
STEP = Artefact(
    "work/checkpoints/opt+rtn-w4",
    "quantize/rtn",
    1,
    {"bits": 4, "group_size": 128, "deep": {"scale": "mean"}},
    parents={"parent": PARENT},
    sources={"calibration.txt": "cd"},
)


def make(artefact: Artefact, files: dict[str, str], **changes) -> Artefact:
    """Write an artefact to disk, one hour ago, with its provenance or a changed one."""
    folder = Path(artefact.path)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    listed = [{"path": name, "size": len(content), "sha256": record.sha256(content)} for name, content in files.items()]
    provenance = {**artefact.order(), "facts": {}, "packages": {}, "files": listed, **changes}
    records.write(folder, provenance)
    then = time.time_ns() - HOUR
    os.utime(folder, ns=(then, then))
    return artefact


@pytest.fixture
def step(tmp_path) -> Artefact:
    """An artefact that is not on disk yet."""
    return replace(STEP, path=f"{tmp_path}/work/checkpoints/opt+rtn-w4", options={"work": f"{tmp_path}/work"})


def test_canonical_json_is_one_text_for_one_value():
    value = {"b": [1, 2.5, None, True], "a": {"y": "é — “x”", "x": "\n"}}
    assert record.canonical_json(value) == '{"a":{"x":"\\n","y":"é — “x”"},"b":[1,2.5,null,true]}'
    assert record.canonical_json(dict(reversed(value.items()))) == record.canonical_json(value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.canonical_json(float("nan"))


def test_the_digest_is_that_of_the_documented_text():
    """Pinned: another value would make everything that anyone has made stale."""
    text = f'["quantize/rtn",1,{{"bits":4}},{{"x":"cd"}},{{"parent":["{PARENT.digest}"]}}]'
    made = Artefact("anywhere", "quantize/rtn", 1, {"bits": 4}, parents={"parent": PARENT}, sources={"x": "cd"})
    assert made.digest == record.sha256(text)
    assert record.sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert PARENT.digest == record.sha256('["model",1,{},{"model.safetensors":"ab"},{}]')


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "quantize/gptq"},
        {"version": 2},
        {"recipe": {**STEP.recipe, "bits": 3}},
        {"recipe": {**STEP.recipe, "deep": {"scale": "max"}}},
        {"recipe": {**STEP.recipe, "symmetric": None}},
        {"recipe": {"bits": 4}},
        {"sources": {"calibration.txt": "ce"}},
        {"sources": {"other.txt": "cd"}},
        {"sources": {}},
        {"parents": {"parent": replace(PARENT, version=2)}},
        {"parents": {"base": PARENT}},
        {"parents": {"parent": PARENT, "data": PARENT}},
        {"parents": {"parent": (PARENT, PARENT)}},
        {"parents": {}},
    ],
)
def test_every_ingredient_changes_the_digest(change):
    assert replace(STEP, **change).digest != STEP.digest


@pytest.mark.parametrize(
    "change",
    [
        {"path": "elsewhere/opt+rtn-w4"},
        {"options": {"save_every": 3}},
        {"reads": {"base": (PARENT,)}},
        {"recipe": dict(reversed(STEP.recipe.items()))},
        {"parents": {"parent": (PARENT,)}},
        {"parents": {"parent": replace(PARENT, path="elsewhere", options={"x": 1})}},
    ],
)
def test_nothing_else_does(change):
    assert replace(STEP, **change).digest == STEP.digest


def test_what_is_on_disk_is_missing_then_current_then_stale(step):
    assert freshness.Disk().state(step) is State.MISSING
    make(step, {"model.safetensors": "weights", "config.json": "{}"})
    assert freshness.Disk().state(step) is State.CURRENT
    assert freshness.Disk().state(replace(step, recipe={**step.recipe, "bits": 3})) is State.STALE
    os.utime(step.path, (0, 0))
    assert freshness.Disk().state(step) is State.CURRENT, "dates play no part"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_text("weigh"),
        lambda folder: (folder / "model.safetensors").write_text("weights and more"),
        lambda folder: (folder / "model.safetensors").write_text("wejghts"),
        lambda folder: (folder / "provenance.json").unlink(),
        lambda folder: (folder / "provenance.json").write_text('{"digest": "ab'),
        lambda folder: (folder / "provenance.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "provenance.json").write_text("[]"),
        lambda folder: (folder / "provenance.json").write_text("{}"),
        lambda folder: (shutil.rmtree(folder), folder.write_text("a file")),
        lambda folder: (shutil.rmtree(folder), folder.symlink_to("nowhere")),
    ],
    ids=["gone", "cut", "longer", "other", "no provenance", "half", "binary", "list", "empty", "file", "broken link"],
)
def test_damage_is_stale(step, spoil):
    make(step, {"model.safetensors": "weights"})
    spoil(Path(step.path))
    assert freshness.Disk().state(step) is State.STALE
    assert freshness.Disk().differences(step), "says why"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({}, []),
        ({"recipe": {**STEP.recipe, "bits": 3}}, ["bits: 3 -> 4"]),
        ({"recipe": {**STEP.recipe, "deep": {"scale": "max"}}}, ['deep.scale: "max" -> "mean"']),
        ({"recipe": {"bits": 4, "deep": {"scale": "mean"}}}, ["group_size: absent -> 128"]),
        ({"recipe": {**STEP.recipe, "bits": 3, "old": [1]}}, ["bits: 3 -> 4", "old: [1] -> absent"]),
        ({"stage": "quantize/gptq"}, ["stage: quantize/gptq -> quantize/rtn"]),
        ({"version": 2}, ["version of the stage quantize/rtn: 2 -> 1"]),
        ({"sources": {"calibration.txt": "ce"}}, ['source calibration.txt: "ce" -> "cd"']),
        ({"parents": {"parent": replace(PARENT, version=2)}}, ["made anew: work/checkpoints/opt"]),
        (
            {"parents": {"parent": replace(PARENT, path="work/old", version=2)}},
            ["now made from: work/checkpoints/opt", "no longer made from: work/old"],
        ),
    ],
)
def test_differences_name_what_changed_from_what_to_what(step, before, words):
    make(replace(step, **before), {"a": "b"})
    assert freshness.Disk().differences(step) == words


def test_differences_of_damage_and_of_nothing(step):
    assert freshness.Disk().differences(step) == []
    make(step, {"model.safetensors": "weights", "config.json": "{}"})
    Path(step.path, "model.safetensors").write_text("wejghts")
    assert freshness.Disk().differences(step) == ["model.safetensors is not the file that was made"]
    Path(step.path, "model.safetensors").write_text("weigh")
    assert freshness.Disk().differences(step) == ["model.safetensors has 5 bytes, not 7"]
    Path(step.path, "model.safetensors").unlink()
    assert freshness.Disk().differences(step) == ["model.safetensors is missing"]
    Path(step.path, "provenance.json").unlink()
    assert freshness.Disk().differences(step) == [f"{step.path}/provenance.json is missing"]


def test_other_bits_of_an_ancestor_are_noticed(tmp_path):
    """The same recipes all along; the model was copied again, from a disk that lies."""
    options = {"work": f"{tmp_path}/work"}
    model = replace(PARENT, path=f"{tmp_path}/work/checkpoints/opt", options=options)
    step = replace(STEP, path=f"{model.path}+rtn-w4", parents={"parent": model}, options=options)
    measured = Artefact(f"{tmp_path}/work/evaluations/opt+rtn-w4/log", "evaluate", 1, {}, {"checkpoint": step})

    def parents(role: str, parent: Artefact) -> dict:
        content = record.content_digest(record.read_provenance(parent.path))
        return {"parents": {role: [{"path": parent.path, "digest": parent.digest, "content": content}]}}

    make(model, {"model.safetensors": "weights"})
    make(step, {"model.safetensors": "packed"}, **parents("parent", model))
    make(measured, {"result.json": "1.0"}, **parents("checkpoint", step))
    assert [freshness.Disk().state(item) for item in (model, step, measured)] == [State.CURRENT] * 3
    shutil.rmtree(model.path)
    assert freshness.Disk().state(measured) is State.CURRENT, "what is not there is expected to come back as it was"
    make(model, {"model.safetensors": "wejghts"})
    assert [freshness.Disk().state(item) for item in (model, step, measured)] == [
        State.CURRENT,
        State.STALE,
        State.STALE,
    ]
    assert freshness.Disk().differences(measured) == [f"ancestor rebuilt with different bytes: {model.path}"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    source = tmp_path / "log.txt"
    source.write_text("What the job was planned with.")
    options = {"work": f"{tmp_path}/work", "files": {"test": [str(source)]}}
    sources = {"log.txt": file_sha256(source)}
    asked = Artefact(f"{tmp_path}/work/sources/log", "dataset", 1, {}, sources=sources, options=options)

    def body(change: bool):
        def read(folder: Path, _) -> None:
            (folder / "test.txt").write_text(source.read_text())
            if change:
                source.write_text("What it never was to be.")

        return read

    with pytest.raises(QuantuneError, match=r"log.txt' changed while it was read"):
        making.make(asked.order(), body(change=True), time.time())
    assert freshness.Disk().state(asked) is State.MISSING
    source.write_text("What the job was planned with.")
    making.make(asked.order(), body(change=False), time.time())
    assert freshness.Disk().state(asked) is State.CURRENT


def test_a_new_key_that_is_null_is_named(step):
    make(replace(step, recipe={**step.recipe, "stride": None}), {})
    assert any("stride" in change for change in freshness.Disk().differences(step))


@pytest.mark.parametrize("stamp", [None, HOUR, -HOUR])
def test_inputs_dated_in_the_future_get_the_present_date(step, stamp):
    make(step, {})
    stamps = [Path(step.path)]
    os.utime(step.path, ns=(time.time_ns() + HOUR,) * 2)
    if stamp:
        stamps.append(Path(step.path, ".snakemake_timestamp"))
        stamps[1].touch()
        os.utime(stamps[1], ns=(time.time_ns() + stamp,) * 2)
        os.utime(step.path, ns=(time.time_ns() + HOUR,) * 2)
    kept = os.stat(stamps[-1]).st_mtime_ns
    freshness.date_now([step.path, f"{step.path}/nothing"])
    assert all(os.stat(path).st_mtime <= time.time() for path in stamps)
    assert stamp != -HOUR or os.stat(stamps[-1]).st_mtime_ns == kept, "a date in the past stays"


def test_a_file_from_outside_that_is_dated_in_the_future_is_no_input_for_snakemake(step, tmp_path):
    paths = [tmp_path / name for name in ("now.txt", "later.txt")]
    for path in paths:
        path.touch()
    os.utime(paths[1], ns=(time.time_ns() + HOUR,) * 2)
    read = replace(step, options={**step.options, "files": {"train": list(map(str, paths))}})
    assert freshness.needs(read, State.MISSING)["outside"] == [str(paths[0])]


STEPS_OF_LORA = {"opt+lora", "opt+nf4+lora", "opt+lora+merge", "opt+lora+merge+rtn-w4"}
VARIANTS = {"opt", "opt+rtn-w4", "opt+rtn-w8", "opt+nf4", *STEPS_OF_LORA}


def digests(raw: dict) -> dict[str, str]:
    """Return path below the work folder -> digest of all that the report rests on."""
    found, todo = {}, [Plan(load.load(raw)).report()]
    while todo:
        artefact = todo.pop()
        found[os.path.relpath(artefact.path, raw["work"])] = artefact.digest
        todo += [parent for made_from in record.by_role(artefact.parents).values() for parent in made_from]
    return found


def made_anew(*variants: str) -> set[str]:
    """Return the paths of these variants' checkpoints, of their evaluations, and of the report."""
    evaluations = {f"evaluations/{name}/{kind}" for name in variants for kind in ("harbour", "news", "prompts")}
    return {f"checkpoints/{name}" for name in variants} | evaluations | {"report"}


def add_a_byte(path: str) -> None:
    with open(path, "a") as file:
        file.write(" ")


def move(entry: dict, folder: Path) -> None:
    """Give an entry the path of a copy of its files."""
    source = Path(entry["path"])
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
    entry["path"] = str(folder / source.name)


CHANGES = {
    "bits": (
        lambda raw, _: raw["quantizations"]["rtn-w4"].update(bits=3),
        made_anew("opt+rtn-w4", "opt+lora+merge+rtn-w4"),
    ),
    "rank": (lambda raw, _: raw["finetunings"]["lora"].update(rank=2), made_anew(*STEPS_OF_LORA)),
    "seed": (lambda raw, _: raw.update(seed=1), made_anew(*STEPS_OF_LORA)),
    "length": (
        lambda raw, _: raw["evaluations"]["news"].update(length=8),
        {f"evaluations/{name}/news" for name in VARIANTS} | {"report"},
    ),
    "data": (
        lambda raw, _: add_a_byte(f"{raw['datasets']['harbour']['path']}/train.txt"),
        made_anew(*STEPS_OF_LORA)
        | {f"evaluations/{name}/harbour" for name in VARIANTS}
        | {"sources/harbour", "prepared/harbour/opt"},
    ),
    "model": (
        lambda raw, new: (move(raw["models"]["opt"], new), add_a_byte(f"{new}/opt-2m/tokenizer_config.json")),
        made_anew(*VARIANTS) | {"prepared/harbour/opt", "prepared/news/opt"},
    ),
    "title": (lambda raw, _: raw.update(title="Another"), {"report"}),
    "general": (lambda raw, _: raw["evaluations"]["news"].update(general=False), {"report"}),
    "save_every": (lambda raw, _: raw["finetunings"]["lora"].update(save_every=7), set()),
    "model's path": (lambda raw, new: move(raw["models"]["opt"], new), set()),
    "folder's path": (lambda raw, new: move(raw["datasets"]["harbour"], new), set()),
    "file's path": (lambda raw, new: move(raw["datasets"]["news"], new), set()),
    "work": (lambda raw, new: raw.update(work=str(new)), set()),
    "default": (lambda raw, _: raw["finetunings"]["lora"].update(rank=8, schedule="linear"), set()),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_makes_anew_what_rests_on_it_and_nothing_else(raw, tmp_path, edit, expected):
    (tmp_path / "new").mkdir()
    before = digests(raw)
    edit(raw, tmp_path / "new")
    after = digests(raw)
    assert before.keys() == after.keys()
    assert {path for path in before if before[path] != after[path]} == expected


def test_a_step_with_the_configurations_seed_is_the_step(raw):
    plan, other = Plan(load.load(raw)), Plan(load.load({**raw, "seed": 1}))
    assert plan.checkpoint("opt+lora").digest == plan.checkpoint("opt+lora@0").digest
    assert plan.checkpoint("opt+lora+merge+nf4").digest == plan.checkpoint("opt+lora@0+merge+nf4").digest
    assert plan.checkpoint("opt+lora").digest != plan.checkpoint("opt+lora@1").digest
    assert plan.checkpoint("opt+lora@1").digest == other.checkpoint("opt+lora").digest
    assert plan.checkpoint("opt+lora").digest == other.checkpoint("opt+lora@0").digest


def test_what_must_be_on_disk(raw):
    plan, folder = Plan(load.load(raw)), f"{raw['work']}/checkpoints"
    paths = [item.path for item in plan.checkpoints_to_load("opt+nf4+lora")]
    assert paths == [f"{folder}/opt+nf4", f"{folder}/opt+nf4+lora"]
    merged = plan.checkpoint("opt+nf4+lora+merge")
    assert merged.parents["adapter"].path == f"{folder}/opt+nf4+lora"
    assert merged.parents["base"].path == f"{folder}/opt"
    assert [item.path for item in merged.reads["parent"]] == [f"{folder}/opt+nf4"]


def test_a_job_needs_what_its_state_says(tmp_path):
    """Missing, stale and damaged: all parents. Current: those that exist, or all if forced."""
    parent = replace(PARENT, path=f"{tmp_path}/opt")
    step = replace(STEP, parents={"parent": parent})
    parents, none = {"parent": [parent.path], "outside": []}, {"parent": [], "outside": []}
    for state in (State.MISSING, State.STALE):
        assert freshness.needs(step, state) == parents
    assert freshness.needs(step, State.CURRENT) == none
    assert freshness.needs(step, State.CURRENT, forced=True) == parents
    os.makedirs(parent.path)
    assert freshness.needs(step, State.CURRENT) == parents
