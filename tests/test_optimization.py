"""Optimization: Adafactor, smoothed labels, noise on embeddings, a floor of the learning rate, patience."""

import math

import numpy
import pytest
import torch
from pydantic import ValidationError
from transformers import WhisperConfig, WhisperForConditionalGeneration

from quantune.data import text
from quantune.data.batches import IGNORED
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss, noise, optimizers
from quantune.models import loading
from tests.conftest import OPT
from tests.test_loop import Killed

KEYS = {"method": "lora", "dataset": "any", "rank": 4, "learning_rate": 6e-3, "batch_size": 2, "evaluate_every": 2}
DRAW = numpy.random.default_rng(0)
DATA = text.Blocks(numpy.tile(DRAW.integers(3, 300, (4, 12)), 4))  # texts that repeat: there is something to learn
OTHER = text.Blocks(DRAW.integers(3, 12000, (4, 48)))  # and nothing that the other texts teach


def trained(folder, recipe, data=DATA, validation=None):
    """Train opt-2m as the stage does; return the trained weights and the facts."""
    for path in (folder, scratch := folder.with_name(f"{folder.name}-scratch")):
        path.mkdir(exist_ok=True)
    model = recipe.prepare(loading.model([OPT], "float32"), 0)
    with loss.fused(model, recipe.label_smoothing), noise.noisy(model, recipe):
        facts = loop.train(model, recipe, 0, data, validation, folder, scratch)
    return [value.detach().clone() for value in model.parameters() if value.requires_grad], facts


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "adafactor"},
        {"embedding_noise": 5.0},
        {"label_smoothing": 0.1},
        {"schedule": "cosine", "learning_rate_floor": 0.2},
        {"validation_split": "validation", "keep": "best", "patience": 1, "learning_rate": 0.05},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_the_loss_falls_and_a_killed_training_ends_with_the_same_bits(tmp_path, keys):
    recipe = LoRA(**KEYS | {"steps": 12, "save_every": 2, "validation_split": None} | keys)
    held_out = OTHER if recipe.patience else None
    plain, _ = trained(tmp_path / "plain", LoRA(**KEYS, steps=12, validation_split=None))
    whole, facts = trained(tmp_path / "whole", recipe, validation=held_out)
    assert recipe.patience or facts["train_loss"] < min(9, facts["mean_train_loss"])
    assert not all(torch.equal(one, other) for one, other in zip(whole, plain, strict=True))
    with pytest.raises(InterruptedError):
        trained(tmp_path / "cut", recipe, Killed(DATA, 3), held_out)
    again, resumed = trained(tmp_path / "cut", recipe, validation=held_out)
    assert resumed["run"]["resumed_from_step"] == 2
    assert all(torch.equal(one, other) for one, other in zip(again, whole, strict=True))
    assert facts.get("stopped_early") == resumed.get("stopped_early") == (True if recipe.patience else None)
    if recipe.patience:
        assert facts["best"]["step"] + 2 == facts["steps"] < 12


def test_smoothed_labels_are_those_of_torch():
    """The chunked loss and the models' own, with their gradients; not in evaluation mode."""
    ids = torch.from_numpy(OTHER.blocks[:2])
    labels = ids.clone()
    labels[0, :9] = IGNORED
    for scaled in (None, 30.0):
        model = loading.model([OPT], "float32")
        model.requires_grad_(False)
        model.model.decoder.layers[0].fc1.weight.requires_grad_()
        model.config.final_logit_softcapping = scaled  # a model with this key keeps its own loss
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), label_smoothing=0.2)
        expected.backward()
        weight = model.model.decoder.layers[0].fc1.weight
        slope, weight.grad = weight.grad, None
        with loss.fused(model, 0.2):
            model.train()
            value = model(input_ids=ids, labels=labels).loss
            value.backward()
            plain = model.eval()(input_ids=ids, labels=labels).loss
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        assert (weight.grad - slope).norm() / slope.norm() < 1e-4
        assert float(plain.detach()) == pytest.approx(
            float(model(input_ids=ids, labels=labels).loss.detach()), rel=1e-6
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_speech_is_the_models_own_without_all_logits(smoothing):
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes |= {f"{part}_{key}": 1 for part in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1) | {"decoder_start_token_id": 2}
    config = WhisperConfig(d_model=16, vocab_size=3000, max_source_positions=20, **sizes, **special)
    model = WhisperForConditionalGeneration(config).train()
    labels = torch.randint(3, 3000, (4, 30))
    labels[1, 12:] = IGNORED
    inputs = {"input_features": torch.randn(4, 80, 40), "labels": labels}
    model.get_output_embeddings().weight.requires_grad_(False)
    weights = [value for value in model.parameters() if value.requires_grad]
    logits = model(**inputs).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels.flatten(), label_smoothing=smoothing)
    slopes = torch.autograd.grad(expected, weights, allow_unused=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x)
    with loss.fused(model, smoothing), hooks:
        value = model(**inputs).loss
        pairs = zip(slopes, torch.autograd.grad(value, weights, allow_unused=True), strict=True)
        assert all(one is other is None or torch.allclose(one, other, atol=1e-6) for one, other in pairs)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert max(kept) < logits.numel() / 2
    assert model(**inputs).logits.shape == (4, 30, 3000), "outside, the model is as before"


def test_noise_is_as_large_as_neftune_says_and_only_in_training():
    model, recipe = loading.model([OPT], "float32"), LoRA(**KEYS, steps=1, embedding_noise=5.0)
    ids, seen = torch.from_numpy(OTHER.blocks[:2]), []
    with noise.noisy(model, recipe):
        for mode in (False, True):
            seen.append(model.train(mode).get_input_embeddings()(ids).detach())
    assert torch.equal(model.get_input_embeddings()(ids), seen[0]), "the hook is gone, and evaluation has no noise"
    change, bound = (seen[1] - seen[0]).abs(), 5 / math.sqrt(seen[0].shape[1] * seen[0].shape[2])
    assert change.max() <= bound * 1.0001 and change.mean() == pytest.approx(bound / 2, rel=0.05)


def test_a_cosine_ends_at_its_floor():
    recipe = LoRA(**KEYS, steps=10, schedule="cosine", learning_rate_floor=0.25, warmup_steps=2)
    optimizer = optimizers.build(recipe, {"weight": torch.nn.Parameter(torch.ones(2))})
    schedule, rates = optimizers.schedule(recipe, optimizer, 10), []
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0] / recipe.learning_rate)
    assert rates[1] == 1 and rates[-1] == pytest.approx(0.25) and min(rates[1:]) == rates[-1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"patience": 2}, "'patience' needs 'keep: best'"),
        ({"learning_rate_floor": 0.1}, "'learning_rate_floor' needs 'schedule: cosine', not 'linear'"),
    ],
)
def test_keys_that_need_another(keys, message):
    with pytest.raises(ValidationError, match=message):
        LoRA(**KEYS, steps=1, **keys)
