"""SmoothQuant on one decoder layer (Xiao et al., 2022, arXiv:2211.10438), and the range of layers' inputs."""

from dataclasses import dataclass

import torch

from quantune.models.eight_bit_linear import codes, multiply, scales
from quantune.quantizations.arithmetic.inputs import Collector

KEPT = 512
"""Tokens of an input on which a layer's error is measured."""
SMALLEST = 1e-5
"""The smallest magnitude of a weight, and the smallest scale, as in the authors' code (mit-han-lab/smoothquant)."""


@dataclass
class Range:
    """Linear layers of one decoder layer that read the same input, and the range of that input."""

    layers: dict[str, torch.nn.Linear]
    """Full name -> layer."""
    largest: torch.Tensor
    """Largest magnitude of each channel over all tokens, (columns,), float32."""
    rows: torch.Tensor
    """The input of the first tokens, (tokens, columns)."""


class Ranges(Collector):
    """Hooks that find the range of the inputs of a layer's linear layers; no Gram matrices."""

    def add(self, part: str, rows: torch.Tensor) -> None:
        """Extend the range by an input of the linear layer `part`, (tokens, columns)."""
        largest = rows.abs().amax(0).float()
        if part in self.sums:
            torch.maximum(self.sums[part][0], largest, out=self.sums[part][0])
        else:
            self.sums[part] = (largest, rows[:KEPT].clone())

    def group(self, leader: str, layers: dict[str, torch.nn.Linear]) -> Range:
        """Return the range of layers that read the same input; `leader` is the first of them."""
        return Range(layers, *self.sums.pop(leader))


def smoothing_scale(weights: list[torch.Tensor], largest: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the scales of channels, max |x|^alpha / max |w|^(1 - alpha), (columns,): equation 4 of the paper.

    Channels without input keep their scale.

    Args:
        weights: of all layers that read the input, (rows, columns) each.
        largest: largest magnitude of each channel of the input, (columns,).
        alpha: the share of the difficulty that moves from inputs to weights, 0 to 1.
    """
    of_weights = torch.cat(weights).abs().amax(0).clamp(min=SMALLEST)
    scale = (largest**alpha / of_weights ** (1 - alpha)).clamp(min=SMALLEST)
    return torch.where(largest > 0, scale, 1.0)


def output_error(rows: torch.Tensor, weight: torch.Tensor, code: torch.dtype, largest: torch.Tensor | None) -> float:
    """Return the relative error of a layer's outputs when inputs and weights are rounded: ‖Ŵx̂ - Wx‖ / ‖Wx‖.

    Args:
        rows: the layer's inputs, (tokens, columns).
        weight: its weights, (outputs, columns).
        code: dtype of the codes.
        largest: the largest magnitude of all inputs, if one scale is for all.
    """
    rows, weight = rows.float(), weight.float()
    scale = scales(weight, code)
    input_scale = None if largest is None else scales(largest.reshape(1), code)
    right = rows @ weight.T
    change = multiply(rows, codes(weight, scale, code), scale, input_scale) - right
    size = float(right.norm())
    return float(change.norm()) / size if size else float(change.norm() > 0)
