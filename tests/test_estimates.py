"""Predicted memory beside measured memory, on jobs whose numbers are known."""

import json
from pathlib import Path

import pytest

from quantune.artefacts.lineage import read_lineage
from quantune.core.hardware import LIBRARY_BYTES
from quantune.report import memory_check
from tests import records
from tests.reports import Work, write


def ran(work: Work, name: str, measured: int, gpu: str | None = None, predicted: dict | None = None) -> None:
    """Write what a checkpoint's job recorded of its memory."""
    path = Path(dict(work.made)[name]["path"], "run.json")

    def edit(run: dict) -> None:
        run |= {"peak_memory_bytes": measured, "predicted": predicted}
        if gpu:
            run |= {"peak_memory_bytes": 1, "peak_device_bytes": measured}
            run["hardware"] |= {"gpu": gpu}

    records.change(path, edit)


def test_each_job_is_compared_with_what_it_was_predicted_on_its_hardware(work, tmp_path):
    ran(work, "m+fine", 90, "A GPU", {"weights": 60, "one layer": 40})
    ran(work, "m+rough", 150, "A GPU", {"weights": 100})
    ran(work, "m+tune", 2 * LIBRARY_BYTES, predicted={"weights": LIBRARY_BYTES})
    ran(work, "m", 5)
    gathered, html = write(work.order(), tmp_path / "report")
    found = {Path(item.path).name: item for item in memory_check.compare(gathered)}
    assert {name: item.ratio for name, item in found.items()} == pytest.approx(
        {"m+fine": 0.9, "m+rough": 1.5, "m+tune": 1.0}
    )
    told = memory_check.sentences(list(found.values()))
    assert "On A GPU 2 jobs took 0.90 to 1.50 times, median 1.20, what was predicted" in told[0]
    assert "On a processor 1 job took" in told[1] and "50 % of it, at the median" in told[2] and len(told) == 3
    assert "Predicted and measured memory" in html and '<td data-value="1.5">1.50</td>' in html


def test_nothing_is_compared_where_nothing_was_predicted(work, tmp_path):
    gathered, html = write(work.order(), tmp_path / "report")
    assert memory_check.compare(gathered) == [] and "Predicted and measured memory" not in html


def test_jobs_record_what_was_predicted(finished, monkeypatch):
    monkeypatch.chdir(finished.path)
    runs = {path.parent.name: json.loads(path.read_text()) for path in finished.work.glob("checkpoints/*/run.json")}
    trained = json.loads((finished.work / "checkpoints/opt+lora/provenance.json").read_text())
    assert sum(runs["opt+lora"]["predicted"].values()) == trained["facts"]["estimated_bytes"]
    assert runs["opt"]["predicted"] is None
    lineage = read_lineage([{"path": "work/checkpoints/opt+lora", "digest": trained["digest"]}])
    assert lineage["work/checkpoints/opt+lora"]["run"]["predicted"] == runs["opt+lora"]["predicted"]
    assert "Predicted and measured memory" in (finished.work / "report/report.html").read_text()
