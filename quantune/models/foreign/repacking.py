"""Repack a checkpoint in GPTQ or AWQ format, exactly, into `pack-quantized` of compressed-tensors.

Codes, zero points and scales keep their values, so (code - zero) * scale is the same number in any dtype. GPTQ packs
the inputs of a row as densely as `pack-quantized` does: its words are only transposed. Groups that are ranges of inputs
keep their order of inputs; if the width is no multiple of the group size, they are written as smaller groups that
repeat a scale. Groups out of order keep the group of each input (`act_order`). Memory holds one tensor at a time.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from compressed_tensors import __version__ as library
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

from quantune.core.errors import QuantuneError
from quantune.models import act_order, stored, tensor_files
from quantune.models.foreign import dialects
from quantune.models.foreign.dialects import Dialect, Layer
from quantune.models.inspection import build
from quantune.models.stored import StoredTensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Outputs of the eight values in a word of AWQ's version GEMM, lowest bits first."""


@dataclass(frozen=True)
class Scheme:
    """How the layers of one kind are packed."""

    bits: int
    group_size: int | None
    symmetric: bool
    ordered: bool


@dataclass(frozen=True)
class Repacked:
    """A layer with its scheme."""

    layer: Layer
    scheme: Scheme
    groups: torch.Tensor | None
    """Group in the source of each group that is written; None: the same. With `ordered`: the group of each input."""


