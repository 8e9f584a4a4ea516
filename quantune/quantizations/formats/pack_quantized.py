"""Save a model in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load."""

from pathlib import Path
from typing import Any

import torch
from compressed_tensors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)

from quantune.models import loading
from quantune.models.checkpoints import cast_saved, quantizable, save_model
from quantune.models.probes import probe_logits, require_identical_reload
from quantune.quantizations.arithmetic.grids import Grid, fit


def save(model, grids: dict[str, Any], grid: Grid, parent: Path, folder: Path) -> None:
    """Pack a model and save it, then check that it reloads to identical logits.

    Args:
        model: the model; layers that are not packed keep their weights, stored in the parent's dtype.
        grids: layer name -> `grids.Fitted`; emptied, so that no weights are in memory twice.
        grid: bits, groups and symmetry.
        parent: the checkpoint that was quantized.
        folder: the folder to save into.
    """
    stored = loading.stored_dtype(parent)
    head = model.get_output_embeddings()
    kept = [name for name, module in model.named_modules() if module is head]
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme(grid)}, ignore=kept))
    for name, layer in quantizable(model).items():
        fitted = grids.pop(name, None) or fit(layer.weight.data, grid)  # layers outside the stack: to nearest
        layer.weight.data = fitted.weight.to(layer.weight.device)
        layer.weight_scale.data = fitted.scale.to(layer.weight.device)
        if not grid.symmetric:
            layer.weight_zero_point.data = fitted.zero.to(layer.weight.device, layer.weight_zero_point.dtype)
        layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    cast_saved(model, stored)
    model.config.dtype = stored
    save_model(model, parent, folder)
    compressor.update_config(folder)
    cast_saved(model, torch.float32)  # the first forward pass unpacks the weights
    require_identical_reload(probe_logits(model), folder, "float32")


def scheme(grid: Grid) -> QuantizationScheme:
    """Return the scheme of compressed-tensors for weights on this kind of grid."""
    strategy = "group" if grid.group_size else "channel"
    weights = QuantizationArgs(
        num_bits=grid.bits, symmetric=grid.symmetric, strategy=strategy, group_size=grid.group_size
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)
