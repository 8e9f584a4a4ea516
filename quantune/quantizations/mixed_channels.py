"""Some input channels in 16 bits, the others rounded to nearest: the experiment that motivates AWQ.

Lin et al., 2023 (arXiv:2306.00978), section 3.1 and table 1: 0.1 to 1 % of the channels in 16 bits restore most of the
quality if they are chosen by their activations, and hardly any if chosen by their weights or at random.

A checkpoint holds codes for all channels, in compressed-tensors' format, and beside them the kept weights of each
layer. transformers alone loads the codes, so all channels are rounded there; it warns about the other tensors.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.quantizations.calibration import Calibrated


class MixedChannels(Calibrated):
    """Round to nearest, and keep the weights of some input channels beside the codes."""

    seeded: ClassVar[bool] = True
    requantized: ClassVar[bool] = False
    only_here: ClassVar[str] = "other programs leave out its channels in 16 bits; export an 'rtn' variant of this grid"

    method: Literal["mixed-channels"]
    """Some input channels in 16 bits, the others rounded to nearest."""
    kept: float = Field(default=0.01, gt=0, le=0.5)
    """Share of the input channels of each layer whose weights stay in 16 bits, rounded up to whole channels."""
    by: Literal["activation", "weight", "random"] = "activation"
    """How they are chosen. activation: largest mean square of the input; weight: largest norm of the weights; random:
    by the seed. Layers outside the decoder layers have no calibrated input: activation then means weight."""

    def count(self, columns: int) -> int:
        """Return the number of channels that are kept in a layer with so many inputs."""
        return math.ceil(round(self.kept * columns, 6))

    def unservable(self, widths: set[int]) -> str | None:
        """Return that vLLM does not read kept channels."""
        return self.only_here

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of six matrices of the weights' shape, float32."""
        return 4 * 6 * rows * columns

    def stored_bits(self, rows: int, columns: int) -> int:
        """Add the weights of kept channels, which have codes too, and the numbers of these channels."""
        return super().stored_bits(rows, columns) + self.count(columns) * (16 * rows + 64)

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Add the weights of kept channels, and the numbers of these channels."""
        kept = {
            "weight_kept": (None, [rows, self.count(columns)]),
            "weight_kept_columns": ("int64", [self.count(columns)]),
        }
        return super().layer_tensors(rows, columns) | kept

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize as other calibrated methods do; the seed also draws random channels."""
        import torch

        torch.manual_seed(seed)
        return super().quantize(parent, folder, data, seed)

    def fit(self, layers: dict[str, Any], gram) -> dict[str, Any]:
        """Round all columns, then put the kept ones back."""
        return {name: self.rounded(layer.weight.data, gram) for name, layer in layers.items()}

    def rounded(self, weight, gram=None):
        """Return the `grids.Fitted` of one layer, with its kept columns."""
        import torch

        from quantune.quantizations.arithmetic.grids import fit

        fitted, weight = fit(weight, self.grid), weight.float()
        importance = weight.square().sum(0) if self.by == "weight" or gram is None else gram.diagonal()
        if self.by == "random":
            importance = torch.rand(weight.shape[1]).to(weight.device)
        fitted.kept = importance.argsort(descending=True, stable=True)[: self.count(weight.shape[1])].sort().values
        fitted.weight[:, fitted.kept] = weight[:, fitted.kept]
        return fitted
