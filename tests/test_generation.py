"""Continuations of prompts: greedy as ever, and samples that follow from the seed."""

import json

import pytest
import torch

from quantune.core.errors import ConfigError
from quantune.evaluations.generation import Generation, Sampling
from quantune.models import loading
from quantune.models.drawing import Draw
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.report import gather, page
from tests.conftest import OPT
from tests.reports import RECIPES

PROMPTS = ["The keeper climbed", "A bridge is"]


@pytest.fixture(scope="module")
def variant():
    return loading.LoadedVariant([OPT])


def items(variant, folder, prompts=PROMPTS, **sampling) -> list[dict]:
    folder.mkdir()
    recipe = Generation(kind="generation", prompts=prompts, max_new_tokens=12, sampling=sampling or None)
    assert recipe.evaluate(variant, None, folder) == {"kind": "generation", "prompts": len(prompts)}
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_samples_follow_from_the_seed(variant, tmp_path):
    torch.manual_seed(1)
    first = items(variant, tmp_path / "first", temperature=1.5, samples=3, seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert first == items(variant, tmp_path / "again", temperature=1.5, samples=3, seed=7)
    assert [(item["prompt"], item["sample"]) for item in first] == [(prompt, n) for prompt in PROMPTS for n in range(3)]
    assert len({item["text"] for item in first}) == 6
    alone = items(variant, tmp_path / "alone", prompts=PROMPTS[:1], temperature=1.5, samples=2, seed=7)
    assert alone == first[:2], "neither other prompts nor more samples change a text"
    assert first != items(variant, tmp_path / "other", temperature=1.5, samples=3, seed=8)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "the generator of other work is not touched"


def test_greedy_is_the_default_and_keeps_its_digest(raw, variant, tmp_path):
    greedy = items(variant, tmp_path / "greedy")
    assert [set(item) for item in greedy] == [{"prompt", "text", "tokens"}] * 2
    coldest = items(variant, tmp_path / "one", top_k=1)
    assert [item["text"] for item in coldest] == [item["text"] for item in greedy]
    recipe = Plan(load.load(raw)).evaluation("opt", "prompts").recipe
    assert recipe == {"kind": "generation", "prompts": ["The wind"], "max_new_tokens": 40, "dtype": "float32"}
    raw["evaluations"]["prompts"]["sampling"] = {"temperature": 0.7}
    drawn = Plan(load.load(raw)).evaluation("opt", "prompts").recipe["sampling"]
    assert drawn == {"temperature": 0.7, "top_k": None, "top_p": 1.0, "samples": 1, "seed": 0}


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_k": 2}, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
    ],
)
def test_tokens_are_drawn_with_their_probabilities(options, shares):
    recipe = Sampling(**options)
    draw = Draw(0, recipe.temperature, recipe.top_k, recipe.top_p)
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20_000, 1)
    drawn = draw(None, scores).argmax(-1)
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(found, torch.tensor(shares), atol=0.015)
    assert all(count == 0 for count, share in zip(found, shares, strict=True) if share == 0)


def test_logits_that_are_not_finite_are_left_for_the_watch():
    scores = torch.tensor([[1.0, float("nan")]])
    assert Draw(0, 1.0, None, 1.0)(None, scores) is scores


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        (
            {"temperature": 0},
            "evaluations.prompts.sampling.temperature: input should be greater than or equal to 0.001, found 0",
        ),
        ({"temprature": 1}, "evaluations.prompts.sampling.temprature: unknown key; did you mean 'temperature'?"),
        ({"top_p": 1.5}, "evaluations.prompts.sampling.top_p: input should be less than or equal to 1, found 1.5"),
        ({"samples": True}, "evaluations.prompts.sampling: 'samples' is a number, found true"),
        (3, "evaluations.prompts.sampling: keys and values expected, such as 'name: ...', found 3"),
    ],
)
def test_a_wrong_draw_names_its_key(raw, sampling, problem):
    raw["evaluations"]["prompts"]["sampling"] = sampling
    with pytest.raises(ConfigError) as caught:
        load.load(raw)
    assert problem in str(caught.value)


def test_the_report_says_how_a_text_was_drawn(work):
    RECIPES["prompts"]["sampling"] = None
    order = work.order()
    shown = page.prompts(gather.gather(order))
    assert list(shown) == RECIPES["prompts"]["prompts"]
    sampling = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "samples": 2, "seed": 3}
    order["recipe"]["evaluations"]["prompts"] = RECIPES["prompts"] | {"sampling": sampling}
    for name in dict(work.made):
        path = work.folder / f"evaluations/{name}/prompts/items.jsonl"
        item = json.loads(path.read_text())
        path.write_text("".join(json.dumps(item | {"sample": number}) + "\n" for number in range(2)))
    first, second = page.prompts(gather.gather(order))
    how = "temperature 0.8, the 50 likeliest tokens, top-p 0.9, seed 3]"
    assert first.endswith(f" [sample 1, {how}") and second.endswith(f" [sample 2, {how}")
