"""How a variant scores in an evaluation that ends in a number, and what changed against another variant."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas

from quantune.artefacts import record
from quantune.evaluations.metrics import normalizers, rates, significance
from quantune.sources.entries import UNSPACED

SIGNIFICANT = 0.05  # two-sided p-value below which a change is told from chance
KINDS = ("perplexity", "transcription")
"""Of evaluations, those that end in a number."""


@dataclass(frozen=True)
class Measure:
    """What an evaluation leads with; lower is better."""

    key: str
    """Among the numbers of a score."""
    label: str
    """In sentences and on axes."""
    paired: Literal["window", "clip"]
    """What variants are compared by."""
    relative: bool
    """Whether a change is relative (0.05: five per cent worse) or the difference of two shares (0.05: five points)."""

    @property
    def unit(self) -> str:
        """Of a change, times 100."""
        return "%" if self.relative else "points"


PERPLEXITY = Measure("token_perplexity", "perplexity", "window", relative=True)
BITS = Measure("bits_per_byte", "bits per byte", "window", relative=True)
ERROR_RATES = {rate: Measure(rate, rate.upper(), "clip", relative=False) for rate in ("wer", "cer")}


@dataclass(frozen=True)
class Change:
    """A change of what is measured, paired window by window or clip by clip."""

    against: str
    """The variant compared with."""
    change: float
    low: float
    """Lower end of the 95 % interval; nan if there is only one window or clip."""
    high: float
    p_value: float
    """Two-sided, of no change; nan if there is only one window or clip."""
    measure: Measure = PERPLEXITY

    @property
    def verdict(self) -> Literal["worse", "better", "unclear"]:
        """Which way it changed, as far as that can be told from chance."""
        if not self.p_value < SIGNIFICANT:
            return "unclear"
        return "worse" if self.change > 0 else "better"


@dataclass(frozen=True)
class Score:
    """One evaluation of one variant."""

    path: str
    """Of the evaluation's artefact."""
    measure: Measure
    items: pandas.DataFrame = field(repr=False, compare=False)
    """A row a window, or a clip."""
    numbers: dict[str, float]
    """What `statistics.perplexity` or `statistics.error_rates` returns."""
    told: dict[str, str]
    """Of transcripts: their language and how they were normalized."""
    real_time_factor: float | None = None
    """Of transcripts: seconds computed over seconds of audio."""
    from_root: Change | None = None
    """Against the model at full precision; None for the model itself."""
    from_parent: Change | None = None
    """Against the variant without its last step."""
    from_rounding: Change | None = None
    """Of a calibrated method: against rounding to nearest on the same grid, if that is reported too."""

    def changes(self) -> list[Change]:
        """Return the comparisons that are shown."""
        return [change for change in (self.from_root, self.from_parent, self.from_rounding) if change]


def read(path: str, recipe: dict[str, Any], model: str) -> Score:
    """Return the score that an evaluation's folder holds, compared with nothing yet.

    Args:
        path: the folder.
        recipe: of the evaluation.
        model: the checkpoint folder that the variant's chain begins with.

    Raises:
        OSError: if a file is missing.
    """
    items = pandas.read_parquet(Path(path, "items.parquet"))
    if recipe["kind"] == "perplexity":
        return Score(path, PERPLEXITY, items, rates.perplexity(items), {})
    language = json.loads(Path(path, "result.json").read_text())["language"]
    run = json.loads(Path(path, record.RUN).read_text())
    name = recipe["normalizer"] or normalizers.of_language(language)
    items = rates.with_edits(items, normalizers.normalizer(name, model))
    measure = ERROR_RATES["cer" if language in UNSPACED else "wer"]
    told = {"language": language, "normalizer": f"{name} {normalizers.VERSIONS[name]}"}
    return Score(path, measure, items, rates.error_rates(items), told, run.get("real_time_factor"))


def change(score: Score, against: str, reference: Score) -> Change:
    """Compare a score with that of the variant `against`.

    Raises:
        ValueError: if they are of different windows or clips.
    """
    if score.measure is PERPLEXITY:
        found = significance.perplexity_change(score.items, reference.items)
    else:
        found = significance.error_rate_change(score.items, reference.items, score.measure.key)
    return Change(against, **found, measure=score.measure)
