"""What the methods with uniform integer grids share: the recipe of the grid, and packed checkpoints.

Checkpoints are in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quantune.quantizations import Quantization


class Packed(Quantization):
    """Uniform integer grids, packed into 32-bit words in compressed-tensors' `pack-quantized` format."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight."""
    group_size: int | None = Field(default=128, gt=0, multiple_of=4)
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row (per channel)."""
    symmetric: bool = True
    """Grid symmetric around zero (no zero points stored); false: fitted to the group's minimum and maximum."""

    @property
    def grid(self):
        """The kind of grid."""
        from quantune.grids import Grid

        return Grid(self.bits, self.group_size, self.symmetric)

    def usual_error(self) -> float:
        """The fewer bits, the larger."""
        return {2: 0.75, 3: 0.45, 4: 0.3, 8: 0.03}[self.bits]

    def misfit(self, widths: set[int]) -> str | None:
        """A group must divide every row it cuts."""
        bad = sorted(width for width in widths if self.group_size and width % self.group_size)
        if not bad:
            return None
        fits = [size for size in (256, 128, 64, 32, 16, 8, 4) if all(width % size == 0 for width in widths)]
        return (
            f".group_size: {self.group_size} does not divide the layers' input width {bad[0]}; allowed: {fits} or null"
        )

    def scheme(self):
        """Return the compressed-tensors scheme of this recipe's weights."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        strategy = "group" if self.group_size else "channel"
        weights = QuantizationArgs(
            num_bits=self.bits, symmetric=self.symmetric, strategy=strategy, group_size=self.group_size
        )
        return QuantizationScheme(targets=["Linear"], weights=weights)

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Packed words, one scale for each group, and packed zero points if the grid is not symmetric."""
        groups = columns // self.group_size if self.group_size else 1
        tensors = {
            "weight_packed": ("int32", [rows, -(-columns * self.bits // 32)]),
            "weight_scale": (None, [rows, groups]),
        }
        if not self.symmetric:
            tensors["weight_zero_point"] = ("int32", [-(-rows * self.bits // 32), groups])
        return tensors

    def check(self, parent: Path, folder: Path) -> dict[str, Any]:
        """Check packed words, scales and zero points of every layer: present, of the right type and shape, finite."""
        from quantune.checkpoints import Tensors, finite, linear_layers, require

        tensors, layers = Tensors(folder), linear_layers(parent)
        for name, (rows, columns) in layers.items():
            require(f"{name}.weight" not in tensors, name, "still holds its full-precision weight")
            for part, (dtype, shape) in self.layer_tensors(rows, columns).items():
                key = f"{name}.{part}"
                require(key in tensors, name, f"'{part}' is missing")
                require(tensors.shape(key) == shape, name, f"'{part}' has shape {tensors.shape(key)}, not {shape}")
                found = str(tensors[key].dtype).removeprefix("torch.")
                require(dtype in (None, found), name, f"'{part}' is torch.{found}, not packed torch.{dtype}")
            for bad in finite(tensors, [f"{name}.weight_scale"]):
                require(False, name, f"'{bad}' holds NaN or infinity")
        return {"layers_quantized": len(layers), "bits_per_weight": self.stored_bits(layers)}

    def stored_bits(self, layers: dict[str, tuple[int, int]]) -> float:
        """Return the bits stored per quantized weight, scales (16 bits) and zero points included."""
        weights = sum(rows * columns for rows, columns in layers.values())
        grids = sum(rows * (columns // self.group_size if self.group_size else 1) for rows, columns in layers.values())
        return round(self.bits + grids * (16 + (0 if self.symmetric else self.bits)) / weights, 4)


def _heads(model) -> list[str]:
    """Return the name of the output embedding."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is head]


def save_packed(model, grids: dict[str, Any], recipe: Packed, parent: Path, folder: Path) -> None:
    """Pack a model and save it, then show that it reloads to identical logits.

    Args:
        model: the model; layers that are not packed keep their weights, stored in the parent's dtype.
        grids: layer name -> `grids.Fitted`: its weights on their grid; emptied, so that none is held twice.
        recipe: bits, groups and symmetry.
        parent: the checkpoint that was quantized.
        folder: where to save.
    """
    import torch
    from compressed_tensors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    from quantune import loading
    from quantune.checkpoints import probe_logits, quantizable, require_identical_reload, round_saved, save_model
    from quantune.grids import fit

    stored = loading.stored_dtype(parent)
    scheme = {"group_0": recipe.scheme()}
    apply_quantization_config(model, QuantizationConfig(config_groups=scheme, ignore=_heads(model)))
    for name, layer in quantizable(model).items():
        fitted = grids.pop(name, None) or fit(layer.weight.data, recipe.grid)  # outside the layers: to nearest
        layer.weight.data = fitted.weight.to(layer.weight.device)
        layer.weight_scale.data = fitted.scale.to(layer.weight.device)
        if not recipe.symmetric:
            layer.weight_zero_point.data = fitted.zero.to(layer.weight.device, layer.weight_zero_point.dtype)
        layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    round_saved(model, stored)
    model.config.dtype = stored
    save_model(model, parent, folder)
    compressor.update_config(folder)
    round_saved(model, torch.float32)  # the first forward pass unpacks the weights
    require_identical_reload(probe_logits(model), folder, "float32")
