"""GPTQ: round column by column, and compensate each column's error in the columns not yet rounded.

Frantar et al., 2022 (arXiv:2210.17323), algorithm 1; with `activation_order`, columns are rounded by falling importance
and the grids are fitted before, so that checkpoints need no permutation.
"""

from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.quantizations.calibration import Calibrated


class SecondOrder(Calibrated):
    """The base of methods that round by GPTQ."""

    neutral: ClassVar[frozenset[str]] = Calibrated.neutral | {"static_grids", "clip"}
    seeded: ClassVar[bool] = True
    requantized: ClassVar[bool] = True

    damping: float = Field(default=0.01, gt=0, le=100)
    """Added to the Hessian's diagonal, as a share of its mean."""
    activation_order: Literal[True, False, "groups"] = True
    """true: round the columns by falling magnitude of their inputs (`desc_act`, with grids of the original groups):
    better where few inputs are much larger than the others, as in Llama-like models; groups: round whole groups by the
    largest input in them, and the columns of a group by their inputs; false: in their original order."""
    static_grids: bool = False
    """Fit the grids of all groups to the original weights; always so with `activation_order: true`. false: fit each
    grid to weights that already compensate the errors of the groups before."""
    clip: bool = False
    """Clip the range of each group where that makes its rounding error, weighted by the Hessian, smaller."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the larger number of bytes: of four matrices of the Hessian's shape (while it is inverted)
        with two copies of the weights; or of one factor, with nine matrices of the weights' shape.
        """
        static = 2 if self.static_grids or self.activation_order is True or not self.group_size else 0
        square, weight = columns * columns, rows * columns
        return 4 * max(4 * square + 2 * weight, square + (9 + static) * weight)

    def fit(self, layers: dict[str, Any], gram) -> dict[str, Any]:
        """Round the matrices as one matrix, stacked by rows."""
        import torch

        from quantune.quantizations.arithmetic.gptq import gptq

        weights = [layer.weight.data.float() for layer in layers.values()]
        how = self.damping, self.activation_order, self.static_grids, self.clip
        fitted = gptq(torch.cat(weights), gram, self.grid, *how)
        ends = [0, *accumulate(map(len, weights))]
        return {part: fitted.rows(slice(*rows)) for part, rows in zip(layers, pairwise(ends), strict=True)}


class GPTQ(SecondOrder):
    """Second-order rounding on calibration data."""

    neutral: ClassVar[frozenset[str]] = SecondOrder.neutral | {"true_sequential"}

    method: Literal["gptq"]
    """Second-order rounding: GPTQ."""
    true_sequential: bool = False
    """Within a layer, calibrate each group of linear layers on inputs that passed through the rounded ones before it
    (`true_sequential` of AutoGPTQ); about twice the time. false: on the inputs of the original layer."""

    @property
    def sequential(self) -> bool:
        """Whether the linear layers of a layer are calibrated one after another."""
        return self.true_sequential
