"""Recordings on the hub: Parquet with an audio column, from the download to clips at the model's rate."""

import json
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from quantune.data import clips as data_clips
from tests.voices import WHISPER, sound
from tests.workflow import Folder

AUDIO = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def shard(path: Path, clips: list[tuple[bytes | None, str]], row_group_size: int = 2) -> None:
    """Write a Parquet file as `datasets` does: audio as it came, with its file name, and columns of all kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = [{"bytes": data, "path": f"{number}.wav"} for number, (data, _) in enumerate(clips)]
    columns = {
        "client_id": [f"speaker {number % 2}" for number in range(len(clips))],
        "audio": pyarrow.array(audio, AUDIO),
        "sentence": [text for _, text in clips],
        "up_votes": list(range(len(clips))),
    }
    features = {"info": {"features": {"audio": {"sampling_rate": 48000, "_type": "Audio"}}}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture
def talks(hub, tmp_path) -> Path:
    """A repository with recordings in two folders: several formats, rates and channels; one of them broken."""
    root = hub.repositories["datasets/a/talks"] = tmp_path / "hub/talks"

    def heard(name: str, **more) -> bytes:
        return sound(tmp_path / "sounds" / name, 0.5, **more).read_bytes()

    shard(
        root / "coast/train/0000.parquet",
        [
            (heard("a.wav", rate=48000, channels=2), "Stereo."),
            (heard("b.mp3", rate=44100), "Compressed."),
            (heard("c.flac", rate=8000), "Slow."),
        ],
    )
    shard(root / "inland/train/0000.parquet", [(heard("d.ogg", rate=22050), "Other."), (b"", "Nothing to hear.")])
    shard(root / "coast/test/0000.parquet", [(heard("e.wav"), "Held out.")])
    (root / "README.md").write_text("About.")
    return root


@pytest.mark.slow
def test_recordings_from_the_hub(hub, talks, tmp_path, monkeypatch):
    """They are downloaded, decoded and resampled; then the server is gone, and nothing is left to do."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    splits = {"train": "*/train/*.parquet", "test": "coast/test/*.parquet"}
    entry = {"layout": "parquet", "hub": "a/talks", "column": "sentence", "language": "en", "splits": splits}
    folder = Folder(
        tmp_path / "project",
        {
            "models": {"whisper": {"path": str(WHISPER)}},
            "datasets": {"talks": entry | {"max_broken": 0.2}},
            "variants": ["whisper"],
        },
    )
    target = "work/prepared/talks/whisper"
    folder.run(target, "--cores", "1")
    facts = json.loads((folder.work / "sources/talks/provenance.json").read_text())["facts"]
    assert facts["source"]["commit"] == hub.commit("datasets/a/talks") and facts["source"]["licence"] == "mit"
    assert facts["personal_columns_dropped"] == ["client_id"]
    assert facts["splits"]["train"]["dropped"]["broken"] == 1 and len(facts["broken_files"]) == 1
    clips = data_clips.Clips(folder.work / "prepared/talks/whisper", "train")
    assert clips.column("text") == ["Stereo.", "Compressed.", "Slow.", "Other."]
    shards = ("coast/train/0000.parquet", "inland/train/0000.parquet")
    rows = (f"{shards[0]}:0:0", f"{shards[0]}:0:1", f"{shards[0]}:1:0", f"{shards[1]}:0:0")
    assert clips.column("id") == list(rows), "no two clips have the same name"
    wave = numpy.sin(2 * numpy.pi * 220 * numpy.arange(8000) / 16000)
    for number, loudness in enumerate((0.35, 0.3, 0.3, 0.3)):
        samples = clips[number]
        assert samples.shape == (8000,) and clips.column("seconds")[number] == 0.5
        assert numpy.abs(samples - loudness * wave)[400:-400].max() < 0.03, clips.column("text")[number]
    hub.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder.planned(target) == set()
    hub.__enter__()
