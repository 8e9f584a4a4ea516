"""A small set of speech artefacts whose numbers are known, beside those of `tests.reports`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pandas
import pyarrow
import pytest

from quantune.data.clips import SCHEMA
from quantune.evaluations.metrics import rates
from quantune.sources import audio
from tests import records
from tests.reports import Work

COUNT, RATE, SECONDS = 40, 16000, 0.5
RECIPE = {
    "kind": "transcription",
    "split": "test",
    "task": "transcribe",
    "beams": 1,
    "max_new_tokens": 40,
    "normalizer": "basic",
}
RECIPE |= {"dtype": "float32"}
SPOKEN = {
    "radio": RECIPE | {"dataset": "radio", "general": False},
    "street": RECIPE | {"dataset": "street", "general": True},
}


def said(number: int) -> str:
    """Return what is said in a clip: four words."""
    return f"Alpha Bravo Charlie {number}."


def recordings(work: Work, dataset: str, model: str) -> None:
    """Write a dataset's clips, tones of half a second, as a model reads them."""
    facts = {"clips": COUNT, "hours": COUNT * SECONDS / 3600, "shortest_seconds": SECONDS, "median_seconds": SECONDS}
    facts |= {"longest_seconds": SECONDS}
    dropped = {"dropped": {"broken": 2, "without_transcript": 0}, "speakers": 3}
    source = work.artefact(f"sources/{dataset}", "clips", facts={"splits": {"test": facts | dropped}})
    longer = {"sampling_rate": RATE, "splits": {"test": facts | {"longer_than_window": 1}}}
    made = work.artefact(f"prepared/{dataset}/{model}", "resample", {"dataset": source}, facts=longer)
    rows = []
    for number in range(COUNT):
        tone = numpy.sin(numpy.arange(int(RATE * SECONDS)) * (300 + 10 * number) * 2 * numpy.pi / RATE)
        row = {"id": f"clip-{number:02}", "text": said(number), "translation": None, "language": "en"}
        rows.append(row | {"seconds": SECONDS, "samples": audio.to_pcm(0.5 * tone).tobytes()})
    path = Path(made["path"], "test.arrow")
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))


def transcription(
    work: Work, name: str, evaluation: str, written: Callable[[int], str], language: str = "en", factor: float = 0.25
) -> None:
    """Write an evaluation of the clips: what a variant writes of each."""
    made = work.evaluation(name, evaluation, SPOKEN[evaluation])
    folder, numbers = Path(made["path"]), range(COUNT)
    items = {"id": [f"clip-{number:02}" for number in numbers], "language": language, "seconds": SECONDS}
    items |= {"reference": [said(number) for number in numbers], "hypothesis": [written(number) for number in numbers]}
    rates.with_edits(pandas.DataFrame(items)).to_parquet(folder / "items.parquet")
    (folder / "result.json").write_text(json.dumps({"language": language}))
    records.change(folder / "run.json", lambda run: run.update(real_time_factor=factor))
    data = work.folder / "prepared" / SPOKEN[evaluation]["dataset"] / name.split("+")[0]
    read = [{"path": str(data), "digest": f"digest of {data.relative_to(work.folder)}"}]
    records.change(folder / "provenance.json", lambda provenance: provenance["parents"].update(data=read))


def first_wrong(count: int) -> Callable[[int], str]:
    """Return a transcriber that takes the first word of so many clips for another, and hears the others right."""
    return lambda number: said(number).replace("Alpha", "Delta") if number < count else said(number)


def garbled(number: int) -> str:
    """Write of every other clip one word too few, of the first clip one too many."""
    text = said(number).replace("Bravo ", "") if number % 2 else said(number)
    return f"{text} Zulu" if number == 0 else text


def speech(work: Work) -> Work:
    """Write a speech model, two quantized variants, and the model fine-tuned."""
    model = work.checkpoint("w", "model", {"model.safetensors": 2000})
    for name, bytes_, bits in (("w+fine", 900, 4.5), ("w+rough", 600, 2.5)):
        facts = {"bits_per_weight": bits}
        work.checkpoint(name, "quantize/rtn", {"model.safetensors": bytes_}, parents={"parent": model}, facts=facts)
    adapter = {"adapter_config.json": 1, "adapter_model.safetensors": 50}
    work.checkpoint("w+tune", "train/lora", adapter, parents={"parent": model}, recipe={"dataset": "radio", "seed": 0})
    curves = "step,examples,learning_rate,train_loss,validation_loss\n0,0,0.1,,2.0\n10,80,0.1,1.5,1.8\n"
    Path(dict(work.made)["w+tune"]["path"], "curves.csv").write_text(curves)
    for evaluation in SPOKEN:
        recordings(work, SPOKEN[evaluation]["dataset"], "w")
    for name, radio, street in (
        ("w", first_wrong(16), first_wrong(4)),
        ("w+fine", first_wrong(17), first_wrong(4)),
        ("w+rough", garbled, garbled),
        ("w+tune", first_wrong(0), first_wrong(8)),
    ):
        transcription(work, name, "radio", radio)
        transcription(work, name, "street", street)
    return work


@pytest.fixture
def spoken(tmp_path):
    """A speech model with its variants, transcribing two sets."""
    return speech(Work(tmp_path / "work"))
