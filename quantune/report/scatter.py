"""The data of the interactive picture: quality against size, memory and speed, for the script of the page."""

import math
from typing import Any

from quantune.core import units
from quantune.report import axes, wording
from quantune.report.axes import Axis
from quantune.report.gather import Report, VariantResult
from quantune.report.scores import Score
from quantune.report.shipping import AnswerText


def data(report: Report, texts: list[AnswerText]) -> dict[str, Any]:
    """Return the variants, and for each evaluation what quality and what costs can be drawn.

    A point is [value, low, high, text], by the place of its variant; ends that are not known are None. Changes of a
    relative metric are ratios: 1.05 is five per cent more.
    """
    variants = list(report.variants.values())
    within = ("shown", "measured")
    marks = {item.variant: "ship" if item.standing in within else "near" for item in texts if item.variant}
    marks |= {option.variant: "option" for answer in texts for option in answer.options}
    places = {item.name: place for place, item in enumerate(variants)}
    evaluations = report.scored()
    qualities = [view(report, name, places) for view in (_change, _level) for name in evaluations]
    costs = {
        name: [_cost(axis, report.having(name), places) for axis in axes.axes_of(report, name).values()]
        for name in evaluations
    }
    return {
        "variants": [_variant(report, item, marks) for item in variants],
        "qualities": [item for item in qualities if item["points"]],
        "costs": costs,
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


def _level(report: Report, name: str, places: dict[str, int]) -> dict[str, Any]:
    """Return the metric itself, with the interval of each value alone."""
    metric = axes.metric_of(report, name)
    points = {}
    for item in report.having(name):
        ends = [_finite(value) for value in axes.quality(item.scores[name], metric)]
        points[places[item.name]] = [*ends, _text(item.scores[name])]
    label = f"{metric.label[0].upper()}{metric.label[1:]} on {name}"
    unit = "" if metric.scale == 1 else "%"
    return _quality(report, name, label, unit, metric.lower_is_better) | {"points": points}


def _change(report: Report, name: str, places: dict[str, int]) -> dict[str, Any]:
    """Return the change against the model at full precision, with its paired interval."""
    metric, limit = report.metric(name), report.limits.loss
    points = {}
    for item in report.having(name):
        change = item.scores[name].from_root
        known = (change.change, change.low, change.high) if change else (0.0, 0.0, 0.0)
        ends = [_finite(1 + value if metric.relative else 100 * value) for value in known]
        points[places[item.name]] = [*ends, _text(item.scores[name])]
    label = f"Change of {metric.label} on {name}"
    if limit is not None:
        limit = limit if metric.lower_is_better else -limit
        limit = 1 + limit if metric.relative else 100 * limit
    quality = _quality(report, name, label, metric.unit, metric.lower_is_better)
    return quality | {
        "ratio": metric.relative,
        "signed": True,
        "limit": limit,
        "points": points if len(points) > 1 else {},
    }


def _quality(report: Report, name: str, label: str, unit: str, lower: bool) -> dict[str, Any]:
    alone = not report.of_several_models(name)
    return {"evaluation": name, "label": label, "unit": unit, "lower": lower, "alone": alone} | {
        "ratio": False,
        "signed": False,
        "limit": None,
    }


def _text(score: Score) -> str:
    change = f"; against {score.from_root.against} {wording.briefly(score.from_root)}" if score.from_root else ""
    return f"{score.metric.label} {wording.with_interval(score)}{change}"


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
