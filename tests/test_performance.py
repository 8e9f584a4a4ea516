"""Memory and speed in the report, on benchmarks whose numbers are known."""

import csv
import json
from pathlib import Path

import pandas
import pytest

from quantune import page, report, table
from quantune.benchmarking import COLUMNS
from quantune.errors import QuantuneError
from quantune.performance import Speed
from quantune.performance_words import faster
from tests.reports import Work, write


def benchmark(
    work: Work, name: str, rate: float, memory: int, device: str = "A processor", fitting: tuple = (1, 4)
) -> None:
    """Write a benchmark: decode at `rate` tokens/s ± 1 % at batch size 1 and 4, prefill ten times that."""
    made = work.artefact(f"benchmarks/{name}", "benchmark", {"checkpoint": dict(work.made)[name]})
    machine = {"kind": "cpu", "device": device, "count": 2, "driver": None, "software": {}}
    phase, rows, points = {"peak_bytes": 2 * memory, "joules_per_token": None}, [], []
    for batch in (1, 4):
        if batch not in fitting:
            points.append({"batch_size": batch, "prompt_length": 8, "fits": False})
            continue
        points.append({"batch_size": batch, "prompt_length": 8, "fits": True, "decoder": "eager", "passed_over": {}})
        points[-1] |= {"prefill": phase, "decode": phase}
        for run, factor in enumerate((0.1, 0.99, 1.0, 1.0, 1.0, 1.01)):  # the first is warm-up
            for name_, times in (("prefill", 10), ("decode", 1)):
                row = {"batch_size": batch, "prompt_length": 8, "phase": name_, "run": run, "warmup": run == 0}
                rows.append(row | {"tokens": 100, "seconds": 100 / (rate * factor * batch * times)})
    size = {"tensors": memory, "measured": 0}
    result = {"hardware": machine, "threads": 2, "dtype": "float32", "points": points}
    result |= {"loaded_bytes": size, "running_bytes": size}
    Path(made["path"], "result.json").write_text(json.dumps(result))
    pandas.DataFrame(rows, columns=["batch_size", "prompt_length", *COLUMNS]).to_parquet(
        Path(made["path"], "items.parquet")
    )
    work.benchmarks = [*getattr(work, "benchmarks", []), made]


def measured(work: Work) -> dict:
    """Return the order of a report with benchmarks."""
    order = work.order()
    order["parents"]["benchmarks"] = work.benchmarks
    return order


def test_benchmarks_are_told_and_drawn(work, tmp_path):
    for name, rate, memory in (("m", 100, 1000), ("m+fine", 200, 400), ("m+rough", 100.5, 300)):
        benchmark(work, name, rate, memory)
    gathered, html = write(measured(work), tmp_path / "report")
    told = " ".join(page.performance_words.findings(gathered)[0].sentences)
    assert "`m+rough` takes least, 300 bytes (70 % less)" in told
    assert "`m` 100 (99 to 101) tokens/s; fastest `m+fine`, 200 (198 to 202), 2 times as fast." in told
    assert "significant loss on any evaluation, `m+fine` takes least memory (400 bytes) and `m+fine` decodes" in told
    drawn = {path.stem for path in (tmp_path / "report").glob("quality-*.home.svg")}
    assert drawn == {f"quality-{name}.home" for name in ("size", "memory", "speed-batch1", "speed-batch4")}
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert float(rows["m"]["decode.batch4.prompt8.tokens_per_second"]) == pytest.approx(400)
    assert rows["m+tune"]["running_bytes"] == "" and "A processor, 2 cores, 2 threads used" in html
    assert table.metrics(gathered)["m+fine"]["prefill.batch1.prompt8.tokens_per_second_high"] == pytest.approx(2020)


def test_unsteady_repeats_are_not_compared():
    calm, wild = Speed(100, 99, 101, 5, 0, None), Speed(200, 150, 220, 5, 0, None)
    assert not faster(wild, calm) and faster(Speed(200, 190, 210, 5, 0, None), calm)


def test_a_small_lead_is_no_lead(work):
    benchmark(work, "m", 100, 1000)
    benchmark(work, "m+rough", 101, 1000)
    told = " ".join(page.performance_words.findings(report.gather(measured(work)))[0].sentences)
    assert "no variant is faster in every repeat" in told and "no variant takes less" in told


def test_machines_are_never_mixed(work):
    benchmark(work, "m", 100, 1000)
    benchmark(work, "m+fine", 100, 1000, device="Another processor")
    with pytest.raises(QuantuneError, match="different machines"):
        report.gather(measured(work))


@pytest.mark.parametrize("unfit", ["m", "m+fine"])
def test_a_point_that_did_not_fit_is_told(work, tmp_path, unfit):
    for name, rate in (("m", 100), ("m+fine", 200)):
        benchmark(work, name, rate, 1000, fitting=(1,) if name == unfit else (1, 4))
    gathered, html = write(measured(work), tmp_path / "report")
    told = " ".join(page.performance_words.findings(gathered)[0].sentences)
    assert f"At batch size 4 (prompt of 8 tokens), `{unfit}` did not fit into memory." in told
    assert html.count(">did not fit</button>") == 2  # prefill and decode
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert rows[unfit]["decode.batch4.prompt8.tokens_per_second"] == ""
    assert rows[unfit]["decode.batch1.prompt8.tokens_per_second"] != ""


def test_nothing_fits(work, tmp_path):
    benchmark(work, "m", 100, 1000, fitting=())
    gathered, html = write(measured(work), tmp_path / "report")
    assert html.count(">did not fit</button>") == 4 and "did not fit" in str(page.performance_words.findings(gathered))
