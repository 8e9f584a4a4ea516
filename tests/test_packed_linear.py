"""Layers that stay packed compute what the dense ones do, forward and backward, and keep nothing dense."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from quantune.finetunings.lora import LoRA
from quantune.models import loading, probes
from quantune.models.meters import tensor_bytes
from quantune.models.packed_linear import PackedLinear, dense_parameters, keep_packed
from quantune.quantizations.rtn import RoundToNearest

PARENT = Path(__file__).parent.parent / "assets/models/opt-2m"
KEYS = [
    {"bits": 4, "group_size": 32},
    {"bits": 3, "group_size": 64, "symmetric": False},
    {"bits": 2, "group_size": None},
    {"bits": 8, "group_size": 128, "symmetric": False},
]


@pytest.fixture(params=KEYS, ids=str)
def quantized(request, tmp_path):
    RoundToNearest(method="rtn", **request.param).quantize(PARENT, tmp_path)
    return tmp_path


def dense_model(folder: Path, dtype: torch.dtype):
    """Load as transformers does, unpacked."""
    options = {"dtype": dtype, "quantization_config": CompressedTensorsConfig(dequantize=True)}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_packed_layers_compute_the_same_to_the_bit(quantized, dtype):
    dense, packed = dense_model(quantized, getattr(torch, dtype)), loading.model([quantized], dtype)
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 24
    tokens = probes.probe_tokens(packed.config.vocab_size)
    with torch.no_grad():
        assert torch.equal(packed(input_ids=tokens).logits, dense(input_ids=tokens).logits)
    assert torch.equal(packed(input_ids=tokens).logits, dense(input_ids=tokens).logits)
    weights = dense_parameters(packed) + sum(item.numel() for item in packed.parameters())
    assert weights == loading.model([PARENT], "float32").num_parameters()


def test_what_is_in_memory_after_a_forward_pass_is_what_is_on_disk(quantized):
    model = loading.model([quantized], "float16")
    before = tensor_bytes(model)
    with torch.no_grad():
        model(input_ids=probes.probe_tokens(12288))
    written = sum(path.stat().st_size for path in quantized.glob("*.safetensors"))
    assert tensor_bytes(model) == before == pytest.approx(written, rel=0.02)


def require_one_graph(layer, rows: int):
    """Compile a layer as one graph, and compare its results."""
    states = torch.randn(rows, 1, layer.in_features, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(lambda states: layer(states), fullgraph=True, dynamic=False, backend="aot_eager")(
            states
        )
        assert torch.allclose(compiled, layer(states), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_compiled_layer_is_one_graph_with_the_same_result(quantized, rows):
    layer = loading.model([quantized], "float32").model.decoder.layers[0].fc1
    require_one_graph(layer, rows)


def test_an_adapter_gets_the_same_gradients(quantized):
    recipe = LoRA(method="lora", dataset="any", steps=1, target_modules="all-linear")
    dense = recipe.prepare(dense_model(quantized, torch.float32), seed=0)
    packed = recipe.prepare(loading.model([quantized], "float32"), seed=0)
    tokens = probes.probe_tokens(12288)
    gradients = []
    for model in (dense, packed):
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(value, 0.01)
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 48
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, rtol=1e-3, atol=1e-5), name


def test_nothing_dense_is_kept_for_the_backward_pass(tmp_path):
    RoundToNearest(method="rtn", bits=4).quantize(PARENT, tmp_path)
    model = loading.model([tmp_path], "float32")
    model = LoRA(method="lora", dataset="any", steps=1, target_modules=["fc1", "fc2"]).prepare(model, seed=0)
    saved = []

    def pack(tensor):
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.tensor([[2, 3, 4]])).logits.sum()
    assert 128 * 512 * 4 not in saved, "no dense fc1 or fc2 among the tensors saved"
    stored = sum(item.numel() * item.element_size() for item in model.buffers() if item.dtype == torch.uint8)
    assert stored == 4 * (4 * 128 * 128 + 2 * 128 * 512) / 2, "half a byte for each of the weights of four layers"


def test_a_full_precision_model_is_left_alone():
    model = loading.model([PARENT], "float32")
    assert keep_packed(model) == 0 and dense_parameters(model) == 0
