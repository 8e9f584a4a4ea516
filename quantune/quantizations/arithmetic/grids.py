"""Uniform integer grids: the points that the weights of a group may take, and rounding to them.

The grid of compressed-tensors: codes from -2^(b-1) to 2^(b-1)-1, value = (code - zero) * scale; zero is always on the
grid. The arithmetic is float32, or float64 for float64 weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

SHRINKS = tuple(1 - 0.05 * step for step in range(11))  # 1.00 down to 0.50


@dataclass(frozen=True)
class Grid:
    """A kind of grid: bits, weights of a row that share a scale (None: whole row), symmetric (without zero points)."""

    bits: int
    group_size: int | None
    symmetric: bool

    @property
    def low(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1


@dataclass
class Fitted:
    """A layer's grid: scale and zero, each (rows, groups), and the weights on it, (rows, columns); all float32."""

    scale: torch.Tensor
    zero: torch.Tensor
    weight: torch.Tensor
    kept: torch.Tensor | None = None
    """Numbers of the columns whose weights are not on the grid, and are stored beside the codes; None: no column."""

    def rows(self, chosen: slice) -> "Fitted":
        """Return the grids and weights of some rows."""
        return Fitted(self.scale[chosen], self.zero[chosen], self.weight[chosen])


def span(weight: torch.Tensor, grid: Grid, shrink: torch.Tensor | float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero of grids that span each last dimension, times `shrink`; shapes (..., 1)."""
    low = weight.amin(-1, keepdim=True).clamp(max=0) * shrink
    high = weight.amax(-1, keepdim=True).clamp(min=0) * shrink
    steps = 2**grid.bits - 1
    if grid.symmetric:
        scale = torch.maximum(-low, high) * 2 / steps
        zero = torch.zeros_like(scale)
    else:
        scale = (high - low) / steps
        zero = (grid.low - low / scale.clamp(min=1e-30)).round().clamp(grid.low, grid.high)
    return torch.where(scale == 0, torch.full_like(scale, torch.finfo(torch.float16).eps), scale), zero


def snap(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the grid point nearest to each weight."""
    return ((weight / scale + zero).round().clamp(grid.low, grid.high) - zero) * scale


def grouped(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a view of a matrix as (rows, groups, weights in a group)."""
    return weight.reshape(weight.shape[0], -1, grid.group_size or weight.shape[1])


def fit(weight: torch.Tensor, grid: Grid, shrink: torch.Tensor | float = 1.0) -> Fitted:
    """Fit a grid to each group of a matrix (rows, columns) and round to it.

    Args:
        weight: the matrix.
        grid: the kind of grid.
        shrink: factor on the range that each grid spans, a number or (rows, groups, 1); below 1 clips outliers.
    """
    groups = grouped(weight if weight.dtype is torch.float64 else weight.float(), grid)
    scale, zero = span(groups, grid, shrink)
    rounded = snap(groups, scale, zero, grid)
    return Fitted(scale.squeeze(-1), zero.squeeze(-1), rounded.reshape(weight.shape))


def best_shrink(groups: torch.Tensor, grid: Grid, loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the factor in `SHRINKS` on the range of each group under which rounding loses least, (..., 1).

    Args:
        groups: weights, (..., weights in a group).
        grid: the kind of grid.
        loss: change of the weights, of the same shape -> the loss of each group, (..., 1).
    """
    best, best_loss = torch.ones_like(groups[..., :1]), None
    for shrink in SHRINKS:
        error = loss(snap(groups, *span(groups, grid, shrink), grid) - groups)
        if best_loss is None:
            best_loss = error
        else:
            best = torch.where(error < best_loss, shrink, best)
            best_loss = torch.minimum(error, best_loss)
    return best


def output_error(rounded: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor) -> float:
    """Return the relative error of a layer's outputs on the calibration data: ‖(Ŵ-W)X‖ / ‖WX‖."""
    weight = weight.float()
    change = rounded - weight
    return float(((change @ gram) * change).sum().clamp(min=0).sqrt() / ((weight @ gram) * weight).sum().sqrt())
