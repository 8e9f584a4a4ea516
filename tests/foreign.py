"""Small checkpoints in GPTQ and AWQ format, packed bit by bit from the public descriptions of the formats."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

OPT = Path(__file__).parent.parent / "assets/models/opt-2m"
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that each value of a word of AWQ GEMM belongs to, lowest bits first."""


def words(values: np.ndarray, bits: int, order=None) -> np.ndarray:
    """Pack the last axis into 32-bit words, lowest bits first; (rows, n) -> (rows, n * bits / 32)."""
    if order:
        values = values.reshape(len(values), -1, len(order))[:, :, list(order)].reshape(len(values), -1)
    stream = (values[:, :, None] >> np.arange(bits) & 1).reshape(len(values), -1).astype(np.uint8)
    return np.packbits(stream, axis=1, bitorder="little").view(np.int32)


class Layer:
    """A quantized layer, drawn around a weight: codes (outputs, inputs), zeros and scales (outputs, groups)."""

    def __init__(self, weight: np.ndarray, bits: int, size: int, symmetric: bool, order: np.ndarray | None, draw):
        outputs, inputs = weight.shape
        self.bits, self.g_idx = bits, np.arange(inputs, dtype=np.int32) // size if order is None else order
        groups = int(self.g_idx.max()) + 1
        largest = np.stack([np.abs(weight[:, self.g_idx == group]).max(1) for group in range(groups)], 1)
        self.scales = (2 * largest / (2**bits - 1)).astype(np.float16) + np.float16(1e-4)
        middle = np.full((outputs, groups), 2 ** (bits - 1))
        self.zeros = middle if symmetric else draw.integers(0, 2**bits, (outputs, groups))
        spread = weight / self.scales[:, self.g_idx] + self.zeros[:, self.g_idx]
        self.codes = np.clip(np.round(spread.astype(np.float32)), 0, 2**bits - 1).astype(np.int64)

    def dense(self, dtype=np.float32) -> np.ndarray:
        """Return (code - zero) * scale, (outputs, inputs), in a dtype."""
        steps = self.codes - self.zeros[:, self.g_idx]
        return steps.astype(dtype) * self.scales[:, self.g_idx].astype(dtype)

    def gptq(self, version: str) -> dict[str, np.ndarray]:
        """Return the tensors of AutoGPTQ and GPTQModel; version 1 stores each zero point minus one."""
        zeros = (self.zeros - 1) % 2**self.bits if version == "gptq" else self.zeros
        return {
            "qweight": words(self.codes, self.bits).T.copy(),
            "qzeros": words(zeros.T, self.bits),
            "scales": self.scales.T.copy(),
            "g_idx": self.g_idx,
        }

    def awq(self) -> dict[str, np.ndarray]:
        """Return the tensors of AutoAWQ, version GEMM."""
        return {
            "qweight": words(self.codes.T, 4, INTERLEAVED),
            "qzeros": words(self.zeros.T, 4, INTERLEAVED),
            "scales": self.scales.T.copy(),
        }


def checkpoint(
    folder: Path,
    settings: dict,
    source: Path = OPT,
    order: bool = False,
    layer_bits=lambda name: None,
    head: bool = False,
    keep: str = "none",
) -> dict[str, Layer]:
    """Write a model whose linear layers are quantized, as `settings` (quantization_config) say; return its layers.

    Args:
        order: groups in the order of activations, drawn at random.
        layer_bits: bits of a layer by its name, if they are others.
        head: quantize the output embedding, too, which is then not tied.
        keep: part of the names of layers that stay dense.
    """
    draw, layers = np.random.default_rng(0), {}
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if head:
        name = next(name for name in tensors if "embed_tokens" in name)
        tensors["lm_head.weight"] = tensors[name].copy()
    for name in [
        name for name in tensors if (name.endswith(".weight") and "layers." in name) or name == "lm_head.weight"
    ]:
        layer, weight = name.removesuffix(".weight"), tensors[name].astype(np.float32)
        if weight.ndim != 2 or keep in name:
            continue
        bits = layer_bits(layer) or settings.get("bits", 4)
        size = settings.get("group_size", 128)
        size = weight.shape[1] if size == -1 else size
        symmetric = settings.get("sym", True) if settings["quant_method"] == "gptq" else not settings.get("zero_point")
        groups = draw.permutation(weight.shape[1]).astype(np.int32) // size if order else None
        layers[layer] = Layer(weight, bits, size, symmetric, groups, draw)
        version = settings.get("checkpoint_format", "gptq")
        parts = layers[layer].awq() if settings["quant_method"] == "awq" else layers[layer].gptq(version)
        del tensors[name]
        tensors |= {f"{layer}.{part}": value for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    config |= {"tie_word_embeddings": False} if head else {}
    (folder / "config.json").write_text(json.dumps(config))
    return layers
