"""The figure of quality against calibration samples."""

import math

import pytest

from quantune.report import gather
from quantune.report.figures import calibration
from tests.reports import write

GRID = {"bits": 3, "group_size": 128, "symmetric": True}


@pytest.fixture
def study(work):
    """Two datasets, two numbers of samples, two seeds of one of them; and rounding to nearest."""
    model = dict(work.made)["m"]

    def add(name: str, loss: float, recipe: dict, facts: dict) -> None:
        files = {"model.safetensors": 300}
        stage = f"quantize/{recipe['method']}"
        work.checkpoint(name, stage, files, parents={"parent": model}, recipe=GRID | recipe, facts=facts)
        for evaluation in ("home", "away"):
            work.perplexity(name, evaluation, loss, 1.0)
        work.generation(name, "one")

    add("m+rtn", 5.9, {"method": "rtn"}, {})
    for dataset, samples, seed, loss in [("b", 8, 1, 5.6), ("b", 8, 2, 5.8), ("b", 64, 1, 5.5), ("a", 8, 1, 5.7)]:
        recipe = {
            "method": "gptq",
            "dataset": dataset,
            "split": "train",
            "samples": samples,
            "length": 64,
            "seed": seed,
        }
        add(f"m+{dataset}-{samples}@{seed}", loss, recipe, {"calibration": {"samples": min(samples, 50)}})
    return work


def test_what_is_drawn(study):
    gathered = gather.gather(study.order())
    (found,) = calibration.studies(gathered, "home")
    curves = calibration.curves(found, "home")
    assert list(curves) == ["b", "a"]
    assert curves["b"][8] == pytest.approx([math.exp(5.6), math.exp(5.8)])
    assert list(curves["b"]) == [8, 50], "what there was, not what was asked for"


def test_splits_are_told_apart_where_they_differ(study):
    (found,) = calibration.studies(gather.gather(study.order()), "home")
    found[0].recipe["split"] = "test"
    assert set(calibration.curves(found, "home")) == {"b, test", "b, train", "a, train"}


def test_the_figure_is_in_the_report(study, tmp_path):
    _, html = write(study.order(), tmp_path / "report")
    drawn = (tmp_path / "report/calibration.home.svg").read_text()
    assert "m, gptq, 3 bits, groups of 128" in drawn and "rounding to nearest" in drawn
    assert "calibration samples of 64 tokens" in drawn
    assert html.count("What calibrating on other data") == 2


def test_a_single_calibration_draws_nothing(work, study, tmp_path):
    study.made = [(name, made) for name, made in study.made if "-64" not in name]
    study.evaluated = [made for made in study.evaluated if "-64" not in made["path"]]
    study.listed = [name for name in study.listed if "-64" not in name]
    _, html = write(study.order(), tmp_path / "report")
    assert not list((tmp_path / "report").glob("calibration*")) and "<h2>Calibration</h2>" not in html
