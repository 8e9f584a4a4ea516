"""Recordings that the tests write themselves, and the stage that reads them."""

import runpy
from pathlib import Path
from unittest.mock import patch

import numpy
import pytest
import soundfile

from quantune.planning import load
from quantune.planning.plan import Plan

ROOT = Path(__file__).parent.parent
RELEASE = ROOT / "assets/speech/cv-corpus-everyday-1.0"
WHISPER = ROOT / "assets/models/whisper-3m"
HEADER = ("client_id", "path", "sentence", "age", "gender", "accents", "variant", "locale")


def sound(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, pitch: float = 220) -> Path:
    """Write a tone, in the format of the file's ending; each channel is a third louder than the one before."""
    wave = 0.3 * numpy.sin(2 * numpy.pi * pitch * numpy.arange(round(seconds * rate)) / rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, numpy.stack([wave * (1 + channel / 3) for channel in range(channels)], axis=1), rate)
    return path


def row(name: str, sentence: str, speaker: str = "someone", locale: str = "en") -> dict[str, str]:
    """Return a row of a Common Voice table."""
    return dict(zip(HEADER, (speaker, name, sentence, "forties", "other", "coast", "", locale), strict=True))


def release(folder: Path, splits: dict[str, list[dict[str, str]]], locale: str = "en") -> Path:
    """Write the tables of a Common Voice release, and a tone for each clip that is not there yet."""
    for name, rows in splits.items():
        (folder / locale / "clips").mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(HEADER), *("\t".join(item.values()) for item in rows)]
        (folder / locale / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for number, item in enumerate(rows):
            if not (path := folder / locale / "clips" / item["path"]).exists():
                sound(path, 0.5 + 0.1 * number)
    return folder


def plan(work: Path, **entry) -> Plan:
    """Return the plan of a configuration with one dataset, `talks`."""
    return Plan(
        load.load(
            {
                "work": str(work),
                "models": {"whisper": {"path": str(WHISPER)}},
                "datasets": {"talks": {key: str(it) if isinstance(it, Path) else it for key, it in entry.items()}},
                "variants": ["whisper"],
            }
        )
    )


def stage(script: str):
    """Return the body of a stage's script."""
    found = []
    with patch("quantune.artefacts.job.run", lambda snakemake, body, **_: found.append(body)):
        runpy.run_path(str(ROOT / "scripts" / script), {"snakemake": None})
    return found[0]


def gather(work: Path, **entry) -> tuple[Path, dict]:
    """Read a dataset of clips; return the folder of its Parquet files, and the facts for its provenance."""
    return read(work, plan(work, **entry).dataset("talks").order(), "clips.py")


def read(work: Path, order: dict, script: str) -> tuple[Path, dict]:
    """Do a stage that reads a dataset; return the folder of its Parquet files, and the facts for its provenance."""
    folder, scratch = work / "made", work / "scratch"
    for path in (folder, scratch):
        path.mkdir(parents=True)
    return folder, stage(script)(order, {}, folder, scratch)


@pytest.fixture(scope="session")
def processor():
    from quantune.models import loading

    return loading.processor(WHISPER)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The embedded release as whisper-3m reads it."""
    work = tmp_path_factory.mktemp("speech")
    source, _ = gather(work, layout="common-voice", path=RELEASE, splits={"train": "train", "test": "test"})
    (work / "prepared").mkdir()
    stage("resample.py")({}, {"dataset": [source], "model": [WHISPER]}, work / "prepared", work)
    return work / "prepared"


@pytest.fixture(scope="session")
def heard(prepared, processor) -> tuple[list[numpy.ndarray], list[str]]:
    """The first eight clips of the test split, and what is said in them."""
    from quantune.data import speech

    clips = speech.Clips(prepared, "test")
    return [clips[number] for number in range(8)], clips.column("text")[:8]
