"""Many comparisons at once: p-values of a family, and groups of variants that cannot be told apart."""

import math
import string
from itertools import combinations

import numpy

from quantune.evaluations.metrics import dependence, quantiles
from quantune.evaluations.metrics.estimates import FEW, MINIMUM

MOST_GROUPS = 1000
"""Groups on the way to the final ones, which are fewer; above, the search ends."""


def holm(p_values: list[float]) -> list[float]:
    """Return p-values of which one below 0.05 is wrong in at most 5 % of families (Holm, 1979); nan stays nan."""
    order = sorted((place for place, value in enumerate(p_values) if not math.isnan(value)), key=p_values.__getitem__)
    adjusted, largest = list(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def pairs(numerators: numpy.ndarray, denominator: numpy.ndarray, ordered: bool) -> list[tuple[int, int, float]]:
    """Return (one, other, p-value of no difference) of every two variants.

    Args:
        numerators: of each variant and item.
        denominator: of each item.
        ordered: whether the items are in an order, neighbours of which may resemble each other.
    """
    variants, items = numerators.shape
    total = denominator.sum()
    values = numerators.sum(axis=1) / total
    residuals = numerators - values[:, None] * denominator
    if items < (dependence.DIFFERENCE if ordered else MINIMUM):
        return [(one, other, 1.0) for one, other in combinations(range(variants), 2)]
    degrees = items - 1
    if ordered:
        apart = residuals[1:] - residuals[0]
        degrees = min((dependence.count(item, dependence.DIFFERENCE) for item in apart), default=1)
        residuals = dependence.transforms(residuals, degrees) * math.sqrt(items / degrees)
    compared = []
    for one in range(variants):
        rest = residuals[one + 1 :] - residuals[one]
        errors = numpy.sqrt((rest**2).sum(axis=1) * (1 if ordered else items / (items - 1))) / total
        differ = (numerators[one + 1 :] != numerators[one]).sum(axis=1)
        for step, (error, count) in enumerate(zip(errors, differ, strict=True), 1):
            change = abs(values[one + step] - values[one])
            p_value = 2 * quantiles.student_below(-change / error, degrees) if error > 0 else float(change == 0)
            compared.append((one, one + step, 1.0 if not ordered and count < FEW else p_value))
    return compared


def letters(values: list[float], compared: list[tuple[int, int, float]], level: float = 0.05) -> list[str] | None:
    """Return the letters of each variant: two that share one cannot be told apart (Piepho, Journal of Computational and
    Graphical Statistics 13, 2004). The lowest value has the first letter. None if the alphabet does not suffice.
    """
    adjusted = holm([p_value for _, _, p_value in compared])
    groups = [(1 << len(values)) - 1]
    for (one, other, _), p_value in zip(compared, adjusted, strict=True):
        if not p_value < level:
            continue
        both = 1 << one | 1 << other
        split = [group & ~(1 << place) for group in groups if group & both == both for place in (one, other)]
        groups = [group for group in groups if group & both != both]
        for group in sorted(split, key=int.bit_count, reverse=True):
            if not any(group & larger == group for larger in groups):
                groups.append(group)
        if len(groups) > MOST_GROUPS:
            return None
    if len(groups) > len(string.ascii_letters):
        return None
    order = sorted(range(len(values)), key=values.__getitem__)
    groups.sort(key=lambda group: [not group >> place & 1 for place in order])
    named = list(zip(string.ascii_letters, groups, strict=False))
    return ["".join(letter for letter, group in named if group >> place & 1) for place in range(len(values))]
