"""Published values beside the measured ones."""

import math
from dataclasses import dataclass

from quantune.core import units
from quantune.report import table, wording
from quantune.report.gather import Report, VariantResult

NEAR = 0.01  # difference up to which a value counts as reproduced in the sentence above the table


@dataclass(frozen=True)
class PublishedValue:
    """One published value and what was measured."""

    source: str
    number: str
    """Its name: `wikitext-2.token_perplexity`, `size_bytes`."""
    variant: str
    path: str
    """Of the artefact that the measured value is from."""
    expected: float
    measured: float | None
    """None where nothing was measured: device memory without a GPU, a step at which no loss was recorded."""
    error: float = math.nan
    """Standard error of what was measured; nan where there is none."""

    @property
    def difference(self) -> float:
        """How far the measured value lies above the published one, relative to it; infinite for a broken variant."""
        return math.nan if self.measured is None else self.measured / self.expected - 1


def compare(report: Report) -> list[PublishedValue]:
    """Return every published value with what was measured, in the order of the configuration."""
    values = []
    for entry in report.expected:
        for name, value in entry["values"].items():
            variant = report.variants[name]
            number, path, measured, error = (
                _of_evaluation(report, variant, entry["evaluation"], entry["number"])
                if entry["evaluation"]
                else _of_variant(report, variant, entry["number"])
            )
            values.append(PublishedValue(entry["source"], number, name, path, value, measured, error))
    return values


def _of_variant(report: Report, variant: VariantResult, number: str) -> tuple[str, str, float | None, float]:
    """Return a number's name, the path of its artefact, its value, and that it has no standard error."""
    curve, _, step = number.partition(".step")
    if step and variant.curves is not None:
        return number, variant.path, _at_step(variant, curve, step), math.nan
    of_benchmark = variant.performance and number in variant.performance.columns()
    path = variant.performance.path if of_benchmark else variant.path
    return number, path, table.of_variant(report, variant).get(number), math.nan


def _of_evaluation(
    report: Report, variant: VariantResult, evaluation: str, number: str | None
) -> tuple[str, str, float | None, float]:
    """Return a number's full name, the path of its artefact, its value and its standard error, nan if it has none."""
    score = variant.scores.get(evaluation)
    made = score or variant.generations[evaluation]
    number = number or score.metric.key
    measured = table.of_evaluation(report, variant, evaluation).get(number)
    error = score.numbers.get(f"{number}_error", math.nan) if score else math.nan
    return f"{evaluation}.{number}", made.path, measured, error


def _at_step(variant: VariantResult, name: str, step: str) -> float | None:
    """Return the value of a loss curve at a step, or None if there is no such point."""
    values = variant.curves[variant.curves.step.astype(str) == step][name]
    return None if values.isna().all() else float(values.iloc[0])


def summary(comparisons: list[PublishedValue]) -> str:
    """Return in one sentence how near the measured values come."""
    measured = [item for item in comparisons if item.measured is not None]
    if not measured:
        return f"For {units.plural(len(comparisons), 'published value')} nothing was measured in this run."
    near = sum(abs(item.difference) <= NEAR for item in measured)
    far = max(measured, key=lambda item: math.inf if math.isnan(item.difference) else abs(item.difference))
    missing = len(comparisons) - len(measured)
    return (
        f"{near} of {units.plural(len(measured), 'published value')} came out within {100 * NEAR:g} %; furthest off"
        f" is `{far.variant}`, {named(far.number)}, {difference(far)}."
    ) + (f" For {missing} more nothing was measured in this run." if missing else "")


def named(number: str) -> str:
    """Return a name of a number in words: `wikitext-2: token perplexity`."""
    return number.replace(".", ": ", 1).replace(".", ", ").replace("_", " ")


def value(item: PublishedValue) -> str:
    """Return the published value, with all its digits or in a unit."""
    return _in_unit(item.number, item.expected) or f"{item.expected:,.10g}"


def measured(item: PublishedValue) -> str:
    """Return the measured value with its standard error."""
    if item.measured is None:
        return "not measured"
    if isinstance(item.measured, int):
        return _in_unit(item.number, item.measured) or f"{item.measured:,}"
    return _in_unit(item.number, item.measured) or wording.measured(item.measured, item.error)


def _in_unit(number: str, value: float) -> str | None:
    if number.endswith("bytes"):
        return units.size(value)
    return units.duration(value) if number.rpartition(".")[2] == "seconds" else None


def difference(item: PublishedValue) -> str:
    """Return a difference in per cent: `+0.07 %`, `−3.4 %`, `+1.2e+06 %`, or `∞`; `–` where nothing was measured."""
    value = 100 * item.difference
    if not math.isfinite(value):
        return "–" if item.measured is None or math.isnan(value) else "∞"
    if value >= 1e6:
        return f"{value:+.2g} %"
    decimals = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:+,.{decimals}f} %".replace("-", "−")