def repack(files: list[Path], folder: Path, dialect: Dialect) -> tuple[list[Path], dict[str, Any]]:
    """Write config.json and the weights of a checkpoint in GPTQ or AWQ format as `pack-quantized`.

    Args:
        files: the files of the model, safetensors and config.json among them.
        folder: an empty folder for the written files.
        dialect: from `dialects.read`.

    Returns:
        All files of the repacked model: the written ones, and the others of the model that it needs; and facts.

    Raises:
        QuantuneError: if a layer is not one of the model's, or its tensors do not fit.
    """
    config = stored.read_json(next(path for path in files if path.name == stored.CONFIG))
    tensors = stored.tensors(files)
    layers = dialects.layers(tensors, dialect)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    (folder / stored.CONFIG).write_text(json.dumps(plain))
    model = build(folder)
    names = _module_names(model, layers)
    repacked = {name: _planned(name, layer, dialect) for name, layer in layers.items()}
    settings = _settings(model, {names[name]: layer.scheme for name, layer in repacked.items()})
    (folder / stored.CONFIG).write_text(json.dumps(plain | {"quantization_config": settings}, indent=2) + "\n")
    biases = _extra_biases(model, names, tensors)
    by_file: dict[str, dict[str, tuple[str, Iterable[int]]]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer in repacked and part == "qweight":
            by_file.setdefault(tensor.file.name, {}).update(_described(layer, repacked[layer]))
        elif not (layer in repacked and part in dialects.PARTS) and name not in biases:
            by_file.setdefault(tensor.file.name, {})[name] = tensor.dtype, tensor.shape
    for file, described in by_file.items():
        tensor_files.write(folder / file, described, lambda name: _content(name, tensors, repacked, dialect))
    if stored.SINGLE not in by_file:
        tensor_files.index(folder, by_file)
    kept = dialects.without_settings(path.name for path in files if path.suffix != ".safetensors")
    others = [path for path in files if path.name in kept and path.name not in (stored.CONFIG, stored.INDEX)]
    return [*others, *sorted(folder.iterdir())], _facts(repacked, dialect, biases)


def _module_names(model: torch.nn.Module, layers: dict[str, Layer]) -> dict[str, str]:
    """Return layer in the checkpoint -> name of its module; raises QuantuneError if that is no linear layer."""
    modules, names = dict(model.named_modules()), {}
    for name, layer in layers.items():
        candidates = (name, f"{model.base_model_prefix}.{name}")
        known = next((item for item in candidates if type(modules.get(item)) is torch.nn.Linear), None)
        where = layer.tensors["qweight"].file.name
        if known is None:
            raise QuantuneError(
                f"{where}: '{name}' is quantized, and the model in config.json (model_type {model.config.model_type}) "
                "has no linear layer of that name (experts are fused into one parameter); allowed: linear layers; "
                f"{dialects.REMEDY}"
            )
        module = modules[known]
        if (module.in_features, module.out_features) != (layer.inputs, layer.outputs):
            raise QuantuneError(
                f"{where}: '{name}' has {layer.inputs} inputs and {layer.outputs} outputs, and in config.json "
                f"{module.in_features} and {module.out_features}; take config.json and *.safetensors from the same "
                "model"
            )
        if module is model.get_output_embeddings() and model.config.tie_word_embeddings:
            raise QuantuneError(
                f"{where}: '{name}', the output embedding, is quantized, and 'tie_word_embeddings' in config.json is "
                f"true; allowed: false; {dialects.REMEDY}"
            )
        names[name] = known
    return names


def _planned(name: str, layer: Layer, dialect: Dialect) -> Repacked:
    """Return a layer with the scheme that expresses it; raises QuantuneError if there is none."""
    middle = 2 ** (layer.bits - 1)
    symmetric = dialect.symmetric and bool((_zeros(layer, dialect) == middle).all())
    count, size, groups = layer.tensors["scales"].shape[0], layer.group_size, None
    if "g_idx" in layer.tensors:
        groups = tensor_files.values(layer.tensors["g_idx"])
        if groups.min() < 0 or groups.max() >= count:
            raise QuantuneError(
                f"{layer.tensors['g_idx'].file.name}: '{name}.g_idx' names the group {int(groups.max())}; allowed: 0 "
                f"to {count - 1}; {stored.AGAIN}"
            )
    elif layer.inputs % size:
        groups = torch.arange(layer.inputs) // size
    block = gcd(size, layer.inputs)
    if groups is not None:
        ranges = groups.view(-1, block)
        if bool((ranges != ranges[:, :1]).any()):
            if layer.inputs % size:
                raise QuantuneError(
                    f"{layer.tensors['qweight'].file.name}: '{name}' has groups of {size} in the order of activations, "
                    f"and {layer.inputs} inputs, which {size} does not divide; allowed: a divisor of the inputs; "
                    f"{dialects.REMEDY}"
                )
            return Repacked(layer, Scheme(layer.bits, size, symmetric, True), groups)
        groups = ranges[:, 0]
        if torch.equal(groups, torch.arange(count, dtype=groups.dtype)):
            groups = None
    return Repacked(layer, Scheme(layer.bits, None if block == layer.inputs else block, symmetric, False), groups)


def _settings(model: torch.nn.Module, schemes: dict[str, Scheme]) -> dict[str, Any]:
    """Return the `quantization_config` of compressed-tensors; `schemes` is name of a module -> scheme."""
    kinds = list(dict.fromkeys(schemes.values()))
    dense = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in schemes
    ]
    groups = {}
    for number, kind in enumerate(kinds):
        targets = ["Linear"] if len(kinds) == 1 else [name for name, scheme in schemes.items() if scheme == kind]
        weights = QuantizationArgs(
            num_bits=kind.bits,
            symmetric=kind.symmetric,
            strategy="group" if kind.group_size else "channel",
            group_size=kind.group_size,
        )
        groups[f"group_{number}"] = QuantizationScheme(targets=targets, weights=weights)
    content = QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=dense
    ).model_dump(mode="json")
    for number, kind in enumerate(kinds):
        if kind.ordered:
            content["config_groups"][f"group_{number}"]["weights"]["actorder"] = act_order.ORDERED[0]
    return content | {"version": library}


