"""Estimates of a ratio of sums over items, with intervals and p-values that hold for few, skewed or dependent items."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy

from quantune.core.units import plural
from quantune.evaluations.metrics import dependence, quantiles, rates

MINIMUM = 5
"""Independent items below which there is no interval."""
FEW = 6
"""Items that differ (or have an error) below which bounds are exact: the sign test cannot be significant with fewer."""
RESAMPLES = 1999
UNKNOWN = 4
"""Items that differ below which one that was not seen may be wholly lost."""
ENDLESS = 1e9
"""Studentized values from here on are of resamples without any spread."""
MANY = 2000
"""Items above which skewness does not matter, so nothing is resampled."""


@dataclass(frozen=True)
class Rare:
    """Few items that count: what can be said of their share."""

    count: int
    items: int
    least: float
    """Smallest part of the ratio that one of them is, times the number of items; 0 if there is none."""
    most: float
    """Largest such part; of fewer than `UNKNOWN`: at least a whole item."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A ratio of sums over items and how far it can be trusted; error and bounds are nan of too few items."""

    value: float
    error: float
    """Standard error."""
    degrees: float
    """Of freedom, of the error."""
    items: int
    method: str
    """How the interval was computed, in words."""
    draws: numpy.ndarray | None = None
    """Studentized values of resamples, sorted; None where nothing was resampled."""
    rare: Rare | None = None
    paired: bool = True
    """Whether it is a difference of two variants, which may be negative."""

    def bounds(self, probability: float = 0.025) -> tuple[float, float]:
        """Return the low and the high bound, outside of which the true value lies with this probability each."""
        if not math.isfinite(self.error):
            return math.nan, math.nan
        margin = quantiles.student(1 - probability, self.degrees) * self.error
        low, high = self.value - margin, self.value + margin
        if self.draws is not None:
            first, last = (float(numpy.quantile(self.draws, share)) for share in (probability, 1 - probability))
            resampled = self.value - last * self.error, self.value - first * self.error
            low = self._of(low, resampled[0]) if last < ENDLESS else low
            high = self._of(high, resampled[1]) if first > -ENDLESS else high
        if self.rare:
            most = quantiles.largest_share(self.rare.count, self.rare.items, probability) * self.rare.most
            if self.paired:
                return min(low, -most), max(high, most)
            least = quantiles.smallest_share(self.rare.count, self.rare.items, probability) * self.rare.least
            skewed = self.draws is not None and high > self.value + margin
            return least, min(most, high) if skewed else most
        return (low, high) if self.paired else (max(low, 0.0), high)

    def _of(self, student: float, resampled: float) -> float:
        """Return the wider of two bounds of a difference, and the resampled one of a rate, which is skewed."""
        return max(student, resampled, key=lambda bound: abs(bound - self.value)) if self.paired else resampled

    def p_below(self, limit: float) -> float:
        """Return the one-sided p-value of the claim that the true value is below a limit."""
        return self._p(limit, 1)

    def p_above(self, limit: float) -> float:
        """Return the one-sided p-value of the claim that the true value is above a limit."""
        return self._p(limit, -1)

    def _p(self, limit: float, sign: int) -> float:
        if not math.isfinite(self.error):
            return math.nan
        if self.error == 0:
            p_value = float(sign * (self.value - limit) >= 0)
        else:
            studentized = (self.value - limit) / self.error
            p_value = quantiles.student_below(sign * studentized, self.degrees)
            if self.draws is not None:
                beyond = self.draws <= studentized if sign > 0 else self.draws >= studentized
                p_value = max(p_value, float(beyond.mean()))
        if self.rare and self.paired:
            share = sign * limit / self.rare.most
            exact = quantiles.binomial_at_most(self.rare.count, self.rare.items, share) if 0 < share < 1 else share <= 0
            p_value = max(p_value, float(exact) if limit else 0.5**self.rare.count)
        return p_value

    def noted(self, note: str) -> Estimate:
        """Return the same estimate with a remark on its method."""
        return replace(self, method=f"{self.method}; {note}")

    @property
    def p_value(self) -> float:
        """The two-sided p-value of no difference."""
        if not math.isfinite(self.error):
            return math.nan
        return 1.0 if self.value == 0 else min(1.0, 2 * min(self.p_below(0), self.p_above(0)))


