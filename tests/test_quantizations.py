"""Each quantization method against its definition, and the checks that must catch a broken checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantune.core.errors import QuantuneError
from quantune.models import loading, probes
from quantune.quantizations import methods

PARENT = Path(__file__).parent.parent / "assets/models/opt-2m"
METHODS = {recipe.model_fields["method"].annotation.__args__[0]: recipe for recipe in methods()}
LAYER = "model.decoder.layers.0.fc2"
RTN = [
    {"bits": 2, "group_size": 32},
    {"bits": 3, "group_size": 64},
    {"bits": 4, "group_size": 128},
    {"bits": 8, "group_size": None},
    {"bits": 2, "group_size": 32, "symmetric": False},
    {"bits": 3, "group_size": None, "symmetric": False},
    {"bits": 4, "group_size": 32, "symmetric": False},
    {"bits": 8, "group_size": 64, "symmetric": False},
]
BITSANDBYTES = [
    {"method": "int8"},
    {"method": "fp4"},
    {"method": "nf4"},
    {"method": "nf4", "double_quantization": True},
]


def make(folder: Path, **keys) -> tuple:
    recipe = METHODS[keys["method"]](**keys)
    facts = recipe.quantize(PARENT, folder)
    return recipe, facts | recipe.check(PARENT, folder)


def weight(folder: Path) -> torch.Tensor:
    model = loading.model([folder], "float32")
    model(torch.tensor([[2, 3]]))  # packed layers unpack at the first forward pass
    return model.get_submodule(LAYER).weight.detach().double()


def nearest(original: torch.Tensor, bits: int, group_size: int | None, symmetric: bool) -> torch.Tensor:
    """Round to nearest in float64, from the definition: the grid spans the group, zero is on the grid."""
    groups = original.double().reshape(original.shape[0], -1, group_size or original.shape[1])
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) * 2 / (2**bits - 1)
        codes = (groups / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (codes * scale).reshape(original.shape)
    scale = (high - low) / (2**bits - 1)
    zero = (-(2 ** (bits - 1)) - low / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = (groups / scale + zero).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return ((codes - zero) * scale).reshape(original.shape)


@pytest.mark.parametrize("keys", RTN, ids=str)
def test_rtn_is_the_nearest_point_of_the_grid(tmp_path, keys):
    _, facts = make(tmp_path, method="rtn", **keys)
    original, found = weight(PARENT), weight(tmp_path)
    bits, size = keys["bits"], keys["group_size"] or original.shape[1]
    expected = nearest(original, bits, keys["group_size"], keys.get("symmetric", True))
    # Scales are stored in 16 bits, so each grid point may move by its value times 2**-11, and midpoints may tip over.
    slack = 2**-11 * original.abs().max()
    assert ((found - original).abs() <= (expected - original).abs() + slack).all()
    for group in found.reshape(-1, size)[:200]:
        assert len(group.unique()) <= 2**bits
    assert facts["layers_quantized"] == 24
    overhead = 0 if keys.get("symmetric", True) else keys["bits"]
    if keys["group_size"]:
        assert facts["bits_per_weight"] == keys["bits"] + (16 + overhead) / keys["group_size"]


@pytest.mark.parametrize("keys", BITSANDBYTES, ids=str)
def test_bitsandbytes_stays_near_the_original(tmp_path, keys):
    _, facts = make(tmp_path, **keys)
    original = weight(PARENT)
    tensors = load_file(tmp_path / "model.safetensors")
    if keys["method"] == "int8":
        found = tensors[f"{LAYER}.weight"].double() * tensors[f"{LAYER}.SCB"].double()[:, None] / 127
        assert (found - original).abs().max() <= (original.abs().amax(1) / 127 * 0.51).max()
        assert facts["bits_per_weight"] < 8.3
    else:
        import bitsandbytes

        layer = loading.model([tmp_path], "float32").get_submodule(LAYER)
        found = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
        # 16 quantiles of a normal distribution are about 9 % from its values, 16 floating-point numbers about 13 %
        assert 0.05 < (found - original).norm() / original.norm() < (0.11 if keys["method"] == "nf4" else 0.15)
        assert facts["bits_per_weight"] < 4.53


def test_double_quantization_stores_fewer_bits(tmp_path):
    (tmp_path / "single").mkdir()
    (tmp_path / "double").mkdir()
    _, single = make(tmp_path / "single", method="nf4")
    _, double = make(tmp_path / "double", method="nf4", double_quantization=True)
    assert double["bits_per_weight"] < single["bits_per_weight"] - 0.1


def test_what_is_stored_at_16_bits_stays_at_16_bits(tmp_path):
    make(tmp_path, method="rtn", bits=4)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"torch.float16", "torch.int32", "torch.int64"}
    original = load_file(PARENT / "model.safetensors")
    for name in ("model.decoder.embed_tokens.weight", f"{LAYER}.bias"):
        assert torch.equal(tensors[name], original[name])


def drop(tensors, name):
    del tensors[name]


def poison(tensors, name):
    tensors[name].view(-1)[0] = torch.nan


def shorten(tensors, name):
    tensors[name] = tensors[name][:-1].contiguous()


def retype(tensors, name):
    tensors[name] = tensors[name].to(torch.int64)


@pytest.mark.parametrize(
    ("method", "damage", "part", "message"),
    [
        ("rtn", drop, "weight_packed", "'weight_packed' is missing"),
        ("rtn", poison, "weight_scale", "NaN or infinity"),
        ("rtn", shorten, "weight_packed", "has shape"),
        ("rtn", retype, "weight_packed", "is int64, not int32"),
        ("nf4", drop, "weight.absmax", "'weight.absmax' is missing"),
        ("nf4", poison, "weight.absmax", "NaN or infinity"),
        ("int8", poison, "SCB", "NaN or infinity"),
        ("int8", retype, "weight", "is int64, not int8"),
    ],
)
def test_the_structural_check_names_the_broken_layer(tmp_path, method, damage, part, message):
    recipe, _ = make(tmp_path, method=method)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors, f"{LAYER}.{part}")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match=message) as error:
        recipe.check(PARENT, tmp_path)
    assert LAYER in str(error.value)


def test_an_unquantized_layer_is_found(tmp_path):
    recipe, _ = make(tmp_path, method="rtn")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{LAYER}.weight"] = torch.zeros(128, 512)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match="still holds its full-precision weight"):
        recipe.check(PARENT, tmp_path)


def test_a_changed_bit_is_no_exact_reload(tmp_path):
    make(tmp_path, method="rtn")
    expected = probes.probe_logits(loading.model([tmp_path], "float32"))
    probes.require_identical_reload(expected, tmp_path, "float32")
    changed = tmp_path / "changed"
    shutil.copytree(tmp_path, changed, ignore=shutil.ignore_patterns("changed"))
    tensors = load_file(changed / "model.safetensors")
    tensors[f"{LAYER}.weight_packed"].view(-1)[0] ^= 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match="does not reload to the same model"):
        probes.require_identical_reload(expected, changed, "float32")
