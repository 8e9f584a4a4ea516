"""Published values beside the measured ones: what the report should come near to, and from where that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from quantune import chains
from quantune.errors import ConfigError, listed, nearest
from quantune.recipe import Entry, Name

if TYPE_CHECKING:
    from quantune.config import Config
    from quantune.report import Report

NEAR = 0.01  # difference up to which a value counts as reproduced in the sentence above the table


class Expected(Entry):
    """Token perplexities that somebody published for one evaluation."""

    source: str = Field(min_length=1)
    """Where they were published; stands beside them in the report."""
    evaluation: Name
    """Name of the perplexity evaluation that follows the source's protocol."""
    values: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Variant -> token perplexity; of `variants` or their ancestors."""


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


def problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the evaluations and variants that published values are given for."""
    try:
        variants = [chains.parse(text, config) for text in chains.expand(config.variants)]
    except ConfigError:
        return  # said already
    evaluated = {str(item) for variant in variants for item in (*variant.ancestors, variant)}
    known = [name for name, entry in config.evaluations.items() if entry.kind == "perplexity"]
    for number, entry in enumerate(config.expected):
        if entry.evaluation not in known:
            hint = f"allowed: {listed(known)}{nearest(entry.evaluation, known)}"
            yield f"expected.{number}.evaluation: '{entry.evaluation}' is not a perplexity evaluation; {hint}"
        for name in entry.values:
            if name not in evaluated:
                hint = f"add it to 'variants' or leave it out{nearest(name, evaluated)}"
                yield f"expected.{number}.values: '{name}' is not one of the variants or their ancestors; {hint}"


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
    from quantune import words  # and not above: a configuration is read without pandas

    near = sum(abs(item.difference) <= NEAR for item in found)
    far = max(found, key=lambda item: abs(item.difference))
    return (
        f"{near} of {words.plural(len(found), 'published value')} came out within {100 * NEAR:g} %; furthest off is"
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