def in_order(numerator, denominator, spacing: int, item: str = "window") -> Estimate:
    """Return the ratio of two sums over items in their order, neighbours of which may resemble each other.

    Args:
        numerator: of each item.
        denominator: of each item.
        spacing: `dependence.LEVEL` or `dependence.DIFFERENCE`.
        item: the items in words.
    """
    numerator, denominator = numpy.asarray(numerator, float), numpy.asarray(denominator, float)
    count, total = len(numerator), float(denominator.sum())
    value = float(numerator.sum() / total) if total else math.nan
    if count < spacing or not math.isfinite(value):
        return _without(value, count, item, spacing)
    residuals = numerator - value * denominator
    error, cosines = dependence.standard_error(residuals, spacing)
    method = f"cosine transforms ({cosines}) over {count} {item}s in their order, Student's t"
    return Estimate(value, error / total, cosines, count, method, paired=spacing == dependence.DIFFERENCE)


def independent(numerator, denominator, paired: bool, item: str = "clip") -> Estimate:
    """Return the ratio of two sums over independent items, of which most may be zero."""
    numerator, denominator = numpy.asarray(numerator, float), numpy.asarray(denominator, float)
    count, (value, error) = len(numerator), rates.ratio(numerator, denominator)
    if count < MINIMUM or not math.isfinite(value):
        return _without(value, count, item, MINIMUM)
    parts = numpy.abs(numerator[numerator != 0]) * count / denominator.sum()
    if len(parts) >= FEW and numpy.allclose(numerator, value * denominator, rtol=1e-9, atol=0):
        return Estimate(value, math.nan, 1, count, f"no interval: all {item}s have the same rate")
    method, rare = f"bootstrap-t over {count} {item}s, {RESAMPLES:,} resamples", None
    method = f"Student's t and {method}, the wider" if paired else method
    if count > MANY:
        method = f"Student's t over {count} {item}s"
    if len(parts) < FEW:
        most = float(parts.max()) if len(parts) >= UNKNOWN else max([1.0, *parts])
        rare = Rare(len(parts), count, float(parts.min()) if len(parts) else 0.0, most)
        what = "that differ" if paired else "with errors"
        method = f"exact binomial bounds: {len(parts)} {item}s {what} of {count}"
    draws = _studentized(numerator, denominator) if error > 0 and count <= MANY else None
    return Estimate(value, error, count - 1, count, method, draws, rare, paired)


def _without(value: float, count: int, item: str, least: int) -> Estimate:
    return Estimate(value, math.nan, 1, count, f"no interval: {plural(count, item)}, at least {least} are needed")


def _studentized(numerator: numpy.ndarray, denominator: numpy.ndarray) -> numpy.ndarray:
    """Return (resampled ratio - ratio) / resampled standard error, sorted (Efron and Tibshirani, 1993, chapter 12)."""
    count, value = len(numerator), numerator.sum() / denominator.sum()
    columns = [numerator, denominator, numerator**2, denominator**2, numerator * denominator]
    above, below, squares, weights, products = (_resamples(count) @ numpy.stack(columns, axis=1)).T
    with numpy.errstate(all="ignore"):
        ratio = above / below
        spread = count / (count - 1) * (squares - 2 * ratio * products + ratio**2 * weights)
        draws = (ratio - value) / (numpy.sqrt(numpy.maximum(spread, 0)) / below)
    flat = ~(spread > 1e-9 * squares.max())  # of equal items: endlessly far from another value
    draws[flat] = numpy.sign(numpy.nan_to_num(ratio[flat] - value)) * 2 * ENDLESS
    return numpy.sort(draws)


@lru_cache(maxsize=4)
def _resamples(count: int) -> numpy.ndarray:
    """Return how often each item occurs in each resample; always the same for a number of items."""
    draw = numpy.random.default_rng(count)
    return draw.multinomial(count, numpy.full(count, 1 / count), RESAMPLES).astype(float)
