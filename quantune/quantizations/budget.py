"""Mixed precision under a budget: the bits of each layer follow from the measured damage of each layer at each width.

The problem of HAWQ-V2 and HAWQ-V3 (Dong et al., 2019, arXiv:1911.03852; Yao et al., 2020, arXiv:2011.10680): choose one
width for each layer, so that the sum of the damages is smallest and the sum of the bytes is within the budget. It is a
knapsack with classes, solved exactly by dynamic programming. The damage is measured and not estimated from a Hessian:
the Kullback-Leibler divergence of the model's predictions when only this layer is rounded.
"""

import math
from collections.abc import Mapping

from pydantic import Field, model_validator

from quantune.core.recipe import Entry
from quantune.quantizations.selection import Bits

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that servers such as vLLM join into one, which has one kind of grid."""

STEPS = 200_000
"""The largest number of steps in which `choose` divides the budget; sizes without so large a common divisor are rounded
up."""


class Budget(Entry):
    """The bytes that the quantized layers may take, and the widths to choose from."""

    bits_per_weight: float | None = Field(default=None, ge=1, le=16)
    """Average bits of a quantized weight, scales and zero points included; give this or `bytes`."""
    bytes: int | None = Field(default=None, gt=0, le=10**13)
    """Bytes of all quantized layers, scales and zero points included; give this or `bits_per_weight`."""
    choices: list[Bits] = Field(default=[2, 3, 4, 8], min_length=2)
    """Widths that a layer may get."""

    @model_validator(mode="after")
    def _one_limit(self):
        if (self.bits_per_weight is None) is (self.bytes is None):
            raise ValueError("give either 'bits_per_weight' or 'bytes'")
        return self

    def limit(self, weights: int) -> int:
        """Return the budget in bits, for a number of quantized weights."""
        return 8 * self.bytes if self.bytes is not None else int(self.bits_per_weight * weights)


def units(names: list[str]) -> list[list[str]]:
    """Return the layers in groups that get the same width: those that servers join, and each other layer alone."""
    together: dict[tuple[str, object], list[str]] = {}
    for name in names:
        prefix, _, last = name.rpartition(".")
        joined = next((item for item in FUSED if last in item), last)
        together.setdefault((prefix, joined), []).append(name)
    return list(together.values())


def choose(damages: list[Mapping[int, float]], sizes: list[Mapping[int, int]], limit: int) -> list[int]:
    """Return the width of each unit: the smallest sum of damages within the limit of the sum of sizes.

    Args:
        damages: of each unit: width -> damage.
        sizes: of each unit: width -> size.
        limit: of the sum of sizes; the smallest widths must fit.
    """
    import numpy

    widths = [sorted(size, key=size.__getitem__) for size in sizes]
    least = [size[ordered[0]] for size, ordered in zip(sizes, widths, strict=True)]
    more = [[size[bits] - size[ordered[0]] for bits in ordered] for size, ordered in zip(sizes, widths, strict=True)]
    room = limit - sum(least)
    step = max(math.gcd(*(item for unit in more for item in unit)), -(-room // STEPS), 1)
    best = numpy.zeros(room // step + 1)  # of the units so far, by the steps that they may use: the least damage
    taken = []
    for damage, ordered, extra in zip(damages, widths, more, strict=True):
        options = numpy.full((len(ordered), len(best)), numpy.inf)
        for row, bits, size in zip(options, ordered, extra, strict=True):
            steps = -(-size // step)
            if steps < len(best):
                row[steps:] = best[: len(best) - steps] + damage[bits]
        taken.append(options.argmin(0).astype(numpy.uint8))
        best = options.min(0)
    left, chosen = len(best) - 1, []
    for choice, ordered, extra in zip(reversed(taken), reversed(widths), reversed(more), strict=True):
        option = int(choice[left])
        chosen.append(ordered[option])
        left -= -(-extra[option] // step)
    return chosen[::-1]
