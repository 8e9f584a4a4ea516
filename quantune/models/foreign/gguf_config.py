"""The config.json of a model in a GGUF file, from its metadata and tensors: Llama, Mistral, Qwen2 and Qwen3.

The keys are those of llama.cpp's `gguf-py/gguf/constants.py`. A shape that is not expressed exactly is refused.
"""

import math
import struct
from typing import Any

from quantune.core.errors import QuantuneError, listed
from quantune.models.foreign.gguf_files import PLAIN, Header

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""`general.architecture` -> class of transformers. llama.cpp calls Mistral models llama, too."""
REMEDY = "give the original model in Hugging Face layout"
ORIGINAL_POSITIONS = 8192  # of Llama 3, to which the factors of its rotary embeddings refer
FACTORS = "rope_freqs.weight"
"""Tensor with the factors of Llama 3.1's rotary embeddings, one for each pair of values of a head."""


def config(header: Header, factors: bytes | None = None) -> dict[str, Any]:
    """Return the content of a config.json.

    Args:
        header: of the file.
        factors: the bytes of the tensor `FACTORS`, if there is one; None: it is not read yet, and taken as right.

    Raises:
        QuantuneError: if the architecture is not supported, or a key is missing or has no counterpart.
    """
    if (parts := header.metadata.get("split.count", 1)) != 1:
        problem = f"is one of {parts!r:.20} parts; allowed: a whole file"
        raise QuantuneError(f"{header.name}: {problem}; join the parts with llama.cpp's `llama-gguf-split --merge`")
    family = header.metadata.get("general.architecture")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise _wrong(header, "general.architecture", family, listed(ARCHITECTURES))
    shape = _shape(header, family)
    rope = _rope(header, family, shape["head_dim"], factors)
    tokens = {
        f"{name}_token_id": header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
    }
    window = header.metadata.get(f"{family}.attention.sliding_window")
    sliding = family == "llama" and isinstance(window, int) and 0 < window < shape["max_position_embeddings"]
    return {
        "architectures": ["MistralForCausalLM" if sliding else ARCHITECTURES[family]],
        "model_type": "mistral" if sliding else family,
        **shape,
        **({"sliding_window": window} if sliding else {}),
        **({"attention_bias": True} if family == "llama" and "blk.0.attn_q.bias" in header.tensors else {}),
        **rope,
        **tokens,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": dtype(header),
    }


def dtype(header: Header) -> str:
    """Return the dtype of the dense matrices: that of the file, or float16 if it holds quantized ones."""
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return PLAIN[next(iter(kinds))] if len(kinds) == 1 and kinds <= PLAIN.keys() else "float16"


