"""Several data sets in one training, and the first rows of each: shares, order, batches, resuming."""

import numpy
import pytest
import torch

from quantune.core.errors import ConfigError, QuantuneError
from quantune.data import examples, mixing, packing, speech
from quantune.data.batches import IGNORED
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss
from quantune.models import loading
from quantune.planning import load
from quantune.planning.plan import Plan
from tests.conftest import OPT
from tests.test_packing import TALKS, texts, tiny, with_own_template, written

SIZES = {"main": 70, "general": 1000, "news": 5}


@pytest.mark.parametrize(
    ("shares", "until", "expected"),
    [
        ({"general": 0.3}, "first", {"main": 70, "general": 30}),
        ({"general": 0.3}, "all", {"main": 2334, "general": 1000}),
        ({"general": 0.3}, 50, {"main": 35, "general": 15}),
        ({"general": 0.3, "news": 0.1}, "first", {"main": 30, "general": 15, "news": 5}),
        ({"news": 0.5}, "all", {"main": 70, "news": 70}),
    ],
)
def test_the_examples_of_an_epoch(shares, until, expected):
    assert mixing.counts({name: SIZES[name] for name in expected}, shares, until) == expected


def test_a_share_of_less_than_one_example_is_refused():
    with pytest.raises(QuantuneError, match=r"of 71 examples a share of 0.001 of 'general' is less than one; raise"):
        mixing.counts({"main": 71, "general": 1000}, {"general": 0.001}, 71)


tokenizer = pytest.fixture(with_own_template, name="tokenizer")


@pytest.fixture
def folders(tmp_path, tokenizer):
    """Conversations, and texts."""
    for name in ("chat", "general"):
        (tmp_path / name).mkdir()
    words = [f"Entry {number}: wind from the north, and the lamp was lit at six." for number in range(9)]
    return written(tmp_path / "chat", tokenizer, TALKS * 3), texts(tmp_path / "general", tokenizer, *words)


def mixture(folders, packed, share=0.4, until="first", seed=0, length=64, **more) -> mixing.Mixture:
    parts = [examples.read(folder, "train", OPT, length, packing=packed, **more) for folder in folders]
    return mixing.Mixture(dict(zip(("chat", "general"), parts, strict=True)), {"general": share}, until, seed)


@pytest.mark.parametrize("packed", [False, True, "separate"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_loss_of_a_mixed_batch_is_that_of_its_examples(folders, packed, name):
    """Padded examples, packed ones beside blocks, and packed ones: each label counts once."""
    model, data = tiny(name), mixture(folders, packed, share=0.5, length=48)
    packing.settle(model, [data])
    everything = list(range(len(data)))
    with torch.no_grad(), loss.fused(model):
        alone = [model(**data.batch([number])).loss.item() for number in everything]
        expected = numpy.average(alone, weights=[data.labels([number]) for number in everything])
        batch = data.batch(everything)
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
    assert data.labels(everything) == int((batch["labels"][:, 1:] != IGNORED).sum())
    assert data.tokens(everything) == sum(data.lengths())
    assert {0, 1} == set(data.owners.tolist())


def test_an_epoch_follows_from_the_seed(folders):
    one, same, other = (mixture(folders, False, until=8, seed=seed) for seed in (1, 1, 2))
    assert one.counts == {"chat": 5, "general": 3}
    contents = [[data.content(number) for number in range(len(data))] for data in (one, same, other)]
    assert contents[0] == contents[1] != contents[2]
    repeated = mixture(folders, False, share=0.9, until="all")
    numbers = repeated.numbers[repeated.owners == 1]
    assert repeated.counts == {"chat": 9, "general": 81} and (numpy.bincount(numbers) == 9).all()


@pytest.mark.parametrize("packed", [True, False])
def test_a_killed_training_on_a_mixture_ends_with_the_same_bits(folders, tmp_path, packed):
    recipe = LoRA(method="lora", dataset="chat", mix={"general": 0.4}, steps=6, length=64, batch_size=2, save_every=2)

    def train(folder: str, kill_at: int | None = None) -> list[torch.Tensor]:
        data, calls = mixture(folders, packed), []
        batch = data.batch

        def killed(numbers):
            calls.append(numbers)
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            return batch(numbers)

        data.batch = killed
        model = loading.model([OPT], "float32")
        model.config.use_cache = False
        model = recipe.prepare(model, 0)
        packing.settle(model, [data])
        for name in (folder, f"{folder}-scratch"):
            (tmp_path / name).mkdir(exist_ok=True)
        loop.train(model, recipe, 0, data, None, tmp_path / folder, tmp_path / f"{folder}-scratch")
        return [value.detach().clone() for value in model.parameters() if value.requires_grad]

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("killed", kill_at=6)
    assert all(map(torch.equal, whole, train("killed")))


@pytest.mark.parametrize("packed", [False, True, "separate"])
def test_only_the_first_documents(folders, packed):
    few = examples.read(folders[1], "train", OPT, 16, packing=packed, most=3)
    all_of_them = examples.read(folders[1], "train", OPT, 16, packing=packed)
    assert 0 < len(few) < len(all_of_them)
    if not packed:
        assert len(few) == 3 and few.content(2) == all_of_them.content(2)
    assert len(examples.read(folders[0], "train", OPT, 64, packing=False, most=2)) == 2


def test_clips_of_two_data_sets(prepared, processor):
    folder, split = prepared, "test"
    parts = {
        name: speech.Examples(folder, split, "transcribe", processor, 448, most=most) for name, most in MOST.items()
    }
    data = mixing.Mixture(parts, {"two": 0.5}, "first", 0)
    batch = data.batch([0, 1])
    assert data.counts == {"one": 2, "two": 2}
    assert batch["input_features"].shape[0] == 2 == batch["labels"].shape[0]
    assert data.labels([0, 1]) == int((batch["labels"] != IGNORED).sum())


MOST = {"one": 3, "two": 2}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"mix": {"newz": 0.3}}, "finetunings.lora.mix.newz: 'newz' is not a dataset; allowed: .* did you mean 'news'"),
        ({"mix": {"news": 1.2}}, "finetunings.lora.mix.news"),
        ({"mix": {"harbour": 0.3}}, "'mix' names other datasets; 'harbour' is 'dataset'"),
        ({"mix_until": "all"}, "'mix_until' belongs to 'mix'"),
        ({"mix": {"news": 0.3}, "mix_until": "last"}, "finetunings.lora.mix_until"),
        (
            {"mix": {"news": 0.3}, "train_split": "validation"},
            "mix.news: it has no split 'validation', the",
        ),
        ({"max_samples": 0}, "finetunings.lora.max_samples"),
    ],
)
def test_wrong_mixtures_name_their_key(raw, keys, problem):
    raw["finetunings"]["lora"] |= keys
    with pytest.raises(ConfigError, match=problem):
        load.load(raw)


def test_a_mixture_is_made_from_all_its_data_and_the_defaults_change_no_digest(raw):
    before = Plan(load.load(raw)).checkpoint("opt+nf4+lora")
    assert {"mix", "mix_until", "max_samples", "loss_on"}.isdisjoint(before.recipe) and set(before.parents) == {
        "parent",
        "data",
    }
    raw["finetunings"]["lora"]["mix"] = {"news": 0.3}
    plan = Plan(load.load(raw))
    made = plan.checkpoint("opt+nf4+lora")
    assert [item.place.names[0] for item in made.parents["mixed"]] == ["news"] and made.recipe["mix"] == {"news": 0.3}
    assert {item.place.names[0] for item in plan.all_prepared()} == {"harbour", "news"}
