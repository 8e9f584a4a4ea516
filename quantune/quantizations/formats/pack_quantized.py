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
from quantune.models.checkpoints import quantizable, save_model, untie
from quantune.models.eight_bit_linear import keep_compressed
from quantune.models.offloading import move, stream
from quantune.models.probes import probe_logits, require_identical_reload
from quantune.quantizations.arithmetic.grids import Fitted, Grid
from quantune.quantizations.packed import Packed


def pack(layer: torch.nn.Linear, fitted: Fitted, grid: Grid, dtype: torch.dtype) -> None:
    """Replace a linear layer's weights by codes, scales and zero points, in main memory.

    Args:
        layer: the layer, changed in place.
        fitted: its grids and the weights on them.
        grid: bits, groups and symmetry.
        dtype: of the scales and of the bias.
    """
    layer.weight.data = fitted.weight
    if fitted.kept is not None:
        layer.register_buffer("weight_kept", fitted.weight[:, fitted.kept])
        layer.register_buffer("weight_kept_columns", fitted.kept)
    initialize_module_for_quantization(layer, scheme(grid))
    layer.weight_scale.data = fitted.scale
    if not grid.symmetric:
        layer.weight_zero_point.data = fitted.zero.to(layer.weight_zero_point.dtype)
    compress_module(layer)
    move([layer], "cpu", dtype)


def save(model, recipe: Packed, parent: Path, folder: Path) -> None:
    """Pack the layers of a model that are not packed yet, to nearest, one at a time; save it and check the saved model.

    Args:
        model: the model, in main memory but for its embeddings; weights that are not packed are stored in the parent's
            dtype.
        recipe: gives the grid of each layer, or leaves it dense.
        parent: the checkpoint that was quantized.
        folder: the folder to save into.
    """
    stored, head = loading.stored_dtype(parent), recipe.quantizes_head()
    grids = {name: own.grid for name in quantizable(model, head) if (own := recipe.of_layer(name))}
    layers = {name: model.get_submodule(name) for name in grids}
    if head:
        untie(model)
    left = {name: layer for name, layer in layers.items() if not hasattr(layer, "weight_packed")}
    for name, layer in tqdm(left.items(), desc="rounding", unit="layer", disable=len(left) < 2):
        move([layer], loading.device(), torch.float32)
        pack(layer, recipe.of_layer(name).rounded(layer.weight.data), grids[name], stored)
    _share_schemes(layers, grids)
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
    groups = compressor.quantization_config.config_groups.values()  # layers by name first: the loader warns otherwise
    groups = sorted(groups, key=lambda group: group.targets == ["Linear"])
    compressor.quantization_config.config_groups = {f"group_{number}": group for number, group in enumerate(groups)}
    save_model(model, parent, folder)
    compressor.update_config(folder)
    keep_compressed(model)
    logits = probe_logits(stream(model, loading.device(), torch.float32))
    require_identical_reload(logits, folder, "float32")


def _share_schemes(layers: dict[str, torch.nn.Module], grids: dict[str, Grid]) -> None:
    """Give layers on one kind of grid one scheme: for all linear layers, or, with several kinds, for layers by name.

    vLLM joins query, key and value into one layer, and looks for its class before the names of its parts.
    """
    names: dict[Grid, list[str]] = {}
    for name, grid in grids.items():
        names.setdefault(grid, []).append(name)
    for grid, own in names.items():
        shared = scheme(grid, own if len(names) > 1 else None)
        for name in own:
            layers[name].quantization_scheme = shared


def scheme(grid: Grid, names: list[str] | None = None) -> QuantizationScheme:
    """Return the scheme of compressed-tensors for weights on this kind of grid, of all linear layers or by name."""
    strategy = "group" if grid.group_size else "channel"
    weights = QuantizationArgs(
        num_bits=grid.bits, symmetric=grid.symmetric, strategy=strategy, group_size=grid.group_size
    )
    return QuantizationScheme(targets=names or ["Linear"], weights=weights)