def _shape(header: Header, family: str) -> dict[str, Any]:
    heads = _count(header, f"{family}.attention.head_count")
    width, key_heads = _count(header, f"{family}.embedding_length"), f"{family}.attention.head_count_kv"
    head = _count(header, f"{family}.attention.key_length", width // max(heads, 1))
    if (other := _count(header, f"{family}.attention.value_length", head)) != head:
        raise _wrong(header, f"{family}.attention.value_length", other, f"{head}, as 'key_length'")
    if experts := header.metadata.get(f"{family}.expert_count"):
        raise _wrong(header, f"{family}.expert_count", experts, "0: no mixture of experts")
    embeddings = header.tensors.get("token_embd.weight")
    if embeddings is None or embeddings.shape[1:] != (width,):
        raise QuantuneError(
            f"{header.name}: the tensor 'token_embd.weight' is missing, or has no {width} columns, as "
            f"'{family}.embedding_length' states; {REMEDY}"
        )
    return {
        "vocab_size": embeddings.shape[0],
        "hidden_size": width,
        "intermediate_size": _count(header, f"{family}.feed_forward_length"),
        "num_hidden_layers": _count(header, f"{family}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _count(header, key_heads, heads),
        "head_dim": head,
        "max_position_embeddings": _count(header, f"{family}.context_length"),
        "rms_norm_eps": _number(header, f"{family}.attention.layer_norm_rms_epsilon"),
    }


def _count(header: Header, key: str, default: int | None = None) -> int:
    """Return a number of the metadata; a list of the same number for all layers counts as that number."""
    value = header.metadata.get(key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    if type(value) is not int or value <= 0:
        raise _wrong(header, key, value, "a whole number above 0, the same in all layers")
    return value


def _rope(header: Header, family: str, head: int, factors: bytes | None) -> dict[str, Any]:
    """Return the keys of rotary embeddings."""
    base = _number(header, f"{family}.rope.freq_base", 10000.0)
    turned = header.metadata.get(f"{family}.rope.dimension_count", head)
    if turned != head:
        raise _wrong(header, f"{family}.rope.dimension_count", turned, f"{head}, all values of a head")
    keys = {"rope_theta": base}
    factor = f"{family}.rope.scaling.factor"
    old = f"{family}.rope.scale_linear"  # of files of 2023
    factor = old if old in header.metadata and factor not in header.metadata else factor
    stretched = header.metadata.get(factor, 1.0) not in (0.0, 1.0)
    kind = header.metadata.get(
        f"{family}.rope.scaling.type", "linear" if stretched else "none"
    )  # as llama.cpp reads it
    if FACTORS in header.tensors:
        if kind != "none":
            raise _wrong(header, f"{family}.rope.scaling.type", kind, f"none, beside the tensor '{FACTORS}'")
        return keys | {"rope_scaling": _llama3(header, head, base, factors)}
    if kind == "none":
        return keys
    if kind not in ("linear", "yarn"):
        raise _wrong(header, f"{family}.rope.scaling.type", kind, "none, linear, yarn")
    scaling = {"rope_type": kind, "factor": _number(header, factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = _count(header, f"{family}.rope.scaling.original_context_length")
    return keys | {"rope_scaling": scaling}


def _llama3(header: Header, head: int, base: float, factors: bytes | None) -> dict[str, Any]:
    """Return the settings of Llama 3.1's rotary embeddings that make the stored factors.

    The formula is that of transformers (`modeling_rope_utils`, llama3): wave lengths above `low` are stretched by the
    factor, below `high` they stay, and between them both are mixed.
    """
    tensor = header.tensors[FACTORS]
    if tensor.kind != "F32" or tensor.shape != (head // 2,):
        raise _wrong(header, FACTORS, f"{tensor.kind} {list(tensor.shape)}", f"F32 [{head // 2}]")
    settings = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
    }
    if factors is None:
        return settings
    values = struct.unpack(f"<{head // 2}f", factors)
    if not 1 <= max(values) <= 1e6:
        raise _wrong(header, FACTORS, f"{max(values):g}", "factors from 1 on")
    settings["factor"] = stretch = _shortest(max(values))
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    for number, value in enumerate(values):
        turns = ORIGINAL_POSITIONS / (2 * math.pi * base ** (2 * number / head))
        share = min(max((turns - low) / (high - low), 0), 1)
        expected = 1 / ((1 - share) / stretch + share)
        if not math.isclose(value, expected, rel_tol=1e-4):
            raise _wrong(header, FACTORS, f"{value:g} at {number}", f"{expected:g}, as in Llama 3.1")
    return settings


def _number(header: Header, key: str, default: float | None = None) -> float:
    value = header.metadata.get(key, default)
    if not (isinstance(value, float) and 0 < value < 1e12):
        raise _wrong(header, key, value, "a number above 0")
    return _shortest(value)


def _shortest(value: float) -> float:
    """Return the decimal number with the fewest digits that has this value in float32: 1e-05, not 9.99999974e-06."""
    single = struct.pack("<f", value)
    return next(
        short
        for short in (float(f"{value:.{digits}g}") for digits in range(1, 18))
        if struct.pack("<f", short) == single
    )


def _wrong(header: Header, key: str, value: Any, allowed: str) -> QuantuneError:
    shown = "missing" if value is None else f"{value!r:.60}"
    return QuantuneError(f"{header.name}: '{key}' is {shown}; allowed: {allowed}; {REMEDY}")
