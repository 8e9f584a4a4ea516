"""The tensors of a GGUF file: their names, order and encoding. One tensor is in memory at a time.

Names are those of the package `gguf`. Its format is described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy
import torch

from quantune.core.errors import QuantuneError
from quantune.models.checkpoints import Tensors
from quantune.models.loading import CONSTANTS

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""`model_type` of config.json -> architecture of llama.cpp."""
ROPE_FACTORS = "rope_freqs.weight"
TOLERATED = 0.02
"""Relative error of a tensor that no encoding here has: Q8_0 has 0.6 %, BF16 0.2 %."""
ROWS = 4096


@dataclass(frozen=True)
class Planned:
    """A tensor of the file that is to be written."""

    name: str
    shape: tuple[int, ...]
    encoding: gguf.GGMLQuantizationType
    source: str | None
    """Name of the tensor in the checkpoint; None: computed from config.json."""

    @property
    def bytes(self) -> int:
        """Its bytes in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.encoding]
        return prod(self.shape) // block * size


class Weights:
    """The tensors of a checkpoint, as llama.cpp expects them."""

    def __init__(self, checkpoint: Path, config, encoding: gguf.GGMLQuantizationType):
        """Take the folder, its configuration as transformers reads it, and the encoding of matrices."""
        self.tensors, self.config, self.encoding = Tensors(checkpoint), config, encoding
        self.names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)

    def planned(self) -> Iterator[Planned]:
        """Yield the tensors of the file; vectors stay in float32. Raises QuantuneError for an unknown tensor."""
        tied = self.config.tie_word_embeddings
        if (factors := rope_factors(self.config)) is not None:
            yield Planned(ROPE_FACTORS, tuple(factors.shape), gguf.GGMLQuantizationType.F32, None)
        for source in self.tensors.names():
            if source.endswith(CONSTANTS) or (tied and source == "lm_head.weight"):
                continue
            name = self.names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                family = self.config.model_type
                raise QuantuneError(f"llama.cpp has no tensor for '{source}' in a model of type '{family}'")
            shape = tuple(self.tensors.shape(source))
            encoding = self.encoding if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            yield Planned(name, shape, encoding, source)

    def values(self, planned: Planned) -> numpy.ndarray:
        """Return the values of a tensor in float32, in the order of llama.cpp."""
        if planned.source is None:
            return rope_factors(self.config).numpy()
        return reordered(planned.source, self.tensors[planned.source].float(), self.config).numpy()

    def encoded(self, planned: Planned) -> numpy.ndarray:
        """Return a tensor as its bytes stand in the file; raises QuantuneError if a value does not fit."""
        with numpy.errstate(over="ignore"):
            encoded = gguf.quants.quantize(self.values(planned), planned.encoding)
        if encoded.dtype == numpy.float16 and not numpy.isfinite(encoded).all():
            raise QuantuneError(
                f"'{planned.source}' has values that float16 cannot hold (above 65,504); export 'gguf-bf16'"
            )
        return numpy.ascontiguousarray(encoded)


def reordered(name: str, value: torch.Tensor, config) -> torch.Tensor:
    """Return a tensor in the order that llama.cpp expects.

    The rotary embedding of transformers pairs value i of a head with value i + d/2; that of llama.cpp's architecture
    LLAMA pairs neighbours. So the rows of its query and key projections are interleaved, head by head.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or ARCHITECTURES[config.model_type] is not gguf.MODEL_ARCH.LLAMA:
        return value
    return value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape).contiguous()


def rope_factors(config) -> torch.Tensor | None:
    """Return the divisors of the rotary frequencies of Llama 3.1, shape (head size / 2), or None for other models."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    return plain / scaled


def relative_error(path: Path, weights: Weights) -> float:
    """Return the Frobenius norm of the error of the matrices in a file over that of the matrices.

    Raises:
        QuantuneError: if a tensor of the file is another one than its source, or not finite.
    """
    stored = {item.name: item for item in gguf.GGUFReader(path).tensors}
    planned = {item.name: item for item in weights.planned()}
    if different := sorted(stored.keys() ^ planned.keys()):
        raise QuantuneError(
            f"the written file lacks '{different[0]}', or should not hold it; run the same command again"
        )
    errors, norms = 0.0, 0.0
    for name, item in planned.items():
        error, norm = squares(stored[name], weights.values(item))
        if not error <= TOLERATED**2 * norm:
            raise QuantuneError(f"'{name}' in the written file is not '{item.source}'; run the same command again")
        if len(item.shape) > 1:
            errors, norms = errors + error, norms + norm
    return (errors / norms) ** 0.5


def squares(stored: gguf.ReaderTensor, expected: numpy.ndarray) -> tuple[float, float]:
    """Return the sum of the squared errors of a stored tensor, and of its squared values; a few rows at a time."""
    error, norm = 0.0, 0.0
    for begin in range(0, len(expected), ROWS):
        rows = expected[begin : begin + ROWS]
        read = gguf.quants.dequantize(stored.data[begin : begin + ROWS], stored.tensor_type)
        error += float(numpy.square(read - rows, dtype=numpy.float64).sum())
        norm += float(numpy.square(rows, dtype=numpy.float64).sum())
    return error, norm
