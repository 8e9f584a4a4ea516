"""Published values beside the measured ones."""

import math
from dataclasses import dataclass

from quantune.core import units
from quantune.report.gather import Report

NEAR = 0.01  # difference up to which a value counts as reproduced in the sentence above the table


@dataclass(frozen=True)
class PublishedValue:
    """One published value and what was measured."""

    source: str
    evaluation: str
    variant: str
    path: str
    """Of the evaluation's artefact."""
    expected: float
    measured: float
    error: float
    """Standard error of what was measured."""

    @property
    def difference(self) -> float:
        """How far the measured value lies above the published one, relative to it; infinite for a broken variant."""
        return self.measured / self.expected - 1


def compare(report: Report) -> list[PublishedValue]:
    """Return every published value with what was measured, in the order of the configuration."""
    values = []
    for entry in report.expected:
        for name, value in entry["values"].items():
            score = report.variants[name].scores[entry["evaluation"]]
            measured = score.value, score.error
            values.append(PublishedValue(entry["source"], entry["evaluation"], name, score.path, value, *measured))
    return values


def summary(comparisons: list[PublishedValue]) -> str:
    """Return in one sentence how near the measured values come."""
    near = sum(abs(item.difference) <= NEAR for item in comparisons)
    far = max(comparisons, key=lambda item: abs(item.difference))
    return (
        f"{near} of {units.plural(len(comparisons), 'published value')} came out within {100 * NEAR:g} %; furthest off"
        f" is `{far.variant}` on {far.evaluation}, {difference(far)}."
    )


def difference(item: PublishedValue) -> str:
    """Return a difference in per cent: `+0.07 %`, `−3.4 %`, `+1.2e+06 %`, or `∞`."""
    value = 100 * item.difference
    if not math.isfinite(value):
        return "∞"
    if value >= 1e6:
        return f"{value:+.2g} %"
    decimals = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:+,.{decimals}f} %".replace("-", "−")
