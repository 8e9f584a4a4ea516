"""Save a model in the formats `int-quantized` and `float-quantized` of compressed-tensors, which vLLM loads."""

from pathlib import Path

import torch
from compressed_tensors.compressors import compress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    initialize_module_for_quantization,
)
from tqdm import tqdm

from quantune.core.errors import QuantuneError
from quantune.models import loading
from quantune.models.checkpoints import quantizable
from quantune.models.eight_bit_linear import scales
from quantune.models.offloading import move
from quantune.quantizations.coded import EightBits
from quantune.quantizations.formats.pack_quantized import write


def pack(layer: torch.nn.Linear, recipe: EightBits, dtype: torch.dtype, largest: torch.Tensor | None = None) -> None:
    """Replace a linear layer's weights by codes and scales, in main memory.

    Args:
        layer: the layer, changed in place.
        recipe: the kind of codes, and how inputs are rounded.
        dtype: of the scales and of the bias.
        largest: the largest magnitude of the layer's inputs, one value, if they are static.
    """
    code = getattr(torch, recipe.code)
    layer.weight.data = layer.weight.data.float()
    initialize_module_for_quantization(layer, scheme(recipe))
    layer.weight_scale.data = stored_scale(scales(layer.weight.data, code), dtype)
    if recipe.inputs == "static":
        layer.input_scale.data = stored_scale(scales(largest.reshape(1), code), dtype)
    compress_module(layer)
    move([layer], "cpu", dtype)


def stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales in the dtype in which they are stored, rounded up, so that no value exceeds the largest code."""
    stored = scale.to(dtype)
    above = torch.nextafter(stored, torch.full_like(stored, torch.inf))
    return torch.where(stored.float() < scale, above, stored)


def save(model, recipe: EightBits, parent: Path, folder: Path) -> None:
    """Pack the layers of a model that are not packed yet, one at a time; save it and check the saved model.

    Args:
        model: the model, in main memory but for its embeddings; weights that are not packed are stored in the parent's
            dtype.
        recipe: the kind of codes, and how inputs are rounded.
        parent: the checkpoint that was quantized.
        folder: the folder to save into.

    Raises:
        QuantuneError: if inputs are static, and a layer is outside the layers that were calibrated.
    """
    stored = loading.stored_dtype(parent)
    layers = {name: layer for name, layer in quantizable(model).items() if not hasattr(layer, "weight_scale")}
    if layers and recipe.inputs == "static":
        raise QuantuneError(f"the inputs of '{next(iter(layers))}' are not calibrated; take dynamic activations")
    for layer in tqdm(layers.values(), desc="rounding", unit="layer", disable=len(layers) < 2):
        move([layer], loading.device(), torch.float32)
        pack(layer, recipe, stored)
    write(model, parent, folder)


def scheme(recipe: EightBits) -> QuantizationScheme:
    """Return the scheme of compressed-tensors for a recipe."""
    kind = "int" if recipe.code == "int8" else "float"
    codes = {"num_bits": 8, "type": kind, "symmetric": True}
    inputs = {
        "none": None,
        "dynamic": QuantizationArgs(strategy="token", dynamic=True, **codes),
        "static": QuantizationArgs(strategy="tensor", **codes),
    }
    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(strategy="channel", **codes),
        input_activations=inputs[recipe.inputs],
        format=f"{kind}-quantized",
    )
