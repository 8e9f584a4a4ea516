"""The numbers of a variant in an evaluation, and their change against other variants."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import pandas

from quantune import evaluations
from quantune.evaluations.metrics.estimates import Estimate
from quantune.evaluations.metrics.metric import PERPLEXITY, Metric

SIGNIFICANT = 0.05  # two-sided p-value below which a change counts as significant
CLAIMED = 0.025  # one-sided p-value up to which a loss counts as below the tolerance: the end of a 95 % interval
TOLERANCE = 0.01  # a loss that most uses would not notice: 1 % of perplexity, or 1 point of an error rate
POWER = 0.84  # standard errors beyond the critical value at which 80 % of evaluations are significant


@dataclass(frozen=True)
class Change:
    """A change of a metric, paired window by window or clip by clip."""

    against: str
    """The variant compared with."""
    change: float
    low: float
    """Lower end of the 95 % interval; nan if there are too few windows or clips."""
    high: float
    p_value: float
    """Two-sided, of no change, by itself; nan if there are too few windows or clips."""
    metric: Metric = PERPLEXITY
    estimate: Estimate | None = field(default=None, repr=False, compare=False)
    """What the interval and the p-value are computed from."""
    adjusted: float | None = None
    """The p-value among all variants of the model that are compared in this way (Holm); None: compared alone."""
    family: int = 1
    """How many variants these are."""
    within: float = math.nan
    """One-sided p-value, adjusted likewise, of the claim that the loss is below `tolerance`; nan: not claimed."""
    tolerance: float = TOLERANCE

    @property
    def loss(self) -> float:
        """The change towards worse; negative where it got better, infinite where it is not a number."""
        loss = self.change if self.metric.lower_is_better else -self.change
        return math.inf if math.isnan(loss) else loss

    @property
    def p_in_family(self) -> float:
        """The p-value among all that are compared."""
        return self.p_value if self.adjusted is None else self.adjusted

    @property
    def verdict(self) -> Literal["worse", "better", "unclear"]:
        """Whether the variant is significantly worse or better."""
        if not self.p_in_family < SIGNIFICANT:
            return "unclear"
        return "worse" if self.loss > 0 else "better"

    @property
    def bounded(self) -> bool:
        """Whether the data show that the loss is below the tolerance."""
        return self.within <= CLAIMED

    @property
    def exceeds(self) -> bool:
        """Whether the data show that the loss is above the tolerance; true of a variant that is broken."""
        least = self.low if self.metric.lower_is_better else -self.high
        return least > self.tolerance or not math.isfinite(self.loss)

    def p_within(self) -> float:
        """Return the one-sided p-value, by itself, of the claim that the loss is below the tolerance."""
        if self.estimate is None:
            return math.nan
        limit = math.log1p(self.tolerance) if self.metric.relative else self.tolerance
        return self.estimate.p_below(limit) if self.metric.lower_is_better else self.estimate.p_above(-limit)

    def needed(self) -> int | None:
        """Return how many windows or clips would show, in 80 % of evaluations, that a loss as large as the one measured
        is below the tolerance; None if the measured one is not below it, or nothing is known.
        """
        estimate = self.estimate
        if estimate is None or not math.isfinite(estimate.error) or not self.loss < self.tolerance:
            return None
        limit = math.log1p(self.tolerance) if self.metric.relative else self.tolerance
        loss = estimate.value if self.metric.lower_is_better else -estimate.value
        level = CLAIMED / max(self.family, 1)  # Holm's of the smallest p-value: enough for all
        errors = NormalDist().inv_cdf(1 - level) + POWER
        needed = estimate.items * (errors * estimate.error / (limit - loss)) ** 2
        if estimate.rare:
            needed = max(needed, math.log(level) / math.log1p(-min(limit - max(loss, 0.0), 0.99)))
        return max(math.ceil(needed), estimate.items + 1)


@dataclass(frozen=True)
class Score:
    """One evaluation of one variant."""

    path: str
    """Of the evaluation's artefact."""
    metric: Metric
    items: pandas.DataFrame = field(repr=False, compare=False)
    """A row for each window or clip."""
    numbers: dict[str, float]
    """What the metric makes of the items."""
    details: dict[str, str]
    """Facts to show beside the numbers: of transcripts, their language and normalizer."""
    real_time_factor: float | None = None
    """Of transcripts: seconds of computing over seconds of audio."""
    broken: str | None = None
    """Why the numbers are not numbers; None if they are."""
    from_root: Change | None = None
    """Against the model at full precision; None for the model itself."""
    from_parent: Change | None = None
    """Against the variant without its last step."""
    from_rounding: Change | None = None
    """Of a calibrated method: against rounding to nearest on the same grid, if that is reported too."""
    letters: str = ""
    """Of the groups it belongs to: variants of one model that share a letter cannot be told apart."""

    @property
    def value(self) -> float:
        """The leading number."""
        return self.numbers[self.metric.key]

    def changes(self) -> list[Change]:
        """Return the comparisons that are shown."""
        return [change for change in (self.from_root, self.from_parent, self.from_rounding) if change]


def read(path: str, recipe: dict[str, Any], model: str) -> Score | None:
    """Return the score that an evaluation's folder holds, compared with nothing yet; None where it has no numbers.

    Args:
        path: the folder.
        recipe: of the evaluation.
        model: the checkpoint folder that the variant's chain begins with.

    Raises:
        OSError: if a file is missing.
    """
    measured = evaluations.of_kind(recipe).read(Path(path), Path(model))
    if measured is None:
        return None
    metric, items, numbers = measured.metric, measured.items, measured.metric.summarize(measured.items)
    if measured.broken:
        ends = [f"{key}_{end}" for key in metric.reported for end in ("error", "low", "high")]
        measures = [*metric.reported, *ends, *metric.counts]
        numbers |= dict.fromkeys(measures, math.nan)
    return Score(path, metric, items, numbers, measured.details, measured.real_time_factor, measured.broken)


def change(score: Score, against: str, reference: Score) -> Change:
    """Compare a score with that of the variant `against`.

    Raises:
        ValueError: if they are of different windows or clips.
    """
    if score.broken or reference.broken:
        return Change(against, *[math.nan] * 4, metric=score.metric)
    return Change(against, **score.metric.compare(score.items, reference.items), metric=score.metric)
