"""Memory and speed in the report, on benchmarks whose numbers are known."""

import csv
import json
import re
from pathlib import Path

import pandas
import pytest

from quantune.core.errors import QuantuneError
from quantune.evaluations.benchmark import COLUMNS, Benchmark
from quantune.report import findings, gather, table
from quantune.report.decisions import faster
from quantune.report.speed import Speed
from tests.reports import Work, write
from tests.spoken import speech


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
    result |= {"loaded_bytes": size, "running_bytes": size, "footprint_bytes": memory}
    Path(made["path"], "result.json").write_text(json.dumps(result))
    pandas.DataFrame(rows, columns=["batch_size", "prompt_length", *COLUMNS]).to_parquet(
        Path(made["path"], "items.parquet")
    )
    work.benchmarks = [*getattr(work, "benchmarks", []), made]


def spoken_benchmark(work: Work, name: str, factor: float, memory: int) -> None:
    """Write a benchmark of a speech variant, batch sizes 1 and 4: of 10 s of audio for each window, `factor` times as
    many seconds go by, half of them encoding, half of them making 5 tokens; ± 1 %.
    """
    made = work.artefact(f"benchmarks/{name}", "benchmark", {"checkpoint": dict(work.made)[name]})
    machine = {"kind": "cpu", "device": "A processor", "count": 2, "driver": None, "software": {}}
    rows, points = [], []
    for batch in (1, 4):
        encode, decode = {"joules_per_audio_second": 3.0}, {"joules_per_token": 2.0}
        point = {"batch_size": batch, "window_seconds": 10}
        points.append(point | {"fits": True, "decoder": "eager", "passed_over": {}})
        points[-1] |= {"encode": encode | {"peak_bytes": 3 * memory}, "decode": decode | {"peak_bytes": 2 * memory}}
        for run, times in enumerate((10, 0.99, 1.0, 1.0, 1.0, 1.01)):  # the first is warm-up
            for phase, tokens in (("encode", 4 * batch), ("decode", 5 * batch)):
                row = point | {"phase": phase, "run": run, "warmup": run == 0, "tokens": tokens}
                rows.append(row | {"seconds": 5 * factor * batch * times})
    size = {"tensors": memory, "measured": 0}
    result = {"hardware": machine, "threads": 2, "dtype": "float32", "new_tokens": 5, "points": points}
    result |= {"loaded_bytes": size, "running_bytes": size, "footprint_bytes": memory}
    Path(made["path"], "result.json").write_text(json.dumps(result))
    pandas.DataFrame(rows).to_parquet(Path(made["path"], "items.parquet"))
    work.benchmarks = [*getattr(work, "benchmarks", []), made]


def measured(work: Work) -> dict:
    """Return the order of a report with benchmarks."""
    order = work.order()
    order["parents"]["benchmarks"] = work.benchmarks
    return order


def test_the_recipe_knows_the_names_of_the_numbers(work, tmp_path):
    benchmark(work, "m", 100, 1000)
    spoken_benchmark(work, "m+fine", 0.1, 1000)
    variants = gather.gather(measured(work)).variants
    sweep = Benchmark(batch_sizes=[1, 4], prompt_lengths=[8])
    assert sorted(sweep.names("text")) == sorted(variants["m"].performance.columns())
    spoken = [name.replace("window*", "window10") for name in sweep.names("speech")]
    assert sorted(spoken) == sorted(variants["m+fine"].performance.columns())


def test_benchmarks_are_told_and_drawn(work, tmp_path):
    for name, rate, memory in (("m", 100, 1000), ("m+fine", 200, 400), ("m+rough", 100.5, 300)):
        benchmark(work, name, rate, memory)
    gathered, html = write(measured(work), tmp_path / "report")
    told = " ".join(findings.performance(gathered)[0].sentences)
    assert "`m+rough` takes least, 300 bytes (70 % less)" in told
    assert "`m` 100 (99 to 101) tokens/s; fastest `m+fine`, 200 (198 to 202), 2 times as fast." in told
    assert "shown to be small on every evaluation, `m+fine` takes least memory (400 bytes) and `m+fine` decodes" in told
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
    told = " ".join(findings.performance(gather.gather(measured(work)))[0].sentences)
    assert "no variant is faster in every repeat" in told and "no variant takes less" in told


def test_machines_are_never_mixed(work):
    benchmark(work, "m", 100, 1000)
    benchmark(work, "m+fine", 100, 1000, device="Another processor")
    with pytest.raises(QuantuneError, match="different machines"):
        gather.gather(measured(work))


