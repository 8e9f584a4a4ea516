"""GPTQ: round column by column, and compensate each column's error in the columns not yet rounded.

Frantar et al., 2022 (arXiv:2210.17323), algorithm 1; with `activation_order`, columns are rounded by falling importance
and the grids are fitted before, so that checkpoints need no permutation.
"""

from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.quantizations.calibration import Calibrated


class GPTQ(Calibrated):
    """Second-order rounding on calibration data."""

    neutral: ClassVar[frozenset[str]] = Calibrated.neutral | {"true_sequential"}
    seeded: ClassVar[bool] = True
    requantized: ClassVar[bool] = True

    method: Literal["gptq"]
    """Second-order rounding: GPTQ."""
    damping: float = Field(default=0.01, gt=0, le=100)
    """Added to the Hessian's diagonal, as a share of its mean."""
    activation_order: bool = True
    """Round the columns by falling magnitude of their inputs (`desc_act`, with grids of the original groups): better
    where few inputs are much larger than the others, as in Llama-like models; false: in their original order."""
    true_sequential: bool = False
    """Within a layer, calibrate each group of linear layers on inputs that passed through the rounded ones before it
    (`true_sequential` of AutoGPTQ); about twice the time. false: on the inputs of the original layer."""

    @property
    def sequential(self) -> bool:
        """Whether the linear layers of a layer are calibrated one after another."""
        return self.true_sequential

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the larger number of bytes: of four matrices of the Hessian's shape (while it is inverted)
        with two copies of the weights; or of one factor, with nine matrices of the weights' shape.
        """
        fitted_before = 2 if self.activation_order or not self.group_size else 0
        square, weight = columns * columns, rows * columns
        return 4 * max(4 * square + (2 + fitted_before) * weight, square + (9 + fitted_before) * weight)

    def fit(self, layers: dict[str, Any], gram) -> dict[str, Any]:
        """Round the matrices as one matrix, stacked by rows."""
        import torch

        from quantune.quantizations.arithmetic.gptq import gptq

        weights = [layer.weight.data.float() for layer in layers.values()]
        fitted = gptq(torch.cat(weights), gram, self.grid, self.damping, self.activation_order)
        ends = [0, *accumulate(map(len, weights))]
        return {part: fitted.rows(slice(*rows)) for part, rows in zip(layers, pairwise(ends), strict=True)}
