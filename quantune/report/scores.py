"""The numbers of a variant in an evaluation, and their change against other variants."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas

from quantune import evaluations
from quantune.evaluations.metrics.metric import PERPLEXITY, Metric

SIGNIFICANT = 0.05  # two-sided p-value below which a change counts as significant


@dataclass(frozen=True)
class Change:
    """A change of a metric, paired window by window or clip by clip."""

    against: str
    """The variant compared with."""
    change: float
    low: float
    """Lower end of the 95 % interval; nan if there is only one window or clip."""
    high: float
    p_value: float
    """Two-sided, of no change; nan if there is only one window or clip."""
    metric: Metric = PERPLEXITY

    @property
    def loss(self) -> float:
        """The change towards worse; negative where it got better, infinite where it is not a number."""
        loss = self.change if self.metric.lower_is_better else -self.change
        return math.inf if math.isnan(loss) else loss

    @property
    def largest_loss(self) -> float:
        """The end of the 95 % interval that is worse."""
        return self.high if self.metric.lower_is_better else -self.low

    @property
    def verdict(self) -> Literal["worse", "better", "unclear"]:
        """Whether the variant is significantly worse or better."""
        if not self.p_value < SIGNIFICANT:
            return "unclear"
        return "worse" if self.loss > 0 else "better"


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

    @property
    def value(self) -> float:
        """The leading number."""
        return self.numbers[self.metric.key]

    @property
    def error(self) -> float:
        """Its standard error."""
        return self.numbers[f"{self.metric.key}_error"]

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
        measures = [*metric.reported, *(f"{key}_error" for key in metric.reported), *metric.counts]
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
