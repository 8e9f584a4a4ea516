"""Paired comparisons of two variants on the same windows or clips."""

import math

import pandas

from quantune.evaluations.metrics.dependence import DIFFERENCE
from quantune.evaluations.metrics.estimates import in_order
from quantune.evaluations.metrics.rates import error_counts
from quantune.evaluations.metrics.summaries import of_clips


def perplexity_change(items: pandas.DataFrame, reference: pandas.DataFrame) -> dict:
    """Compare two variants on the same windows, pair by pair.

    Returns:
        The relative change of token perplexity (0.05: five per cent worse), its 95 % interval, the two-sided p-value of
        no change, and the estimate (in nats a token) that they are computed from.

    Raises:
        ValueError: if the windows are not the same.
    """
    keys = ["begin", "tokens"]
    if not items[keys].reset_index(drop=True).equals(reference[keys].reset_index(drop=True)):
        raise ValueError("the two evaluations are not over the same windows")
    estimate = in_order(items.nll.to_numpy() - reference.nll.to_numpy(), items.tokens, DIFFERENCE)
    change, low, high = (_expm1(value) for value in (estimate.value, *estimate.bounds()))
    return {"change": change, "low": low, "high": high, "p_value": estimate.p_value, "estimate": estimate}


def _expm1(value: float) -> float:
    return math.inf if value > 700 else math.expm1(value)


def error_rate_change(items: pandas.DataFrame, reference: pandas.DataFrame, rate: str) -> dict:
    """Compare two variants on the same clips, pair by pair.

    Returns:
        The change of the rate in absolute terms (0.02: two points worse), its 95 % interval, the two-sided p-value of
        no change, and the estimate that they are computed from.

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
    estimate = of_clips(items, more, items[f"{rate}_length"], paired=True)
    low, high = estimate.bounds()
    return {"change": estimate.value, "low": low, "high": high, "p_value": estimate.p_value, "estimate": estimate}