@pytest.mark.parametrize("unfit", ["m", "m+fine"])
def test_a_point_that_did_not_fit_is_told(work, tmp_path, unfit):
    for name, rate in (("m", 100), ("m+fine", 200)):
        benchmark(work, name, rate, 1000, fitting=(1,) if name == unfit else (1, 4))
    gathered, html = write(measured(work), tmp_path / "report")
    told = " ".join(findings.performance(gathered)[0].sentences)
    assert f"At batch size 4 (prompt of 8 tokens), `{unfit}` did not fit into memory." in told
    assert html.count(">did not fit</button>") == 2  # prefill and decode
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert rows[unfit]["decode.batch4.prompt8.tokens_per_second"] == ""
    assert rows[unfit]["decode.batch1.prompt8.tokens_per_second"] != ""


def test_nothing_fits(work, tmp_path):
    benchmark(work, "m", 100, 1000, fitting=())
    gathered, html = write(measured(work), tmp_path / "report")
    assert html.count(">did not fit</button>") == 4 and "did not fit" in str(findings.performance(gathered))


def test_speech_is_told_beside_text(work, tmp_path):
    speech(work)
    for name, rate in (("m", 100), ("m+fine", 200)):
        benchmark(work, name, rate, 1000)
    for name, factor, memory in (("w", 0.1, 2000), ("w+fine", 0.05, 500), ("w+tune", 0.1, 2500)):
        spoken_benchmark(work, name, factor, memory)
    gathered, html = write(measured(work), tmp_path / "report")
    text, spoken = (finding.sentences for finding in findings.performance(gathered))
    assert not any("`w" in sentence for sentence in text) and not any("`m" in sentence for sentence in spoken)
    assert spoken[1] == (
        "Transcribing at batch size 1 (windows of 10 s, 5 tokens each): `w` real-time factor 0.1 (0.099 to 0.101);"
        " fastest `w+fine`, 0.05 (0.0495 to 0.0505), 2 times as fast."
    )
    assert "Encoding at batch size 4 (windows of 10 s): `w` 2 (1.98 to 2.02) s; fastest `w+fine`, 1 (" in spoken[3]
    assert "each): `w` 10 (9.9 to 10.1) tokens/s; fastest `w+fine`, 20" in spoken[4]
    assert "Of the variants whose loss is shown to be small on every evaluation, none is" in spoken[-1]  # few clips
    drawn = {path.stem for path in (tmp_path / "report").glob("quality-*.radio.svg")}
    names = ("size", "memory", "real-time-factor-batch1", "real-time-factor-batch4")
    assert drawn == {f"quality-{name}.radio" for name in names}
    picture = json.loads(re.search(r'id="tradeoffs-data">(.*?)</script>', html)[1])
    costs = {name: [item["name"] for item in of_name] for name, of_name in picture["costs"].items()}
    assert costs["home"] == ["size on disk", "memory in use", *(f"decoding, tokens/s, batch {n}" for n in (1, 4))]
    assert costs["radio"][2:] == ["real-time factor, batch 1", "real-time factor, batch 4"]
    assert {item["name"] for item in picture["variants"]} == set(gathered.variants)
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    factor = "transcribe.batch4.window10.real_time_factor"
    assert [float(rows["w"][f"{factor}{end}"]) for end in ("", "_low", "_high")] == pytest.approx([0.1, 0.099, 0.101])
    assert rows["m"][factor] == "" and rows["w"]["decode.batch4.prompt8.tokens_per_second"] == ""
    assert float(rows["w"]["transcribe.batch4.window10.joules_per_audio_second"]) == 3 + 2 * 5 / 10
    assert float(rows["w"]["transcribe.batch4.window10.peak_bytes"]) == 6000
    assert "RTF,<br>batch 4" in html and "Prefill,<br>batch 4" in html


def test_text_and_speech_have_tables_of_their_own_without_evaluations(work, tmp_path):
    speech(work)
    benchmark(work, "m", 100, 1000)
    spoken_benchmark(work, "w", 0.1, 2000)
    order = measured(work)
    order["parents"]["evaluations"], order["recipe"]["evaluations"] = [], {}
    gathered, html = write(order, tmp_path / "report")
    assert [{item.model for item in variants} for _, variants in gathered.groups] == [{"m"}, {"w"}]
    assert "Quality against memory" not in html and "real-time factor 0.1" in html
