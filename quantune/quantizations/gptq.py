"""GPTQ: round column by column, and make up for each column's error in the columns not yet rounded.

Frantar et al., 2022 (arXiv:2210.17323), algorithm 1; with `activation_order`, columns are taken by falling importance
and the grids are fitted beforehand, so that checkpoints need no permutation.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.calibration import Calibrated, draw
from quantune.quantizations.packed import save_packed


class GPTQ(Calibrated):
    """Second-order rounding on calibration data."""

    seeded: ClassVar[bool] = True
    requantized: ClassVar[bool] = True

    method: Literal["gptq"]
    """Second-order rounding: GPTQ."""
    damping: float = Field(default=0.01, gt=0)
    """Added to the Hessian's diagonal, as a share of its mean."""
    activation_order: bool = False
    """Take the columns by falling magnitude of their inputs (`desc_act`); often better, a little slower."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """The Hessian, damped, its factor, its inverse and the inverse's factor, with two copies of the weights; or,
        while columns are rounded, the Hessian and one factor with nine matrices of the weights' shape. Float32.
        """
        fitted_before = 3 if self.activation_order or not self.group_size else 0
        square, weight = columns * columns, rows * columns
        return 4 * max(5 * square + (2 + fitted_before) * weight, 2 * square + (9 + fitted_before) * weight)

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize layer by layer; each layer is calibrated on the outputs of the quantized layers before it."""
        from quantune import layerwise

        batches, facts = draw(self, data, seed, parent)
        model = layerwise.load(parent)
        grids, errors = {}, {}
        layerwise.stream(model, batches, self.visitor(grids, errors), self.requantized)
        save_packed(model, grids, self, parent, folder)
        return {"calibration": facts, "output_errors": errors}

    def visitor(self, grids: dict, errors: dict):
        """Return what quantizes a decoder layer; it fills `grids` and `errors`, each by the linear layer's name."""
        import torch

        from quantune import second_order

        def visit(name, layer, inputs):
            for group in inputs:
                weight = torch.cat([item.weight.data.float() for item in group.layers.values()])
                fitted = second_order.gptq(weight, group.gram, self.grid, self.damping, self.activation_order)
                first = 0
                for part, item in group.layers.items():
                    rows = slice(first, first + item.weight.shape[0])
                    grids[part] = fitted.rows(rows)
                    errors[part] = second_order.output_error(grids[part].weight, item.weight.data, group.gram)
                    item.weight.data = grids[part].weight.to(item.weight.dtype)
                    first += item.weight.shape[0]

        return visit
