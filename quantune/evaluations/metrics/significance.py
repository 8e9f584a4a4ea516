"""Paired comparisons of two variants on the same windows or clips."""

import math

import pandas

from quantune.evaluations.metrics.rates import error_counts, ratio

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def perplexity_change(items: pandas.DataFrame, reference: pandas.DataFrame) -> dict:
    """Compare two variants on the same windows, pair by pair.

    Returns:
        The relative change of token perplexity (0.05: five per cent worse), its 95 % interval, and the two-sided
        p-value of no change (normal approximation of the paired difference).

    Raises:
        ValueError: if the windows are not the same.
    """
    keys = ["begin", "tokens"]
    if not items[keys].reset_index(drop=True).equals(reference[keys].reset_index(drop=True)):
        raise ValueError("the two evaluations are not over the same windows")
    difference, error = ratio(items.nll.to_numpy() - reference.nll.to_numpy(), items.tokens)
    return {
        "change": _expm1(difference),
        "low": _expm1(difference - Z95 * error),
        "high": _expm1(difference + Z95 * error),
        "p_value": _p(difference, error),
    }


def _expm1(value: float) -> float:
    return math.inf if value > 700 else math.expm1(value)


def error_rate_change(items: pandas.DataFrame, reference: pandas.DataFrame, rate: str) -> dict:
    """Compare two variants on the same clips, pair by pair.

    Returns:
        The change of the rate in absolute terms (0.02: two points worse), its 95 % interval, and the two-sided p-value
        of no change (normal approximation of the paired difference).

    Raises:
        ValueError: if the clips are not the same.
    """
    if (
        not items[["id", "reference"]]
        .reset_index(drop=True)
        .equals(reference[["id", "reference"]].reset_index(drop=True))
    ):
        raise ValueError("the two evaluations are not over the same clips")
    more = error_counts(items, rate).to_numpy() - error_counts(reference, rate).to_numpy()
    difference, error = ratio(more, items[f"{rate}_length"])
    margin = Z95 * error
    return {
        "change": difference,
        "low": difference - margin,
        "high": difference + margin,
        "p_value": _p(difference, error),
    }


def _p(difference: float, error: float) -> float:
    """Return the two-sided p-value of no difference."""
    if error == 0 or difference == 0:
        return float(difference == 0)
    return math.erfc(abs(difference) / error / math.sqrt(2))
