"""Every number shown, derived from raw items. VERSION is raised when the meaning of one of them changes.

Sums over windows are ratio estimates (total log-likelihood over total tokens), so their standard errors come from the
residuals of the windows around the common ratio (Cochran, Sampling Techniques, 1977, section 2.11); the error of an
exponential follows by the delta method. Windows of one text are treated as independent, which neighbouring windows are
only nearly.
"""

import math

import numpy
import pandas

VERSION = 1
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


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
        "token_perplexity": _exp(per_token),
        "token_perplexity_error": _exp(per_token) * token_error,
        "word_perplexity": _exp(per_word),
        "word_perplexity_error": _exp(per_word) * word_error,
        "bits_per_byte": per_byte / math.log(2),
        "bits_per_byte_error": byte_error / math.log(2),
    }


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
    if error == 0 or difference == 0:
        p_value = float(difference == 0)
    else:
        p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    return {
        "change": _expm1(difference),
        "low": _expm1(difference - Z95 * error),
        "high": _expm1(difference + Z95 * error),
        "p_value": p_value,
    }


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def _expm1(value: float) -> float:
    return math.inf if value > 700 else math.expm1(value)
