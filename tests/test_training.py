"""Training: the loss in chunks, float32 weights in a half-precision model, a loss that is not finite."""

import math

import numpy
import pytest
import torch

from quantune.core.errors import QuantuneError
from quantune.data import text
from quantune.data.batches import IGNORED
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss, precision
from quantune.models import loading
from tests.conftest import OPT

KEYS = {"method": "lora", "dataset": "any", "rank": 4, "target_modules": "all-linear", "validation_split": None}


@pytest.fixture(scope="module")
def tokens() -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(3, 12000, (8, 48))


def gradients(model) -> torch.Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.requires_grad])


@pytest.mark.parametrize("chunk", [2**26, 12288 * 7, 1], ids=["one chunk", "seven rows", "one row"])
def test_the_loss_in_chunks_is_the_models_own(tokens, monkeypatch, chunk):
    """The same loss and gradient, with labels that do not count; afterwards the model gives logits again."""
    monkeypatch.setattr(loss, "LOSS_CHUNK", chunk)
    model = LoRA(**KEYS, steps=1).prepare(loading.model([OPT], "float32"), 0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    ids = torch.from_numpy(tokens[:2])
    labels = ids.clone()
    labels[0, :20] = IGNORED
    own = model(input_ids=ids, labels=labels)
    own.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    with loss.fused(model):
        chunked = model(input_ids=ids, labels=labels)
        (3 * chunked.loss).backward()
    assert chunked.logits.shape[-1] == model.config.hidden_size
    assert float(chunked.loss) == pytest.approx(float(own.loss), rel=1e-6)
    assert (gradients(model) / 3 - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(model(input_ids=ids).logits, own.logits)


def test_models_that_change_their_logits_keep_their_own_loss(tokens):
    model = loading.model([OPT], "float32")
    ids = torch.from_numpy(tokens[:2])
    for change in (
        lambda: setattr(model.config, "final_logit_softcapping", 30.0),
        lambda: model.lm_head.requires_grad_(),
    ):
        model.requires_grad_(False)
        model.config.final_logit_softcapping = None
        change()
        with loss.fused(model):
            assert model(input_ids=ids, labels=ids).logits.shape[-1] == model.config.vocab_size


def test_float32_adapters_in_a_bfloat16_model_learn_as_in_float32(tokens, tmp_path):
    """Within 0.05 nats of float32 training at each of 6 steps; the adapter stays float32."""
    curves = {}
    for dtype in ("float32", "bfloat16"):
        recipe = LoRA(**KEYS, steps=6, batch_size=2, learning_rate=6e-3, precision=dtype, evaluate_every=1)
        model = recipe.prepare(loading.model([OPT], dtype), 0)
        with loss.fused(model):
            loop.train(model, recipe, 0, text.Blocks(tokens), None, tmp_path, tmp_path)
        curves[dtype] = numpy.loadtxt(tmp_path / "curves.csv", delimiter=",", skiprows=2, usecols=3)
        trained = [value for value in model.parameters() if value.requires_grad]
        assert {value.dtype for value in trained} == {torch.float32}
    assert curves["float32"][-1] < curves["float32"][0] - 0.3
    assert numpy.abs(curves["float32"] - curves["bfloat16"]).max() < 0.05


def test_masters_compute_in_the_dtype_of_their_input():
    layer = torch.nn.Linear(3, 2)
    precision.keep_masters(torch.nn.ModuleList([layer]))
    states = torch.ones(1, 3, dtype=torch.bfloat16)
    layer(states).float().sum().backward()
    assert layer(states).dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32


def test_a_loss_that_is_not_finite_names_its_step(tokens, tmp_path):
    class Broken(text.Blocks):
        def batch(self, examples):
            self.count = getattr(self, "count", 0) + 1
            if self.count == 3:
                model.get_input_embeddings().weight.data[:] = math.nan
            return super().batch(examples)

    recipe = LoRA(**KEYS, steps=9, batch_size=2)
    model = recipe.prepare(loading.model([OPT], "float32"), 0)
    with pytest.raises(QuantuneError, match="the loss is nan at step 3; lower 'learning_rate'"):
        loop.train(model, recipe, 0, Broken(tokens), None, tmp_path, tmp_path)
