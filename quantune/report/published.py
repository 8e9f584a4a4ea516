"""Published values beside the measured ones."""

import math
from dataclasses import dataclass

from quantune.core import units
from quantune.report.gather import Report

NEAR = 0.01  # difference up to which a value counts as reproduced in the sentence above the table


@dataclass(frozen=True)
class Comparison:
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


def comparisons(report: Report) -> list[Comparison]:
    """Return every published value with what was measured, in the order of the configuration."""
    found = []
    for entry in report.expected:
        for name, value in entry["values"].items():
            score = report.variants[name].scores[entry["evaluation"]]
            measured = score.numbers["token_perplexity"], score.numbers["token_perplexity_error"]
            found.append(Comparison(entry["source"], entry["evaluation"], name, score.path, value, *measured))
    return found


def summary(found: list[Comparison]) -> str:
    """Return in one sentence how near the measured values come."""
    near = sum(abs(item.difference) <= NEAR for item in found)
    far = max(found, key=lambda item: abs(item.difference))
    return (
        f"{near} of {units.plural(len(found), 'published value')} came out within {100 * NEAR:g} %; furthest off is"
        f" `{far.variant}` on {far.evaluation}, {difference(far)}."
    )


def difference(item: Comparison) -> str:
    """Return a difference in per cent: `+0.07 %`, `−3.4 %`, `+1.2e+06 %`, or `∞`."""
    value = 100 * item.difference
    if not math.isfinite(value):
        return "∞"
    if value >= 1e6:
        return f"{value:+.2g} %"
    decimals = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:+,.{decimals}f} %".replace("-", "−")
