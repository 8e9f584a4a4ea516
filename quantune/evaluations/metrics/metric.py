"""The metric of an evaluation, declared once; report, table, figures and statistics read the declaration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from quantune.core import units
from quantune.evaluations.metrics import names, rates, significance, summaries

if TYPE_CHECKING:
    import numpy
    import pandas


@dataclass(frozen=True)
class Metric:
    """One metric, computed from the raw items of an evaluation."""

    key: str
    """Key of the leading number in the output of `summarize`; `{key}_error` is its standard error."""
    label: str
    """Name in sentences and on axes."""
    family: str
    """Family in the names of figures; metrics of one family share an axis."""
    item: Literal["window", "clip"]
    """The items that pair two variants: both are evaluated on the same windows or clips."""
    relative: bool
    """Whether a change is relative (0.05: five per cent) or the difference of two shares (0.05: five points)."""
    summarize: Callable[[pandas.DataFrame], dict]
    """Raw items -> numbers with standard errors, ends of 95 % intervals and the method of both."""
    compare: Callable[[pandas.DataFrame, pandas.DataFrame], dict]
    """Items of a variant and a reference -> change, low, high, p_value, estimate; raises ValueError if the items do not
    pair."""
    parts: Callable[[pandas.DataFrame], tuple[numpy.ndarray, numpy.ndarray]]
    """Items -> losses or errors, and tokens or words, of each independent item: window, clip or speaker."""
    reported: tuple[str, ...]
    """The numbers with a standard error that are reported, the leading one among them."""
    counts: tuple[str, ...] = ()
    """The numbers that are counts."""
    purpose: str = "predicts"
    """The verb of a variant's task."""
    domain: str = "text"
    """The object of that verb."""
    note: str = "lower is better"
    """How to read the numbers."""
    extent: Callable[[dict], str] = field(default=lambda numbers: "", compare=False)
    """The numbers -> how much was evaluated, in words."""
    amount: Callable[[dict], str] = field(default=lambda numbers: "", compare=False)
    """The numbers -> how many items were evaluated, in words."""
    lower_is_better: bool = True
    across_models: Metric | None = None
    """Metric for models with different tokens, if this one cannot compare them."""

    @property
    def unit(self) -> str:
        """The unit of a change, times 100."""
        return "%" if self.relative else "points"

    @property
    def scale(self) -> int:
        """The factor from a number to the one shown: shares are shown in per cent."""
        return 1 if self.relative else 100


def _words(numbers: dict) -> str:
    return f"{numbers['words']:,} words"


def _windows(numbers: dict) -> str:
    return f"{units.plural(numbers['windows'], 'window')}, {numbers['tokens']:,} tokens"


def _clips(numbers: dict) -> str:
    return f"{units.plural(numbers['clips'], 'clip')} in {units.duration(numbers['seconds'])}"


_BY_WINDOW = {
    "family": "perplexity",
    "item": "window",
    "relative": True,
    "summarize": summaries.perplexity,
    "compare": significance.perplexity_change,
    "parts": lambda items: (items.nll.to_numpy(float), items.tokens.to_numpy(float)),
    "reported": names.PERPLEXITIES,
    "extent": _words,
    "amount": _windows,
}
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", **_BY_WINDOW)
PERPLEXITY = Metric("token_perplexity", "perplexity", **_BY_WINDOW, across_models=BITS_PER_BYTE)


def _error_rate(rate: str) -> Metric:
    return Metric(
        key=rate,
        label=rate.upper(),
        family="error-rate",
        item="clip",
        relative=False,
        summarize=summaries.error_rates,
        compare=lambda items, reference: significance.error_rate_change(items, reference, rate),
        parts=lambda items: summaries.by_speaker(items, rates.error_counts(items, rate), items[f"{rate}_length"])[:2],
        reported=names.RATES,
        counts=names.COUNTS,
        purpose="writes down",
        domain="speech",
        note="in per cent of what was said, lower is better; changes are in points",
        extent=_clips,
        amount=_clips,
    )


WORD_ERROR_RATE, CHARACTER_ERROR_RATE = _error_rate("wer"), _error_rate("cer")


@dataclass(frozen=True)
class Measurement:
    """The raw items of one evaluation of one variant, and their metric."""

    metric: Metric
    items: pandas.DataFrame
    """A row for each window or clip."""
    details: dict[str, str] = field(default_factory=dict)
    """Facts to show beside the numbers: name -> text."""
    real_time_factor: float | None = None
    """Seconds of computing over seconds of audio, where audio was read."""
    broken: str | None = None
    """Why the model's logits are not numbers; None if they are."""
