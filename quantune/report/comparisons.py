"""Variants of a model compared together: p-values of the family, groups that cannot be told apart, seeds.

Variants are those of `gather`, which calls this module.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy

from quantune.evaluations.metrics import families
from quantune.report.scores import TOLERANCE

KINDS = ("from_root", "from_parent", "from_rounding")


@dataclass(frozen=True)
class Seeds:
    """Variants that differ in their seeds alone."""

    variants: list[Any]
    evaluation: str
    spread: float
    """Standard deviation between the seeds, in the unit of a change: relative, or a difference of shares."""
    sampling: float
    """Standard error of the change of one of them, on average: how much other windows or clips would change it."""


def together(variants: dict[str, Any], tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return the variants with p-values for the families that their changes belong to, and with letters.

    A family: the variants of a model in one evaluation, compared with the model, with their parents, or with rounding.
    """
    scores = {name: dict(variant.scores) for name, variant in variants.items()}
    for evaluation, names in _families(variants):
        for kind in KINDS:
            changes = {name: getattr(scores[name][evaluation], kind) for name in names}
            changes = {name: replace(item, tolerance=tolerance) for name, item in changes.items() if item}
            compared = sum(not math.isnan(item.p_value) for item in changes.values())  # others are not adjusted for
            adjusted = families.holm([item.p_value for item in changes.values()])
            within = families.holm([item.p_within() for item in changes.values()])
            for (name, item), p_value, claim in zip(changes.items(), adjusted, within, strict=True):
                item = replace(item, adjusted=p_value, within=claim, family=compared)
                scores[name][evaluation] = replace(scores[name][evaluation], **{kind: item})
        for name, letters in _letters(evaluation, names, scores).items():
            scores[name][evaluation] = replace(scores[name][evaluation], letters=letters)
    return {name: replace(variant, scores=scores[name]) for name, variant in variants.items()}


def _families(variants: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each evaluation with the variants of one model that it was made of."""
    members: dict[tuple[str, str], list[str]] = {}
    for name, variant in variants.items():
        for evaluation in variant.scores:
            members.setdefault((evaluation, variant.model), []).append(name)
    yield from ((evaluation, names) for (evaluation, _), names in members.items())


def _letters(evaluation: str, names: list[str], scores: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the letters of the variants with numbers; none if there are more groups than letters."""
    known = [name for name in names if math.isfinite(scores[name][evaluation].value)]
    if len(known) < 2:
        return {}
    metric = scores[known[0]][evaluation].metric
    parts = [metric.parts(scores[name][evaluation].items) for name in known]
    compared = families.pairs(numpy.stack([part for part, _ in parts]), parts[0][1], metric.item == "window")
    sign = 1 if metric.lower_is_better else -1
    letters = families.letters([sign * scores[name][evaluation].value for name in known], compared)
    return dict(zip(known, letters, strict=True)) if letters else {}


def seeds(variants: dict[str, Any]) -> list[Seeds]:
    """Return the groups of variants whose chains differ in seeds alone, with what the seeds change."""
    groups: dict[str, list[Any]] = {}
    for variant in variants.values():
        if variant.parent:
            groups.setdefault(_without_seed(variant, variants), []).append(variant)
    spreads = []
    for group in groups.values():
        drawn = {json.dumps([variants[name].recipe.get("seed") for name in (*it.ancestors, it.name)]) for it in group}
        if len(group) < 2 or len(drawn) < len(group):
            continue
        for evaluation in group[0].scores:
            changes = [item.scores[evaluation].from_root for item in group if evaluation in item.scores]
            known = [change.estimate for change in changes if change and change.estimate]
            known = [item for item in known if math.isfinite(item.value) and math.isfinite(item.error)]
            if len(known) == len(group):
                spread = float(numpy.std([item.value for item in known], ddof=1))
                sampling = math.sqrt(float(numpy.mean([item.error**2 for item in known])))
                spreads.append(Seeds(group, evaluation, spread, sampling))
    return spreads


def _without_seed(variant: Any, variants: dict[str, Any]) -> str:
    """Return what makes a variant, but for the seeds of its steps."""
    chain = [*variant.ancestors[1:], variant.name]
    steps = [{key: value for key, value in variants[name].recipe.items() if key != "seed"} for name in chain]
    kinds = [variants[name].kind for name in chain]
    return json.dumps([variant.model, kinds, steps], sort_keys=True)
