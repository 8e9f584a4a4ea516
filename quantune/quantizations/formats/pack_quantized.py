"""Save a model in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load."""

from pathlib import Path

import torch
from compressed_tensors import ModelCompressor
from compressed_tensors.compressors import compress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    initialize_module_for_quantization,
)
from tqdm import tqdm

from quantune.models import loading
from quantune.models.checkpoints import quantizable, save_model
from quantune.models.eight_bit_linear import keep_compressed
from quantune.models.offloading import move, stream
from quantune.models.probes import probe_logits, require_identical_reload
from quantune.quantizations.arithmetic.grids import Fitted, Grid, fit


def pack(layer: torch.nn.Linear, fitted: Fitted, grid: Grid, dtype: torch.dtype) -> None:
    """Replace a linear layer's weights by codes, scales and zero points, in main memory.

    Args:
        layer: the layer, changed in place.
        fitted: its grids and the weights on them.
        grid: bits, groups and symmetry.
        dtype: of the scales and of the bias.
    """
    layer.weight.data = fitted.weight
    initialize_module_for_quantization(layer, scheme(grid))
    layer.weight_scale.data = fitted.scale
    if not grid.symmetric:
        layer.weight_zero_point.data = fitted.zero.to(layer.weight_zero_point.dtype)
    compress_module(layer)
    move([layer], "cpu", dtype)


def save(model, grid: Grid, parent: Path, folder: Path) -> None:
    """Pack the layers of a model that are not packed yet, to nearest, one at a time; save it and check the saved model.

    Args:
        model: the model, in main memory but for its embeddings; weights that are not packed are stored in the parent's
            dtype.
        grid: bits, groups and symmetry.
        parent: the checkpoint that was quantized.
        folder: the folder to save into.
    """
    stored = loading.stored_dtype(parent)
    layers = [layer for layer in quantizable(model).values() if not hasattr(layer, "weight_packed")]
    for layer in tqdm(layers, desc="rounding", unit="layer", disable=len(layers) < 2):
        move([layer], loading.device(), torch.float32)
        pack(layer, fit(layer.weight.data, grid), grid, stored)
    write(model, parent, folder)


def write(model, parent: Path, folder: Path) -> None:
    """Save a model whose layers are compressed, and check the saved model.

    Args:
        model: the model, in main memory but for its embeddings; weights that are not packed are stored in the parent's
            dtype.
        parent: the checkpoint that was quantized.
        folder: the folder to save into.
    """
    stored = loading.stored_dtype(parent)
    move(model.modules(), "cpu", stored)
    model.config.dtype = stored
    compressor = ModelCompressor.from_pretrained_model(model)
    save_model(model, parent, folder)
    compressor.update_config(folder)
    keep_compressed(model)
    logits = probe_logits(stream(model, loading.device(), torch.float32))
    require_identical_reload(logits, folder, "float32")


def scheme(grid: Grid) -> QuantizationScheme:
    """Return the scheme of compressed-tensors for weights on this kind of grid."""
    strategy = "group" if grid.group_size else "channel"
    weights = QuantizationArgs(
        num_bits=grid.bits, symmetric=grid.symmetric, strategy=strategy, group_size=grid.group_size
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)
