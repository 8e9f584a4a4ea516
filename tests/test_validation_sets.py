"""Several validation losses in one training: their curves, which one decides, what is planned, what is drawn."""

import csv

import numpy
import pytest

from quantune.core.errors import ConfigError
from quantune.data import text
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss
from quantune.models import loading
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.report import gather, table
from quantune.report.figures import finetuning
from tests.conftest import OPT
from tests.reports import work as work_fixture
from tests.test_loop import Killed

KEYS = {"method": "lora", "dataset": "main", "rank": 4, "batch_size": 2, "steps": 8, "learning_rate": 0.02}
KEYS |= {"evaluate_every": 1, "save_every": 2, "also_validate": {"news": "test", "own": "test"}}

work = work_fixture


def blocks(seed: int) -> text.Blocks:
    return text.Blocks(numpy.random.default_rng(seed).integers(5, 12000, (4, 16)))


def english() -> text.Blocks:
    """Blocks that the model predicts well, until it trains on random tokens."""
    lines = (OPT.parents[1] / "text/general/test.txt").read_text()[:600]
    return text.Blocks(numpy.array(loading.tokenizer(OPT)(lines).input_ids[:64]).reshape(4, 16))


def trained(folder, recipe, data=None):
    """Train on data that is also the validation set `own`; return the model, the facts and the curves."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    model = recipe.prepare(loading.model([OPT], "float32"), 0)
    others = {"news": english(), "own": blocks(0)}
    with loss.fused(model):
        facts = loop.train(model, recipe, 0, data or blocks(0), blocks(2), folder, folder / "scratch", others=others)
    return model, facts, list(csv.DictReader((folder / "curves.csv").open()))


def test_each_validation_set_has_a_curve_and_the_named_one_decides(tmp_path):
    """The loss of the training data falls; that of English rises, so it stops the training early."""
    model, facts, curves = trained(tmp_path / "own", LoRA(**KEYS, keep="best", best_on="own"))
    columns = ["validation_loss", "news.validation_loss", "own.validation_loss"]
    assert list(curves[0]) == ["step", "examples", "learning_rate", "train_loss", *columns]
    lines = {name: [float(point[name]) for point in curves] for name in columns}
    best = facts["best"]["step"]
    assert facts["best"] == {"step": best, columns[2]: min(lines[columns[2]][1:])} and best > 4
    assert all(facts[name] == lines[name][best] for name in columns)
    again = {"news": english(), "own": blocks(0)}
    for name, data in again.items():
        recipe = LoRA(**KEYS)
        assert loop.mean_loss(model, data, recipe) == pytest.approx(facts[f"{name}.validation_loss"], rel=1e-5)

    recipe = LoRA(**KEYS, keep="best", best_on="news", patience=2)
    _, stopped, curves = trained(tmp_path / "news", recipe)
    rising = [float(point["news.validation_loss"]) for point in curves]
    assert stopped.get("stopped_early") and stopped["steps"] == stopped["best"]["step"] + 2 < 8
    assert stopped["best"]["step"] == 1 + int(numpy.argmin(rising[1:]))

    with pytest.raises(InterruptedError):
        trained(tmp_path / "cut", recipe, Killed(blocks(0), 2))
    _, resumed, _ = trained(tmp_path / "cut", recipe)
    stopped.pop("run"), resumed.pop("run")
    assert resumed == stopped
    assert (tmp_path / "cut/curves.csv").read_bytes() == (tmp_path / "news/curves.csv").read_bytes()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"also_validate": {"newz": "test"}}, "lora.also_validate.newz: 'newz' is not a dataset; allowed: .*'news'"),
        ({"also_validate": {"news": "tset"}}, "no split 'tset'; its splits: train, test; did you mean 'test'"),
        ({"also_validate": {"harbour": "test"}}, "'also_validate' names other datasets; 'harbour' has 'validation_sp"),
        ({"best_on": "news"}, "'best_on: news' is not a dataset of 'also_validate'; leave it out"),
        ({"also_validate": {"news": "test"}, "best_on": "new", "keep": "best"}, "'also_validate'; allowed: news"),
        ({"also_validate": {"news": "test"}, "best_on": "news"}, "'best_on' needs 'keep: best'"),
        ({"validation_split": None, "keep": "best"}, "'keep: best' needs a validation loss"),
    ],
    ids=str,
)
def test_wrong_validation_sets_name_their_key(raw, keys, problem):
    raw["finetunings"]["lora"] |= keys
    with pytest.raises(ConfigError, match=problem):
        load.load(raw)


def test_the_plan_prepares_the_validation_sets_and_the_default_changes_no_digest(raw):
    before = Plan(load.load(raw)).checkpoint("opt+nf4+lora")
    assert {"also_validate", "best_on"}.isdisjoint(before.recipe) and set(before.parents) == {"parent", "data"}
    keys = {"also_validate": {"news": "test"}, "best_on": "news", "keep": "best", "validation_split": None}
    raw["finetunings"]["lora"] |= keys
    raw["evaluations"].pop("news")
    raw["expected"] = [{"source": "a paper", "number": "news.validation_loss.step3", "values": {"opt+nf4+lora": 4.5}}]
    plan = Plan(load.load(raw))
    made = plan.checkpoint("opt+nf4+lora")
    assert [item.place.names[0] for item in made.parents["validated"]] == ["news"]
    assert made.recipe["best_on"] == "news" and made.digest != before.digest
    assert {item.place.names[0] for item in plan.all_prepared()} == {"harbour", "news"}


def test_the_figure_has_a_line_for_each_validation_set(work, tmp_path):
    """One variant has two more sets, the other has none."""
    path = tmp_path / "work/checkpoints/m+tune/curves.csv"
    head = "step,examples,learning_rate,train_loss,validation_loss,news.validation_loss,talk.validation_loss"
    path.write_text(f"{head}\n0,0,0.1,,5.0,6.0,7.0\n10,80,0.1,4.5,4.8,6.1,7.1\n")
    report = gather.gather(work.order())
    finetuning.loss_curves(report, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    for label in (">training<", ">validation<", ">validation on news<", ">validation on talk<"):
        assert drawn.count(label) == 1
    (folder := tmp_path / "written").mkdir()
    table.write_curves(report, folder / "curves")
    assert (folder / "curves/m+tune.csv").read_text().startswith(head)
