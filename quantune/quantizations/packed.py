"""The base of methods with uniform integer grids: the recipe of the grid, and packed checkpoints.

Checkpoints are in the `pack-quantized` format of compressed-tensors, which transformers and vLLM load.
"""

from typing import Literal

from pydantic import Field

from quantune.core.errors import listed
from quantune.quantizations import Quantization

SERVED_BITS, SERVED_GROUPS = (4, 8), (32, 64, 128, None)
"""Bits and group sizes for which vLLM has a kernel."""


class Packed(Quantization):
    """Uniform integer grids, packed into 32-bit words in compressed-tensors' `pack-quantized` format."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits per weight."""
    group_size: int | None = Field(default=128, gt=0, le=2**16, multiple_of=4)
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row (per channel)."""
    symmetric: bool = True
    """Grid symmetric around zero (no zero points stored); false: fitted to the group's minimum and maximum."""

    @property
    def grid(self):
        """The kind of grid."""
        from quantune.quantizations.arithmetic.grids import Grid

        return Grid(self.bits, self.group_size, self.symmetric)

    def usual_error(self) -> float:
        """Return the limit of the usual error, which grows as bits become fewer."""
        return {2: 0.75, 3: 0.45, 4: 0.3, 8: 0.03}[self.bits]

    def misfit(self, widths: set[int]) -> str | None:
        """Return why groups do not fit, or None: the group size must divide the width of every row."""
        bad = sorted(width for width in widths if self.group_size and width % self.group_size)
        if not bad:
            return None
        fits = [size for size in (256, 128, 64, 32, 16, 8, 4) if all(width % size == 0 for width in widths)]
        return (
            f".group_size: {self.group_size} does not divide the layers' input width {bad[0]}; allowed: {fits} or null"
        )

    def unservable(self) -> str | None:
        """Return why vLLM has no kernel for this grid, or None (`compressed_tensors_wNa16` and `marlin_utils`)."""
        if self.bits not in SERVED_BITS:
            return f"vLLM serves {listed(SERVED_BITS)} bits, not {self.bits}; export 'safetensors'"
        if self.group_size not in SERVED_GROUPS:
            sizes = listed(size or "null" for size in SERVED_GROUPS)
            return f"vLLM serves groups of {sizes}, not {self.group_size}; export 'safetensors'"
        return None

    def stored_bits(self, rows: int, columns: int) -> int:
        """Codes, scales of 16 bits and zero points, without the padding of the last words."""
        groups = rows * (columns // self.group_size if self.group_size else 1)
        return rows * columns * self.bits + groups * (16 + (0 if self.symmetric else self.bits))

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
