"""Quality against the number of calibration samples: a line for each dataset, a point for each seed."""

import json
import math
from collections import defaultdict
from pathlib import Path

from quantune.report.figures.canvas import BLUE, GREEN, GREY, LOG_FROM, ORANGE, PURPLE, canvas
from quantune.report.gather import Report, VariantResult

LINES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"))
DRAWN = {"dataset", "split", "samples", "seed"}  # keys of a recipe that the figure is about


def studies(report: Report, evaluation: str) -> list[list[VariantResult]]:
    """Return the groups of variants with this evaluation that differ in their calibration data alone, by two numbers of
    samples at least.
    """
    groups = defaultdict(list)
    for variant in report.made_by("quantization"):
        score = variant.scores.get(evaluation)
        if "calibration" in variant.facts and score and math.isfinite(score.value):
            same = {key: value for key, value in variant.recipe.items() if key not in DRAWN}
            groups[variant.parent, json.dumps(same, sort_keys=True)].append(variant)
    return [group for group in groups.values() if len({samples(variant) for variant in group}) > 1]


def samples(variant: VariantResult) -> int:
    """Return how many samples a variant was calibrated on; where the data had too few, fewer than requested."""
    return variant.facts["calibration"]["samples"]


def curves(study: list[VariantResult], evaluation: str) -> dict[str, dict[int, list[float]]]:
    """Return dataset -> samples -> values of the metric, one for each seed, both rising."""
    splits = {(variant.recipe["dataset"], variant.recipe["split"]) for variant in study}
    alone = len({dataset for dataset, _ in splits}) == len(splits)
    lines: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for variant in sorted(study, key=samples):
        dataset, split = variant.recipe["dataset"], variant.recipe["split"]
        value = variant.scores[evaluation].value
        lines[dataset if alone else f"{dataset}, {split}"][samples(variant)].append(value)
    return {dataset: dict(points) for dataset, points in lines.items()}


def draw(report: Report, evaluation: str, path: Path, png: bool = False) -> None:
    """Draw a panel for each study: the lines join the seeds' geometric means; full precision and rounding to nearest on
    the same grid are lines across.
    """
    groups = studies(report, evaluation)
    with canvas(path, 0.6 + 3.6 * len(groups), png) as figure:
        legend: dict[str, object] = {}
        for axes, study in zip(figure.subplots(len(groups), 1, squeeze=False).flatten(), groups, strict=True):
            legend |= _panel(axes, report, study, evaluation)
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=4, columnspacing=1.4)


def _panel(axes, report: Report, study: list[VariantResult], evaluation: str) -> dict[str, object]:
    """Draw one study; return label -> handle for the legend."""
    legend, values = {}, []
    for (dataset, points), (colour, marker) in zip(curves(study, evaluation).items(), LINES * len(study), strict=False):
        seeds = [(count, value) for count, at_count in points.items() for value in at_count if math.isfinite(value)]
        means = [(count, math.exp(sum(map(math.log, at_count)) / len(at_count))) for count, at_count in points.items()]
        axes.plot(*zip(*seeds, strict=True), marker, color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
        (legend[dataset],) = axes.plot(*zip(*means, strict=True), marker=marker, color=colour, linewidth=1.8)
        values += [value for _, value in seeds]
    first = study[0].scores[evaluation]
    levels = {"full precision": (first.from_root.against, "-")}
    if first.from_rounding:
        levels["rounding to nearest"] = (first.from_rounding.against, "--")
    for label, (name, style) in levels.items():
        level = report.variants[name].scores[evaluation].value
        legend[label] = axes.axhline(level, color="#555", linestyle=style, linewidth=1.1, zorder=1)
        values += [level] if math.isfinite(level) else []
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({samples(variant) for variant in study}), minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        axes.set_yscale("log")
    recipe = study[0].recipe
    group = f", groups of {recipe['group_size']}" if recipe["group_size"] else ""
    axes.set_title(f"{study[0].parent}, {recipe['method']}, {recipe['bits']} bits{group}")
    axes.set_xlabel(f"calibration samples of {recipe['length']:,} tokens")
    axes.set_ylabel(
        f"{first.metric.label} on {evaluation}\n({'lower' if first.metric.lower_is_better else 'higher'} is better)"
    )
    return legend
