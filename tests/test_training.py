"""Training: the loss in chunks, float32 weights in a half-precision model, a loss that is not finite."""

import math
import weakref
from contextlib import nullcontext

import numpy
import pytest
import torch

from quantune.core.errors import QuantuneError
from quantune.data import text
from quantune.data.batches import IGNORED
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import checkpointing, loop, loss, low_rank, precision
from quantune.models import loading
from quantune.quantizations.bitsandbytes import Int8, NormalFloat4
from quantune.quantizations.rtn import RoundToNearest
from tests.conftest import OPT

KEYS = {"method": "lora", "dataset": "any", "rank": 4, "target_modules": "all-linear", "validation_split": None}


@pytest.fixture(scope="module")
def tokens() -> numpy.ndarray:
    return numpy.random.default_rng(0).integers(3, 12000, (8, 48))


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict:
    """Kind -> checkpoint of opt-2m: dense, and quantized by bitsandbytes and by RTN."""
    folders = {"dense": OPT}
    recipes = {"nf4": NormalFloat4(method="nf4"), "int8": Int8(method="int8")}
    for name, recipe in (recipes | {"packed": RoundToNearest(method="rtn", group_size=64)}).items():
        folders[name] = tmp_path_factory.mktemp(name)
        recipe.quantize(OPT, folders[name], None, 0)
    return folders


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


@pytest.mark.parametrize("base", ["dense", "nf4", "packed"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_adapted_layers_in_fewer_passes_compute_as_pefts(tokens, bases, base, dropout):
    """The same logits and gradients, with and without dropout, on dense and packed weights; in evaluation too."""
    gradient, logits = {}, {}
    for own in (False, True):
        recipe = LoRA(**KEYS, steps=1, dropout=dropout)
        model = recipe.prepare(loading.model([bases[base]], "float32"), 0)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.02)
        if own:
            low_rank.fuse(model)
            ours = [part for part in model.modules() if "forward" in vars(part)]
            assert len(ours) == 6 * model.config.num_hidden_layers
        ids = torch.from_numpy(tokens[:2])
        logits[own] = model.eval()(input_ids=ids).logits
        torch.manual_seed(1)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gradient[own] = gradients(model)
    assert torch.allclose(logits[False], logits[True], atol=1e-4)
    assert (gradient[False] - gradient[True]).norm() / gradient[False].norm() < 1e-5
    assert gradient[True].count_nonzero() > 0.9 * gradient[True].numel()


def test_variants_of_lora_stay_pefts_own(tokens):
    """DoRA and adapters with a bias are not x Wᵀ + s (x Aᵀ) Bᵀ."""
    from peft import LoraConfig, get_peft_model

    for keys in ({"use_dora": True}, {"lora_bias": True}):
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **keys)
        model = get_peft_model(loading.model([OPT], "float32"), config)
        low_rank.fuse(model)
        assert not [part for part in model.modules() if "forward" in vars(part)]


def test_an_attention_that_the_device_lacks_is_one_error(tokens):
    recipe = LoRA(**KEYS, steps=1, attention="cudnn")
    model = recipe.prepare(loading.model([OPT], "float32"), 0)
    with pytest.raises(QuantuneError, match="attention: auto"), precision.attending(recipe):
        model(input_ids=torch.from_numpy(tokens[:2]))
    outputs = []
    for kind in ("auto", "math"):
        with precision.attending(LoRA(**KEYS, steps=1, attention=kind)), torch.no_grad():
            outputs.append(model(input_ids=torch.from_numpy(tokens[:2])).logits)
    assert torch.allclose(*outputs, atol=1e-4)


def test_offloaded_inputs_give_the_same_gradients(tokens):
    """Bit for bit, through checkpointed layers with dropout; a tensor that several layers save is copied once."""
    results = []
    for smallest in (None, 1):
        recipe = LoRA(**KEYS, steps=1, dropout=0.2, gradient_checkpointing="offload")
        model = recipe.prepare(loading.model([OPT], "float32"), 0).train()
        checkpointing.enable(model, recipe)
        hooks, ids = checkpointing.Offloaded(smallest) if smallest else nullcontext(), torch.from_numpy(tokens[:2])
        torch.manual_seed(1)
        with hooks:
            value = model(input_ids=ids, labels=ids).loss
        value.backward()
        results.append(gradients(model))
    assert torch.equal(*results)
    assert len({id(copy) for _, _, copy in hooks.copies.values()}) >= model.config.num_hidden_layers

    states, weight = torch.ones(3, 5), torch.ones(5, requires_grad=True)
    with (once := checkpointing.Offloaded(1)):
        first, second = states * weight, states * weight
    states.mul_(2)  # the copies are of before
    with once:
        third = states * weight
    assert len(once.copies) == 1
    (first + second + third).sum().backward()
    assert weight.grad.tolist() == [3 + 3 + 6] * 5


def test_int8_layers_keep_no_input_and_the_gradients_of_bitsandbytes(tokens, bases):
    """Checkpointing frees the input of each layer when the next one begins; the gradient has the same bits."""
    recipe, ids = LoRA(**KEYS, steps=1, gradient_checkpointing=True), torch.from_numpy(tokens[:2])
    results, kept = [], []
    for own in (False, True):
        model = recipe.prepare(loading.model([bases["int8"]], "float32"), 0).train()
        if own:
            precision.prepare(model, recipe)
        checkpointing.enable(model, recipe)
        inputs = []

        def watch(_, states, inputs=inputs):
            inputs.append(weakref.ref(states[0]))

        for name, layer in model.named_modules():
            if name.endswith("fc2.base_layer"):
                layer.register_forward_pre_hook(watch)
        value = model(input_ids=ids, labels=ids).loss
        kept.append(sum(reference() is not None for reference in inputs))
        value.backward()
        results.append(gradients(model))
    assert kept == [len(inputs) // 2, 0]
    assert torch.equal(*results)
