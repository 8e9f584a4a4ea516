"""Recordings as they are published, whole and broken: what is read, what is left out, and what is said about it."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from quantune.artefacts.hashes import Hashes
from quantune.core.errors import ConfigError, QuantuneError
from quantune.sources.draw import order
from tests.voices import gather, plan, release, row, sound

SPLITS = {"train": "train", "test": "test"}


def rows(folder: Path, split: str = "train") -> list[dict]:
    return pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()


@pytest.fixture
def talks(tmp_path) -> Path:
    """A Common Voice release: six clips to train on, two to test."""
    train = [row(f"c{number}.wav", f"Sentence {number}.", f"speaker {number % 2}") for number in range(6)]
    test = [row("t0.wav", '"Quoted," he said.', "speaker 1"), row("t1.wav", "Another.", "speaker 9")]
    return release(tmp_path / "cv-corpus-1.0", {"train": train, "test": test})


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    return archive


def test_an_unpacked_folder_and_its_archive_give_the_same_bytes(tmp_path, talks):
    archive = packed(talks, tmp_path / "cv-corpus-1.0.tar.gz")
    one, facts = gather(tmp_path / "folder", layout="common-voice", path=talks, splits=SPLITS)
    other, same = gather(tmp_path / "archive", layout="common-voice", path=archive, splits=SPLITS)
    for split in SPLITS:
        assert (one / f"{split}.parquet").read_bytes() == (other / f"{split}.parquet").read_bytes()
    assert facts == same and facts["language"] == "en"
    assert [item["text"] for item in rows(one, "test")] == ['"Quoted," he said.', "Another."]
    assert facts["splits"]["train"]["clips"] == 6 and facts["splits"]["train"]["longest_seconds"] == 1.0


def test_columns_about_speakers_are_left_behind_and_that_is_recorded(tmp_path, talks, capsys):
    folder, facts = gather(tmp_path / "work", layout="common-voice", path=talks, splits=SPLITS)
    assert facts["personal_columns_dropped"] == ["accents", "age", "client_id", "gender", "variant"]
    assert "not copied: accents, age, client_id, gender, variant" in capsys.readouterr().out
    assert set(rows(folder)[0]) == {"id", "text", "translation", "language", "seconds", "audio"}
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"speaker 1" not in content and b"forties" not in content
    assert facts["splits"]["train"]["speakers"] == 2 and facts["speakers_shared_with_train"] == {"test": 1}


def test_a_truncated_archive_is_named(tmp_path, talks):
    archive = packed(talks, tmp_path / "cv-corpus-1.0.tar.gz")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(QuantuneError, match=r"cv-corpus-1.0.tar.gz' cannot be unpacked .*cut off.*download it again"):
        gather(tmp_path / "work", layout="common-voice", path=archive, splits=SPLITS)


def member(name: str, **more) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize(
    "bad",
    [
        member("cv/en/clips/../../../../outside"),
        member("../../x"),
        member("cv/en/clips/c9.wav", type=tarfile.SYMTYPE, linkname="/etc/hostname"),
        member("cv/en/clips/c9.wav", type=tarfile.SYMTYPE, linkname="../../../../secret"),
        member("cv/en/clips/c9.wav", type=tarfile.CHRTYPE),
    ],
    ids=["out-of-clips", "out", "absolute-link", "link-out", "device"],
)
def test_an_unsafe_member_is_refused(tmp_path, talks, bad):
    archive = tmp_path / "cv.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.addfile(bad, io.BytesIO(b""))
        file.add(talks, "cv")
    with pytest.raises(QuantuneError, match=r"cv.tar.gz' holds a member that must not be unpacked: .*do not trust"):
        gather(tmp_path / "work", layout="common-voice", path=archive, splits=SPLITS)
    assert not (tmp_path / "x").exists() and not (tmp_path / "outside").exists()
    assert list((tmp_path / "work/made").iterdir()) == []


def test_a_wrong_locale_is_named_with_those_there_are(tmp_path, talks):
    release(talks, {"train": [row("z.wav", "你好")], "test": [row("z.wav", "你好")]}, "zh-CN")
    archive = packed(talks, tmp_path / "cv.tar.gz")
    with pytest.raises(ConfigError, match=r"talks.path: .*no locale 'zh-TW'; locales: en, zh-CN; did you mean"):
        plan(tmp_path / "work", layout="common-voice", path=talks, locale="zh-TW")
    with pytest.raises(ConfigError, match=r"has several locales; locales: en, zh-CN; set 'locale'"):
        plan(tmp_path / "work", layout="common-voice", path=talks)
    with pytest.raises(QuantuneError, match=r"cv.tar.gz' has no locale 'zh-TW'; locales: en, zh-CN; did you mean"):
        gather(tmp_path / "one", layout="common-voice", path=archive, locale="zh-TW")
    folder, facts = gather(tmp_path / "two", layout="common-voice", path=archive, locale="zh-CN", splits=SPLITS)
    assert facts["language"] == "zh" and [item["text"] for item in rows(folder)] == ["你好"]


def test_a_table_that_is_not_there_is_named(tmp_path, talks):
    with pytest.raises(ConfigError, match=r"splits.validation: .*has no 'dev.tsv'; tables: test, train"):
        plan(tmp_path / "work", layout="common-voice", path=talks)


def test_a_few_broken_clips_are_listed_and_left_out(tmp_path, talks, capsys):
    (talks / "en/clips/c1.wav").unlink()
    (talks / "en/clips/c2.wav").write_bytes(b"")
    (talks / "en/clips/c3.wav").write_bytes(b"RIFF of something else")
    folder, facts = gather(tmp_path / "work", layout="common-voice", path=talks, splits=SPLITS, max_broken=0.4)
    assert facts["broken_files"][:2] == ["c1.wav: the file is missing", "c2.wav: 0 bytes"]
    assert facts["broken_files"][2].startswith("c3.wav: ") and len(facts["broken_files"]) == 3
    assert facts["splits"]["train"]["dropped"]["broken"] == 3
    assert [item["id"] for item in rows(folder)] == ["c0.wav", "c4.wav", "c5.wav"]
    assert "3 broken" in capsys.readouterr().out


def test_a_zero_byte_mp3_is_broken(tmp_path, talks):
    release(talks, {"train": [row("c0.wav", "One."), row("empty.mp3", "Two.")]})
    (talks / "en/clips/empty.mp3").write_bytes(b"")
    _, facts = gather(tmp_path / "work", layout="common-voice", path=talks, splits=SPLITS, max_broken=0.5)
    assert facts["broken_files"] == ["empty.mp3: 0 bytes"]


def test_more_broken_clips_than_allowed_fail_and_are_named(tmp_path, talks):
    (talks / "en/clips/c1.wav").unlink()
    (talks / "en/clips/t1.wav").write_bytes(b"")
    message = (
        r"2 of 8 clips are broken \(25.0%\), more than the 1.0% that 'max_broken' allows: c1.wav: .*missing; t1.wav"
    )
    with pytest.raises(QuantuneError, match=message):
        gather(tmp_path / "work", layout="common-voice", path=talks, splits=SPLITS)


def test_empty_transcripts_short_and_long_clips_are_dropped_and_counted(tmp_path):
    clips = tmp_path / "clips"
    for name, seconds in (("a", 0.05), ("b", 0.2), ("c", 1.0), ("d", 2.0)):
        sound(clips / f"{name}.wav", seconds)
    lines = ["path\ttext", "a.wav\tshort", "b.wav\t  ", "c.wav\tkept", "d.wav\tlong", "c.wav\t"]
    (clips / "all.tsv").write_text("\n".join(lines) + "\n")
    folder, facts = gather(tmp_path / "work", layout="manifest", path=clips, language="en", max_seconds=1.5)
    assert facts["splits"]["train"]["dropped"] == {
        "broken": 0,
        "without_transcript": 2,
        "too_short": 1,
        "too_long": 1,
    }
    assert [item["text"] for item in rows(folder)] == ["kept"]


def test_a_split_without_clips_left_fails(tmp_path):
    sound(tmp_path / "clips/a.wav", 0.5)
    (tmp_path / "clips/all.tsv").write_text("path\ttext\na.wav\tx\n")
    with pytest.raises(QuantuneError, match=r"split 'train' has no clips left \(read 1; 1 too short\)"):
        gather(tmp_path / "work", layout="manifest", path=tmp_path / "clips", language="en", min_seconds=1)


def test_ljspeech(tmp_path):
    for number in range(3):
        sound(tmp_path / f"lj/wavs/LJ-{number}.{'flac' if number else 'wav'}")
    (tmp_path / "lj/metadata.csv").write_text('LJ-0|Dr. "A|Doctor "A\nLJ-1|No. 1|Number one\nLJ-2|Two\n')
    folder, facts = gather(tmp_path / "work", layout="ljspeech", path=tmp_path / "lj", language="en")
    assert [item["text"] for item in rows(folder)] == ['Doctor "A', "Number one", "Two"]
    assert facts["personal_columns_dropped"] == []
    with pytest.raises(ConfigError, match=r"no LJSpeech layout: metadata.csv and wavs/ are needed"):
        plan(tmp_path / "other", layout="ljspeech", path=tmp_path, language="en")


@pytest.mark.parametrize("ending", ["mp3", "wav", "flac", "ogg"])
def test_manifests_in_tsv_and_json_lines(tmp_path, ending):
    told = [{"path": f"{number}.{ending}", "said": f"{number} said", "age": 4} for number in range(2)]
    for item in told:
        sound(tmp_path / "tsv" / item["path"])
    shutil.copytree(tmp_path / "tsv", tmp_path / "jsonl")
    table = "\n".join(["path\tsaid\tage", *("\t".join(map(str, item.values())) for item in told)])
    (tmp_path / "tsv/list.tsv").write_text(table + "\n")
    (tmp_path / "jsonl/list.jsonl").write_text("".join(json.dumps(item) + "\n" for item in told))
    made = []
    for kind in ("tsv", "jsonl"):
        entry = {"layout": "manifest", "path": tmp_path / kind, "language": "en", "column": "said"}
        folder, facts = gather(tmp_path / f"work-{kind}", **entry)
        assert facts["personal_columns_dropped"] == ["age"]
        made.append(rows(folder))
    assert made[0] == made[1] and [item["text"] for item in made[0]] == ["0 said", "1 said"]


def test_a_column_that_is_not_there_is_named(tmp_path):
    sound(tmp_path / "clips/a.wav")
    (tmp_path / "clips/all.tsv").write_text("path\tsentence\na.wav\tx\n")
    with pytest.raises(QuantuneError, match=r"all.tsv' has no column 'text'; columns: path, sentence; .*'column'"):
        gather(tmp_path / "work", layout="manifest", path=tmp_path / "clips", language="en")


def test_parquet_with_an_audio_column(tmp_path):
    sounds = [sound(tmp_path / f"{number}.wav", 0.3 + number / 10).read_bytes() for number in range(3)]
    table = {
        "audio": [{"bytes": data, "path": None} for data in sounds],
        "text": ["a", "b", "c"],
        "client_id": ["x", "x", "y"],
    }
    (tmp_path / "hub").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "hub/train.parquet", row_group_size=2)
    folder, facts = gather(tmp_path / "work", layout="parquet", path=tmp_path / "hub", language="en")
    assert [item["audio"] for item in rows(folder)] == sounds and [item["text"] for item in rows(folder)] == [*"abc"]
    assert facts["personal_columns_dropped"] == ["client_id"] and facts["splits"]["train"]["speakers"] == 2


def test_splits_by_share_follow_from_the_seed(tmp_path):
    names = [f"{number}.wav" for number in range(10)]
    for name in names:
        sound(tmp_path / "clips" / name)
    (tmp_path / "clips/all.tsv").write_text("path\ttext\n" + "".join(f"{name}\tsaid {name}\n" for name in names))
    entry = {"layout": "manifest", "path": tmp_path / "clips", "language": "en", "splits": {"train": 0.7, "test": 0.3}}
    first, second, other = (
        gather(tmp_path / f"work-{number}", **entry, seed=seed)[0] for number, seed in enumerate((1, 1, 2))
    )
    parts = [[item["id"] for item in rows(folder, "test")] for folder in (first, second, other)]
    assert parts[0] == parts[1] != parts[2] and len(parts[0]) == 3
    assert sorted([item["id"] for item in rows(first)] + parts[0]) == names


def test_a_split_may_be_several_tables_and_a_sample_of_them(tmp_path, talks):
    """As a course does: train and dev as one, shuffled with a seed, and the first few."""
    shutil.copy(talks / "en/test.tsv", talks / "en/dev.tsv")
    entry = {"layout": "common-voice", "path": talks, "splits": {"train": ["train", "dev"], "test": "test"}}
    everything = [item["id"] for item in rows(gather(tmp_path / "all", **entry)[0])]
    assert len(everything) == 8
    drawn = {}
    for seed in (16, 17):
        folder, facts = gather(tmp_path / f"seed-{seed}", **entry, sample={"train": 5}, seed=seed)
        drawn[seed] = [item["id"] for item in rows(folder)]
        assert drawn[seed] == [everything[at] for at in sorted(order(8, seed)[:5])]
        assert facts["splits"]["train"]["clips"] == 5 and facts["splits"]["test"]["clips"] == 2
    assert drawn[16] != drawn[17]
    with pytest.raises(QuantuneError, match=r"sample\.test: 3 are more than the split has; allowed: up to 2"):
        gather(tmp_path / "more", **entry, sample={"test": 3})
    with pytest.raises(ConfigError, match=r"talks\.sample: 'tests' is not one of its splits; allowed: train, test"):
        plan(tmp_path / "wrong", **entry, sample={"tests": 3})


def test_a_changed_clip_changes_the_digest_and_nothing_is_read_twice(tmp_path, talks, monkeypatch):
    files = sorted(path for path in talks.rglob("*") if path.is_file())
    for path in files:
        os.utime(path, (1_600_000_000, 1_600_000_000))

    def digest() -> str:
        return plan(tmp_path / "work", layout="common-voice", path=talks, splits=SPLITS).dataset("talks").digest

    before, read = digest(), []
    with monkeypatch.context() as patched:
        patched.setattr("quantune.artefacts.hashes.file_sha256", read.append)
        assert digest() == before and read == []
    sound(talks / "en/clips/c0.wav", 0.5, pitch=440)
    changed = digest()
    (talks / "en/clips/c1.wav").unlink()
    assert len({before, changed, digest()}) == 3


def test_files_just_written_are_not_remembered(tmp_path):
    files = [sound(tmp_path / "clips/a.wav", pitch=220)]
    hashes = Hashes(tmp_path / "hashes.json")
    before, stamp = hashes.combined(tmp_path, files), files[0].stat()
    sound(files[0], pitch=440)
    os.utime(files[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert hashes.combined(tmp_path, files) != before
