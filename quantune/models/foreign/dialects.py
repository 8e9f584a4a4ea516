"""Checkpoints in GPTQ and AWQ format, as AutoGPTQ, GPTQModel and AutoAWQ write them: read and checked without torch.

A layer (inputs I, outputs O, groups G, b bits) is stored transposed, packed into 32-bit words, lowest bits first:

- GPTQ: qweight (I·b/32, O) packed along I, qzeros (G, O·b/32) packed along O, scales (G, O), and g_idx (I), the group
  of each input, which is out of order after quantizing in the order of activations (`desc_act`). Version 1 of the
  format stores each zero point minus one, modulo 2^b; version 2 (`gptq_v2`) stores the zero point itself.
- AWQ, version GEMM, 4 bits: qweight (I, O/8) and qzeros (G, O/8), both packed along O. A word holds outputs 0, 2, 4, 6,
  1, 3, 5, 7 of its eight.

The weight of a layer is (code - zero) * scale in both. `quantune.models.foreign.repacking` writes it in the packed
format.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantune.core.errors import QuantuneError, listed
from quantune.models.stored import StoredTensor

METHODS = ("gptq", "awq")
"""`quant_method` of the formats that this module knows."""
BITS = (2, 3, 4, 8)
GPTQ_FORMATS = ("gptq", "gptq_v2")
"""Versions of the GPTQ format; both names are values of `checkpoint_format`."""
SETTINGS = ("quantize_config.json", "quant_config.json")
"""Files in which AutoGPTQ and AutoAWQ repeat the settings; a repacked checkpoint has none of them."""
PARTS = ("qweight", "qzeros", "scales", "g_idx")
SCALES = ("F16", "BF16", "F32")
REMEDY = "give the original model, and quantize it with a step of 'quantizations'"


@dataclass(frozen=True)
class Dialect:
    """How the quantized layers of a checkpoint are stored."""

    method: str
    """gptq or awq."""
    bits: int
    group_size: int | None
    """Inputs of a row that share one scale; None: all of a row."""
    symmetric: bool
    """Whether the zero points are meant to be the middle of the grid; they are stored in any case."""
    ordered: bool
    """Whether the layers were quantized in the order of activations, so that a group is no range of inputs."""
    version: str
    """gptq or gptq_v2, which differ in zero points; gemm for AWQ."""
    mixed: bool = False
    """Whether layers may have other bits or groups (`dynamic` of GPTQModel)."""
    writer: str | None = None
    """The program that quantized it, such as gptqmodel:1.4.0, if config.json says so."""

    def facts(self) -> dict[str, Any]:
        """Return the source format, for the provenance."""
        return {"format": self.method if self.version == self.method else f"{self.method} ({self.version})"} | (
            {"writer": self.writer} if self.writer else {}
        )


@dataclass(frozen=True)
class Layer:
    """A quantized layer, from the headers of its tensors."""

    inputs: int
    outputs: int
    bits: int
    group_size: int
    tensors: dict[str, StoredTensor]
    """Tensor by part: qweight, qzeros, scales and, if it is stored, g_idx."""


def read(settings: dict[str, Any]) -> Dialect | None:
    """Return the dialect that `quantization_config` in config.json names; None if its method is another.

    Raises:
        QuantuneError: if the dialect is not supported, with the key and the allowed values.
    """
    method = settings.get("quant_method")
    if method not in METHODS:
        return None
    bits, size = settings.get("bits", 4), settings.get("group_size", 128)
    allowed, version = (BITS, _gptq_version(settings)) if method == "gptq" else ((4,), _awq_version(settings))
    if type(bits) is not int or bits not in allowed:
        raise _unsupported("bits", bits, listed(map(str, allowed)), method)
    if not (type(size) is int and (size == -1 or 0 < size <= 2**20)):
        raise _unsupported("group_size", size, "a number above 0, or -1 for one group in each row", method)
    for key in ("sym", "desc_act", "zero_point"):
        if settings.get(key) not in (None, True, False):
            raise _unsupported(key, settings[key], "true or false", method)
    if (packed := settings.get("pack_dtype", "int32")) not in ("int32", "torch.int32"):
        raise _unsupported("pack_dtype", packed, "int32", method)
    symmetric = settings.get("sym", True) is not False if method == "gptq" else settings.get("zero_point") is False
    ordered, mixed = method == "gptq" and bool(settings.get("desc_act")), bool(settings.get("dynamic"))
    return Dialect(
        method, bits, None if size == -1 else size, symmetric, ordered, version, mixed, _writer(settings, method)
    )


def _gptq_version(settings: dict[str, Any]) -> str:
    version = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if settings.get("is_marlin_format"):
        version = "marlin"
    if version not in GPTQ_FORMATS:
        raise _unsupported("checkpoint_format", version, listed(GPTQ_FORMATS), "gptq")
    return version


def _awq_version(settings: dict[str, Any]) -> str:
    key = next((key for key in ("version", "checkpoint_format", "format") if settings.get(key)), "version")
    version = settings.get(key, "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise _unsupported(key, version, "gemm", "awq")
    return "gemm"


def _writer(settings: dict[str, Any], method: str) -> str | None:
    """Return the program that config.json names, if it is a plain text."""
    meta = settings.get("meta")
    writer = meta.get("quantizer") if isinstance(meta, dict) else settings.get("backend")
    writer = writer[0] if isinstance(writer, list) and writer else writer
    return writer if isinstance(writer, str) and re.fullmatch(r"[\w.:+ -]{1,60}", writer) else None


def _unsupported(key: str, value: Any, allowed: str, method: str) -> QuantuneError:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return QuantuneError(
        f"config.json: 'quantization_config' ({method}) has '{key}' {shown}; allowed: {allowed}; {REMEDY}"
    )


def layers(tensors: dict[str, StoredTensor], dialect: Dialect) -> dict[str, Layer]:
    """Return name -> quantized layer of a checkpoint.

    Raises:
        QuantuneError: naming a tensor that is missing, belongs to no layer, or does not fit the others.
    """
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part in PARTS:
            parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise QuantuneError(
            f"config.json: 'quantization_config' says {dialect.method}, and the weights hold no tensor '*.qweight'; "
            "take config.json and *.safetensors from the same model"
        )
    ordered = {name: {part: parts[name][part] for part in PARTS if part in parts[name]} for name in sorted(parts)}
    return {name: _layer(name, group, dialect) for name, group in ordered.items()}


def _layer(name: str, parts: dict[str, StoredTensor], dialect: Dialect) -> Layer:
    """Return a layer from its tensors; raises QuantuneError if they do not fit each other and the dialect."""
    needed = ("qweight", "qzeros", "scales", *(("g_idx",) if dialect.ordered else ()))
    file = next(iter(parts.values())).file.name
    if missing := [part for part in needed if part not in parts]:
        held = f"'{name}.{next(iter(parts))}' is there"
        also = " ('desc_act' is true)" if missing == ["g_idx"] else ""
        if "qweight" in missing and "scales" in parts and len(parts) == 1:
            also = " (AutoAWQ stores such scales for an activation, which is not supported)"
        raise QuantuneError(f"{file}: {held}, and '{name}.{missing[0]}' is missing{also}; {REMEDY}")
    for part, tensor in parts.items():
        kinds = SCALES if part == "scales" else ("I32",)
        dimensions = 1 if part == "g_idx" else 2
        if tensor.dtype not in kinds or len(tensor.shape) != dimensions or not all(tensor.shape):
            shape = f"{tensor.dtype} {list(tensor.shape)}"
            raise QuantuneError(
                f"{tensor.file.name}: '{name}.{part}' is {shape}; allowed: {listed(kinds)} of {dimensions} dimensions, "
                f"as the format {dialect.method} has; {REMEDY}"
            )
    layer = (_gptq_layer if dialect.method == "gptq" else _awq_layer)(parts, dialect)
    _require_shapes(name, layer, dialect)
    return layer


def _gptq_layer(parts: dict[str, StoredTensor], dialect: Dialect) -> Layer:
    (words, outputs), bits = parts["qweight"].shape, dialect.bits
    if dialect.mixed and "g_idx" in parts:
        bits = 32 * words // parts["g_idx"].shape[0]
    inputs = 32 * words // bits if bits else 0
    return Layer(inputs, outputs, bits, _group_size(inputs, parts["scales"].shape[0], dialect), parts)


def _awq_layer(parts: dict[str, StoredTensor], dialect: Dialect) -> Layer:
    inputs, words = parts["qweight"].shape
    outputs = 32 * words // dialect.bits
    return Layer(inputs, outputs, dialect.bits, _group_size(inputs, parts["scales"].shape[0], dialect), parts)


def _group_size(inputs: int, groups: int, dialect: Dialect) -> int:
    size = dialect.group_size or inputs
    if dialect.mixed and -(-inputs // max(size, 1)) != groups and inputs % groups == 0:
        return inputs // groups
    return size


def _require_shapes(name: str, layer: Layer, dialect: Dialect) -> None:
    """Raise QuantuneError if the shape of a tensor is not the one that follows from bits, groups and widths."""
    bits, allowed = layer.bits, BITS if dialect.method == "gptq" else (4,)
    if bits not in allowed:
        raise QuantuneError(
            f"{layer.tensors['qweight'].file.name}: '{name}' has {bits} bits ('g_idx' and 'qweight' together); "
            f"allowed: {listed(map(str, allowed))}; {REMEDY}"
        )
    groups = -(-layer.inputs // layer.group_size)
    words = -(-layer.outputs * bits // 32)
    along_inputs = dialect.method == "gptq"
    expected = {
        "qweight": (layer.inputs * bits // 32, layer.outputs) if along_inputs else (layer.inputs, words),
        "qzeros": (groups, words),
        "scales": (groups, layer.outputs),
        "g_idx": (layer.inputs,),
    }
    for part, tensor in layer.tensors.items():
        if tensor.shape != expected[part]:
            size = layer.group_size if dialect.group_size else "one for each row"
            raise QuantuneError(
                f"{tensor.file.name}: '{name}.{part}' has the shape {list(tensor.shape)}; allowed: "
                f"{list(expected[part])}, for {bits} bits and groups of {size}, as 'quantization_config' in "
                "config.json states; take config.json and *.safetensors from the same model"
            )


def require_whole(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> None:
    """Raise QuantuneError if the tensors of a checkpoint in GPTQ or AWQ format are incomplete or do not fit."""
    settings = config.get("quantization_config")
    if isinstance(settings, dict) and (dialect := read(settings)):
        layers(tensors, dialect)


def without_settings(names: Iterable[str]) -> list[str]:
    """Return the names of files without those that repeat the settings of a quantization."""
    return [name for name in names if name not in SETTINGS]
