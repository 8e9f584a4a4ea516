"""Round to nearest: each weight becomes the nearest point of a uniform grid fitted to its group. No data is needed.

The baseline of the GPTQ paper (Frantar et al., 2022, arXiv:2210.17323, section 2). Done by llmcompressor's
`QuantizationModifier`; saved packed in the compressed-tensors format (`pack-quantized`), which transformers and vLLM
load.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.quantizations import Quantization


class Packed(Quantization):
    """Uniform integer grids, packed into 32-bit words in compressed-tensors' `pack-quantized` format."""

    unpacked: ClassVar[bool] = True

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight."""
    group_size: int | None = Field(default=128, gt=0, multiple_of=4)
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row (per channel)."""
    symmetric: bool = True
    """Grid symmetric around zero (no zero points stored); false: fitted to the group's minimum and maximum."""

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


class RoundToNearest(Packed):
    """Round to nearest, without data."""

    method: Literal["rtn"]
    """Round to nearest."""

    def quantize(self, parent: Path, folder: Path) -> None:
        """Round in float32; scales and the layers left alone are stored in the parent's own dtype."""
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        from quantune import loading

        model = loading.model([parent], "float32")
        modifier = QuantizationModifier(config_groups={"group_0": self.scheme()}, ignore=["lm_head"])
        oneshot(model=model, recipe=modifier)
        save_packed(model, parent, folder)


def save_packed(model, parent: Path, folder: Path) -> None:
    """Pack a quantized model and save it, then show that it reloads to identical logits."""
    from compressed_tensors import ModelCompressor

    from quantune import loading
    from quantune.checkpoints import copy_tokenizer, probe_logits, require_identical_reload

    stored = loading.stored_dtype(parent)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.to(stored)
    model.config.dtype = stored
    type(model).save_pretrained(model, folder)  # llmcompressor's wrapper around it would compress a second time
    compressor.update_config(folder)
    copy_tokenizer(parent, folder)
    model.float()  # the first forward pass unpacks the weights, as it does after loading
    require_identical_reload(probe_logits(model), folder, "float32")
