"""The numbers of an evaluation with their errors and intervals, as the report shows them: similar items are known.
What a job records beside its items (`rates`) takes all items as independent.
"""

import math
import re
from functools import lru_cache

import numpy
import pandas

from quantune.core.units import plural
from quantune.evaluations.metrics import rates
from quantune.evaluations.metrics.dependence import LEVEL
from quantune.evaluations.metrics.estimates import Estimate, in_order, independent
from quantune.evaluations.metrics.names import RATES

SPEAKERS = 10
"""Speakers, or recordings, from which on they are the independent items; of fewer, clips are."""
UTTERANCE = re.compile(r"(?:.*/)?(\d+)-\d+-\d{4,}(?:\.\w+)?")
"""A clip of LibriSpeech: speaker, chapter, utterance."""
SEGMENT = re.compile(r"(.+?):[\d.e+-]+")
"""A segment of a recording: its path, its begin and its length."""


def perplexity(items: pandas.DataFrame) -> dict:
    """Return token perplexity, word perplexity and bits per byte, each with error, low and high end of its interval."""
    numbers = rates.perplexity(items)
    for key, units in (("token_perplexity", "tokens"), ("word_perplexity", "words"), ("bits_per_byte", "bytes")):
        estimate = in_order(items.nll, items[units], LEVEL)
        low, high = estimate.bounds()
        if key == "bits_per_byte":
            numbers |= _named(key, *(value / math.log(2) for value in (estimate.error, low, high)))
        else:
            numbers |= _named(key, numbers[key] * estimate.error, rates.exponential(low), rates.exponential(high))
    return numbers | {"method": estimate.method}


def error_rates(items: pandas.DataFrame) -> dict:
    """Return each error rate with error, low and high end of its interval, and the sums of edits."""
    numbers = rates.error_rates(items)
    for rate in RATES:
        estimate = of_clips(items, rates.error_counts(items, rate), items[f"{rate}_length"], paired=False)
        numbers |= _named(rate, estimate.error, *estimate.bounds())
        numbers |= {"method": estimate.method} if rate == "wer" else {}
    return numbers


def of_clips(items: pandas.DataFrame, errors, length, paired: bool) -> Estimate:
    """Return the estimate of a rate over clips, or over speakers or recordings where enough of them are known."""
    errors, length, item, known = by_speaker(items, errors, length)
    estimate = independent(errors, length, paired, item)
    if item == "clip" and known:
        return estimate.noted(f"the clips are of {known}, so nothing is said about others")
    return estimate


def by_speaker(items: pandas.DataFrame, errors, length) -> tuple[numpy.ndarray, numpy.ndarray, str, str]:
    """Return errors and lengths of each independent item, the item in words, and whose clips they are if that is known.

    Speakers or recordings are the independent items where there are at least `SPEAKERS` of them.
    """
    labels, item = speakers(items)
    errors, length = numpy.asarray(errors, float), numpy.asarray(length, float)
    known = plural(len(set(labels)), item) if labels else ""
    if not labels or len(set(labels)) < SPEAKERS:
        return errors, length, "clip", known
    _, places = numpy.unique(labels, return_inverse=True)
    return numpy.bincount(places, errors), numpy.bincount(places, length), item, known


def speakers(items: pandas.DataFrame) -> tuple[list[str] | None, str]:
    """Return the speaker or recording of each clip, None if they are not known, and which of both it is.

    Names of speakers are not kept with the clips: those of LibriSpeech are part of the clips' names, and segments are
    named by their recording.
    """
    labels, item = _labels(tuple(items.id.astype(str)))
    return list(labels) if labels else None, item


@lru_cache(maxsize=4)  # all variants have the same clips
def _labels(names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Return the speaker or recording in each name, none if one name has none, and which of both it is."""
    for pattern, item in ((UTTERANCE, "speaker"), (SEGMENT, "recording")):
        matches = [None if ".parquet:" in name else pattern.fullmatch(name) for name in names]
        if matches and all(matches):
            return tuple(match[1] for match in matches), item
    return (), "clip"


def _named(key: str, error: float, low: float, high: float) -> dict[str, float]:
    return {f"{key}_error": error, f"{key}_low": low, f"{key}_high": high}
