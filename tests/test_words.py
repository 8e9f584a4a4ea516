"""The report's wording of numbers and commands."""

import math

import pytest

from quantune.core import units
from quantune.report import findings, gather, wording
from quantune.report.scores import Change
from tests.reports import Work


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (125.4604, 4.077, "125.5 ± 4.1"),
        (1009.2, 90.5, "1,009 ± 90"),
        (1.96025, 0.02038, "1.960 ± 0.020"),
        (12.3456, math.nan, "12.35"),
        (math.inf, math.nan, "∞"),
        (1.2345e300, 1e299, "1.23e+300 ± 1e+299"),
    ],
)
def test_numbers_show_the_digits_they_deserve(value, error, text):
    assert wording.measured(value, error) == text


def test_changes_in_words():
    assert wording.evidence(Change("m", 0.019, 0.0086, 0.0294, 0.001)) == "+1.9 % (95 % interval +0.9 to +2.9 %)"
    assert wording.evidence(Change("m", 0.0, 0.0, 0.0, 1.0)) == "+0.0 % (the same in every window)"
    alone = Change("m", 0.019, math.nan, math.nan, math.nan)
    assert wording.evidence(alone) == "+1.900 % (too few windows for an interval)" and alone.verdict == "unclear"


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7 bytes"), (1000, "1.00 kB"), (5_002_560, "5.00 MB"), (13_476_000_000, "13.5 GB"), (5e15, "5000 TB")],
)
def test_sizes_in_words(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("command", "again"),
    [
        ("snakemake --keep-going", "snakemake work/report"),
        ("snakemake --cores 2 --configfile a.yaml --rerun-incomplete", "snakemake work/report --configfile a.yaml"),
        ("snakemake --configfile=a.yaml -C seed=3", "snakemake work/report --configfile a.yaml --config seed=3"),
        ("", "snakemake work/report"),
    ],
)
def test_command_keeps_the_configuration(command, again):
    assert wording.again("work/report", command) == again


@pytest.fixture
def calibrated(tmp_path):
    """A model rounded to nearest and quantized with calibration, on the same grid and on another."""
    work = Work(tmp_path / "work")
    model = work.checkpoint("m", "model", {"model.safetensors": 1000})
    grid = {"bits": 3, "group_size": 32, "symmetric": True}
    few = {"calibration": {"warnings": ["calibrated on 16 samples; fewer than 128 can harm the model"]}}
    for name, method, keys, facts in (
        ("m+near", "rtn", grid, {}),
        ("m+second", "gptq", grid | {"samples": 16, "length": 25}, few),
        ("m+other", "gptq", grid | {"samples": 16, "length": 26, "bits": 4}, few),
    ):
        recipe = {"method": method, **keys}
        files = {"model.safetensors": 300}
        work.checkpoint(name, f"quantize/{method}", files, parents={"parent": model}, recipe=recipe, facts=facts)
    for name, loss in {"m": 5.0, "m+near": 5.2, "m+second": 5.1, "m+other": 5.05}.items():
        work.perplexity(name, "home", loss, 0.0 if name == "m" else 1.0)
    return gather.gather(work.order())


def test_calibration_is_compared_with_rounding_on_the_same_grid(calibrated):
    change = calibrated.variants["m+second"].scores["home"].from_rounding
    assert change.against == "m+near" and change.change == pytest.approx(math.expm1(-0.1))
    assert calibrated.variants["m+other"].scores["home"].from_rounding is None
    assert calibrated.variants["m+near"].scores["home"].from_rounding is None
    (found,) = [item for item in findings.findings(calibrated) if item.heading == "What calibrating changed"]
    (sentence,) = found.sentences
    assert sentence.startswith("On home, perplexity −9.5") and "`m+second` instead of `m+near`" in sentence


def test_calibration_warnings_are_repeated_and_short_samples_told(calibrated):
    (found,) = [item for item in findings.findings(calibrated) if item.heading == "Warnings"]
    assert found.sentences == [
        "`m+second` and `m+other`: calibrated on 16 samples; fewer than 128 can harm the model.",
        "`m+second`: calibrated on samples of 25 tokens, read in windows of 101 on home; short samples calibrate for"
        " short contexts.",
    ]
