"""Every number shown, derived from raw items. VERSION is raised when the meaning of a number changes.

Sums over windows are ratio estimates (total log-likelihood over total tokens), so their standard errors come from the
residuals of the windows around the common ratio (Cochran, Sampling Techniques, 1977, section 2.11); the error of an
exponential follows by the delta method. These errors take all items as independent: they are what a job records. The
report shows those of `summaries`, which are larger where neighbouring windows, or clips of one speaker, are alike.
"""

import math
from collections.abc import Callable, Sequence

import numpy
import pandas

from quantune.evaluations.metrics import edits
from quantune.evaluations.metrics.names import EDITS, RATES

VERSION = 1


def ratio(numerator: numpy.ndarray, denominator: numpy.ndarray) -> tuple[float, float]:
    """Return sum(numerator) / sum(denominator) and its standard error (nan for fewer than two items)."""
    numerator, denominator = numpy.asarray(numerator, float), numpy.asarray(denominator, float)
    count, total = len(numerator), denominator.sum()
    if total == 0:
        return math.nan, math.nan
    value = numerator.sum() / total
    if count < 2:
        return float(value), math.nan
    residuals = numerator - value * denominator
    return float(value), float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / total)


def perplexity(items: pandas.DataFrame) -> dict:
    """Return token perplexity, word perplexity and bits per byte, each with its standard error.

    Args:
        items: a row a window, with columns nll (nats), tokens, bytes, words.
    """
    per_token, token_error = ratio(items.nll, items.tokens)
    per_word, word_error = ratio(items.nll, items.words)
    per_byte, byte_error = ratio(items.nll, items.bytes)
    return {
        "version": VERSION,
        "windows": len(items),
        "tokens": int(items.tokens.sum()),
        "bytes": int(items.bytes.sum()),
        "words": int(items.words.sum()),
        "token_perplexity": exponential(per_token),
        "token_perplexity_error": exponential(per_token) * token_error,
        "word_perplexity": exponential(per_word),
        "word_perplexity_error": exponential(per_word) * word_error,
        "bits_per_byte": per_byte / math.log(2),
        "bits_per_byte_error": byte_error / math.log(2),
    }


def exponential(value: float) -> float:
    """Return e to a power; infinity where a float ends."""
    return math.inf if value > 700 else math.exp(value)


def with_edits(items: pandas.DataFrame, normal: Callable[[str], str] | None = None) -> pandas.DataFrame:
    """Return transcripts with the edits between them: of raw transcripts, or of their normal forms.

    Args:
        items: a row a clip, with columns reference and hypothesis.
        normal: the normalizer; None: raw transcripts.

    Returns:
        The items with, for each of `RAW_RATES` (or, normalized, of wer and cer), columns {rate}_length,
        {rate}_substitutions, {rate}_insertions, {rate}_deletions; and with normal_reference, normal_hypothesis.
    """
    table, prefix, suffix = items.copy(), "", "_raw"
    if normal:
        prefix, suffix = "normal_", ""
        for column in ("reference", "hypothesis"):
            table[f"normal_{column}"] = [normal(text) for text in items[column]]
    for rate, count in (("wer", edits.words), ("cer", edits.characters)):
        pairs = zip(table[f"{prefix}reference"], table[f"{prefix}hypothesis"], strict=True)
        counted = [vars(count(reference, hypothesis)) for reference, hypothesis in pairs]
        for name in ("length", *EDITS):
            table[f"{rate}{suffix}_{name}"] = numpy.array([item[name] for item in counted], dtype="int64")
    return table


def error_rates(items: pandas.DataFrame, rates: Sequence[str] = RATES) -> dict:
    """Return each of the rates, a share (0.1: one in ten), with its standard error and its sums."""
    numbers = {"version": VERSION, "clips": len(items), "seconds": float(items.seconds.sum())}
    for rate in rates:
        numbers[rate], numbers[f"{rate}_error"] = ratio(error_counts(items, rate), items[f"{rate}_length"])
        for name in ("length", *EDITS):
            numbers[f"{rate}_{name}"] = int(items[f"{rate}_{name}"].sum())
    return numbers


def error_counts(items: pandas.DataFrame, rate: str) -> pandas.Series:
    """Return the number of errors in each clip that the rate counts."""
    return items[f"{rate}_substitutions"] + items[f"{rate}_insertions"] + items[f"{rate}_deletions"]
