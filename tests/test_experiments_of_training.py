"""The experiments on training: numbers of trained parameters, plans, and the figure and the table of their results."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy
import pandas
import pytest

from quantune.models import architecture
from quantune.planning import chains, documents, load
from quantune.planning.plan import Plan
from tests import records
from tests.conftest import OPT
from tests.test_memory import opt

FOLDER = Path(__file__).parents[1] / "experiments"
WIDTH, LAYERS = 512, 7
FIXED = {"full": 28_884_480, "ia3": 21_504, "biases": 39_936, "norms": 15_360}
"""Methods without a size: their trained parameters in an OPT of this width and number of layers."""


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """Return a function that loads an experiment on stand-ins for its models and data."""
    data = tmp_path / "data"
    shutil.copytree(OPT, tmp_path / "models/opt-29m")
    shutil.copytree(OPT, tmp_path / "smollm2-135m-instruct")
    (tmp_path / "smollm2-135m-instruct/chat_template.jinja").write_text("{{ messages }}")
    rows = {
        "english-quotes/quotes.jsonl": {"quote": "Be."},
        "c4/train-snippets.jsonl": {"text": "A."},
        "c4/validation.jsonl": {"text": "A."},
        "alpaca/alpaca_en_demo.json": {"instruction": "Go.", "output": "Yes."},
        "alpaca/alpaca_zh_demo.json": {"instruction": "Go.", "output": "Yes."},
    }
    for name, row in rows.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("".join(json.dumps(row | {"n": number}) + "\n" for number in range(9)))
    (data / "wikitext-2").mkdir()
    (data / "wikitext-2/test.txt").write_text("A valley.\n")
    monkeypatch.setenv("QUANTUNE_DATA", str(tmp_path))
    monkeypatch.setenv("REAL", str(tmp_path))
    return lambda name: load.load(documents.read(FOLDER / f"{name}.yaml") | {"work": str(tmp_path / "work")})


def test_methods_train_equally_many_parameters(configured):
    config, shape = (
        configured("methods"),
        architecture.read(opt(WIDTH, LAYERS, 8, vocab_size=12288, max_position_embeddings=1024)),
    )
    trained = {name: recipe.trained(shape) for name, recipe in config.finetunings.items()}
    assert len(trained) == 48
    for name, count in trained.items():
        method = name.removesuffix("-100").removesuffix("-1000")
        assert count == FIXED[method] if method in FIXED else abs(count / 114_688 - 1) < 0.07, name


@pytest.mark.parametrize(
    ("name", "trainings", "evaluations"), [("methods", 144, 145), ("instructions", 9, 10), ("order", 18, 39)]
)
def test_the_plan_of_an_experiment(configured, name, trainings, evaluations):
    config = configured(name)
    plan = Plan(config)
    stages = [plan.checkpoint(str(variant)).stage for variant in config.evaluated]
    assert sum(stage.startswith("train/") for stage in stages) == trainings and len(stages) == evaluations


def test_the_order_study_trains_equally_long(configured):
    config = configured("order")
    for variant in map(config.parse, chains.expand(config.variants)):
        steps = [config.finetunings[step.name].steps for step in variant.steps if step.name in config.finetunings]
        assert sum(steps) == 80


@pytest.fixture
def results():
    spec = importlib.util.spec_from_file_location("results", FOLDER / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_of_seeds_are_one_row_with_its_interval(results, tmp_path):
    """Two seeds of each order, whose means are known; a variant that lacks an evaluation is left out."""
    noise = numpy.random.default_rng(0).normal(0, 2, 60)

    def made(variant: str, loss: float, evaluations=("quotes", "c4")) -> None:
        for evaluation in evaluations:
            (folder := tmp_path / "work-order/evaluations" / variant / evaluation).mkdir(parents=True)
            items = {"begin": range(60), "tokens": [100] * 60, "nll": 100 * loss + noise}
            pandas.DataFrame(items).to_parquet(folder / "items.parquet")
        (folder := tmp_path / "work-order/checkpoints" / variant).mkdir(parents=True)
        facts = {"trainable_parameters": 1234} if "train" in variant else {}
        record = {"digest": "d", "stage": "train/lora", "version": 1, "recipe": {}, "sources": {}, "facts": facts}
        record |= {"files": [], "packages": {}, "parents": {}}
        records.write(folder, record, {"peak_device_bytes": 2_500_000_000, "steps_per_second": 12.5})

    made("m", 5.0)
    for seed, loss in ((1, 4.7), (2, 4.9)):
        made(f"m+nf4+train@{seed}", loss)
        made(f"m+train@{seed}+merge+nf4", loss + 0.1)
    made("m+gptq-w4+train@1", 4.0, ("quotes",))
    experiment = results.EXPERIMENTS["order"]
    gathered = results.Results(tmp_path / "work-order", {"quotes", "c4"})
    assert {row.steps: len(row.variants) for row in gathered.rows} == {"nf4+train": 2, "train+merge+nf4": 2}
    results.draw(gathered, experiment, tmp_path / "order.svg")
    results.write(gathered, experiment, tmp_path / "order.md")
    base, first, second = [line.split(" | ") for line in (tmp_path / "order.md").read_text().splitlines()[2:]]
    assert float(base[4]) == pytest.approx(math.exp(5.0), rel=0.02)
    assert first[:5] == ["| nf4+train", "1,234", "2.50", "12.5", f"{math.exp(4.8 + noise.mean() / 100):.4g}"]
    assert second[0] == "| train+merge+nf4" and "(+10.5 %, +10.5 to +10.5)" in second[4]
    drawn = (tmp_path / "order.svg").read_text()
    assert (
        all(f">{text}<" in drawn for text in ("quotes", "C4", "nf4+train", "train+merge+nf4")) and "gptq" not in drawn
    )