def _extra_biases(
    model: torch.nn.Module, names: dict[str, str], tensors: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Return the biases of quantized layers that the model does not have, all zero: early AutoGPTQ stored them.

    Raises:
        QuantuneError: if one is not zero.
    """
    extra = {}
    for layer, module in names.items():
        bias = tensors.get(f"{layer}.bias")
        if bias is not None and model.get_submodule(module).bias is None:
            if tensor_files.values(bias).any():
                raise QuantuneError(
                    f"{bias.file.name}: '{layer}.bias' is not zero, and the model in config.json has no such bias; "
                    "take config.json and *.safetensors from the same model"
                )
            extra[f"{layer}.bias"] = bias
    return extra


def _described(name: str, repacked: Repacked) -> dict[str, tuple[str, list[int]]]:
    """Return name -> data type and shape of the tensors of a repacked layer."""
    layer, scheme = repacked.layer, repacked.scheme
    groups = layer.inputs // scheme.group_size if scheme.group_size else 1
    described = {
        "weight_packed": ("I32", [layer.outputs, -(-layer.inputs * layer.bits // 32)]),
        "weight_scale": (layer.tensors["scales"].dtype, [layer.outputs, groups]),
        "weight_shape": ("I64", [2]),
    }
    if not scheme.symmetric:
        described["weight_zero_point"] = ("I32", [-(-layer.outputs * layer.bits // 32), groups])
    if scheme.ordered:
        described[act_order.GROUPS] = ("I32", [layer.inputs])
    return {f"{name}.{part}": entry for part, entry in described.items()}


def _content(
    name: str, tensors: dict[str, StoredTensor], repacked: dict[str, Repacked], dialect: Dialect
) -> Iterable[Any]:
    """Return the bytes of a tensor of the repacked checkpoint."""
    if name in tensors:
        return tensor_files.pieces(tensors[name])
    layer, _, part = name.rpartition(".")
    return [tensor_files.array(_part(part, repacked[layer], dialect))]


def _part(part: str, repacked: Repacked, dialect: Dialect) -> torch.Tensor:
    """Return a tensor of a repacked layer."""
    layer, scheme = repacked.layer, repacked.scheme
    if part == "weight_shape":
        return torch.tensor([layer.outputs, layer.inputs])
    if part == act_order.GROUPS:
        return repacked.groups
    if part == "weight_packed":
        words = tensor_files.values(layer.tensors["qweight"])
        return words.t() if dialect.method == "gptq" else _packed_along_inputs(words)
    values = tensor_files.values(layer.tensors["scales"]) if part == "weight_scale" else _zeros(layer, dialect)
    if repacked.groups is not None and not scheme.ordered:
        values = values[repacked.groups.long()]
    if part == "weight_scale":
        return values.t()
    return pack_to_int32((values.short() - 2 ** (layer.bits - 1)).char().t(), layer.bits, packed_dim=0)


def _zeros(layer: Layer, dialect: Dialect) -> torch.Tensor:
    """Return the zero points of a layer, (groups, outputs), uint8."""
    words, bits = tensor_files.values(layer.tensors["qzeros"]), layer.bits
    if dialect.method == "awq":
        return _awq_values(words)
    codes = unpack_from_int32(words, bits, (words.shape[0], layer.outputs)).short() + 2 ** (bits - 1)
    if dialect.version == "gptq":
        codes = codes + 1 & 2**bits - 1
    return codes.to(torch.uint8)


def _awq_values(words: torch.Tensor) -> torch.Tensor:
    """Return the 4-bit values in words of AWQ, (rows, words) -> (rows, 8 * words), uint8, in the order of outputs."""
    octets = words.contiguous().view(torch.uint8).view(*words.shape, 4)  # little-endian, as on every platform of torch
    values = torch.stack([octets & 15, octets >> 4], dim=-1).flatten(2)
    return values[..., torch.tensor(AWQ_ORDER).argsort()].flatten(1)


def _packed_along_inputs(words: torch.Tensor) -> torch.Tensor:
    """Return the words of `pack-quantized`, (outputs, inputs / 8), of AWQ's (inputs, outputs / 8)."""
    codes = _awq_values(words).t()
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 8))
    return (codes[:, ::2] | codes[:, 1::2] << 4).contiguous().view(torch.int32)


def _facts(repacked: dict[str, Repacked], dialect: Dialect, biases: dict[str, StoredTensor]) -> dict[str, Any]:
    """Return the number of layers, the bits per weight, and the source format, for the provenance."""
    weights, bits = 0, 0
    for item in repacked.values():
        layer, scheme = item.layer, item.scheme
        groups = layer.outputs * (layer.inputs // scheme.group_size if scheme.group_size else 1)
        weights += layer.inputs * layer.outputs
        bits += layer.inputs * layer.outputs * layer.bits + groups * (16 + (0 if scheme.symmetric else layer.bits))
        bits += 32 * layer.inputs if scheme.ordered else 0
    facts = dialect.facts() | {"ordered_layers": sum(item.scheme.ordered for item in repacked.values())}
    if biases:
        facts["zero_biases_left_out"] = len(biases)
    return {"layers_quantized": len(repacked), "bits_per_weight": round(bits / weights, 4), "repacked": facts}
