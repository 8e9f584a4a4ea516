"""The data of the interactive picture: quality against size, memory and speed, for the script of the page."""

import math
from typing import Any

from quantune.core import units
from quantune.report import axes, wording
from quantune.report.axes import Axis
from quantune.report.gather import Report, VariantResult
from quantune.report.shipping import Told


def data(report: Report, told: list[Told]) -> dict[str, Any]:
    """Return variants, and for each evaluation its qualities and costs, in the order of the variants.

    Qualities and costs are lists [value, low, high, text], or None where nothing was measured.
    """
    variants = list(report.variants.values())
    marks = {answer.variant: "ship" for answer in told if answer.variant}
    marks |= {option.variant: "option" for answer in told for option in answer.options}
    places = {item.name: place for place, item in enumerate(variants)}
    return {
        "variants": [_variant(report, item, marks) for item in variants],
        "evaluations": [_evaluation(report, name, places) for name in report.scored()],
    }


def _variant(report: Report, variant: VariantResult, marks: dict[str, str]) -> dict[str, Any]:
    chain = [*(report.variants[name] for name in variant.ancestors), variant]
    return {
        "name": variant.name,
        "model": variant.model,
        "steps": variant.steps or variant.name,
        "kind": variant.kind,
        "methods": [it.recipe["method"] for it in chain if "method" in it.recipe],
        "mark": marks.get(variant.name, ""),
        "path": variant.path,
    }


def _evaluation(report: Report, name: str, places: dict[str, int]) -> dict[str, Any]:
    metric, variants = axes.metric_of(report, name), report.having(name)
    unit = "" if metric.scale == 1 else " %"
    return {
        "name": name,
        "label": f"{metric.label[0].upper()}{metric.label[1:]} on {name}",
        "unit": unit,
        "lower": metric.lower_is_better,
        "alone": not report.of_several_models(name),
        "points": {places[item.name]: _quality(item, name, metric) for item in variants},
        "costs": [_cost(axis, variants, places) for axis in axes.axes_of(report, name).values()],
    }


def _quality(variant: VariantResult, name: str, metric: Any) -> list[Any]:
    score = variant.scores[name]
    text = f"{metric.label} {wording.with_interval(score, metric.key)}"
    if score.from_root:
        text += f"; against {score.from_root.against} {wording.briefly(score.from_root)}"
    return [*(_finite(value) for value in axes.quality(score, metric)), text]


def _cost(axis: Axis, variants: list[VariantResult], places: dict[str, int]) -> dict[str, Any]:
    in_bytes = "{unit}" in axis.label
    points = {}
    for item in variants:
        if measured := axis.of(item):
            text = units.size(measured[0]) if in_bytes else wording.digits(measured[0])
            points[places[item.name]] = [*measured, text]
    return {
        "name": axis.short,
        "label": axis.label.replace(", {unit}", ""),
        "bytes": in_bytes,
        "more": axis.more_is_better,
        "limit": axis.limit,
        "points": points,
    }


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
