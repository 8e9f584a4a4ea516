"""Figures of fine-tuning: loss curves, and what was gained and forgotten."""

import math
from pathlib import Path

from quantune.report.figures.canvas import BLUE, GREEN, GREY, LOG_FROM, ORANGE, PURPLE, canvas
from quantune.report.gather import Report, VariantResult

ROLES = {"target": ("o", "target domain"), "general": ("D", "general"), "other": ("s", "other")}
OTHER = ".validation_loss"
"""End of the columns of other datasets' validation losses, after the dataset."""
OTHERS, MARKERS = (GREEN, PURPLE, GREY), ("s", "^", "v", "P", "X")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def loss_curves(report: Report, path: Path, png: bool = False) -> None:
    """Draw training and validation loss over optimizer steps, a panel for each fine-tuned variant."""
    trained = [variant for variant in report.made_by("finetuning") if variant.curves is not None]
    columns = min(2, len(trained))
    rows = math.ceil(len(trained) / columns)
    with canvas(path, 0.7 + 2.5 * rows, png) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axes in panels[len(trained) :]:
            axes.set_visible(False)
        looks = _looks(trained)
        for axes, variant in zip(panels, trained, strict=False):
            for column, (label, colour, marker) in looks.items():
                if column in variant.curves:
                    curve = variant.curves[["step", column]].dropna()
                    axes.plot(curve.step, curve[column], color=colour, marker=marker, markersize=4, label=label)
            axes.set_title(variant.name)
            axes.set_xlabel("optimizer step")
        for axes in panels[::columns]:
            axes.set_ylabel("loss, nats per token")
        handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)


def _looks(trained: list[VariantResult]) -> dict[str, tuple[str, str, str]]:
    """Return column of the loss curves -> its label, colour and marker."""
    looks = {"train_loss": ("training", BLUE, "o"), "validation_loss": ("validation", ORANGE, "D")}
    others = dict.fromkeys(column for variant in trained for column in variant.curves if column.endswith(OTHER))
    for place, column in enumerate(others):
        label, number = f"validation on {column.removesuffix(OTHER)}", place // len(OTHERS)
        looks[column] = (label, OTHERS[place % len(OTHERS)], MARKERS[number % len(MARKERS)])
    return looks


def forgetting(report: Report, trained: list[VariantResult], path: Path, png: bool = False) -> None:
    """Draw what each fine-tuning changed against its parent, with 95 % intervals, a row for each variant.

    The metrics of all of them are of one family.
    """
    metrics = list(dict.fromkeys(score.metric for variant in trained for score in variant.scores.values()))
    unit = "%" if metrics[0].relative else ""
    apart = 0.18 if len(report.scored(*trained)) > 2 else 0  # rows between the marks of one variant
    with canvas(path, 1.5 + 0.62 * len(trained), png) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color="#333333", linewidth=1)
        for row, variant in enumerate(trained):
            changes = [100 * score.from_parent.change for score in variant.scores.values() if not score.broken]
            if changes:
                axes.plot([min(changes), max(changes)], [row, row], color="#d5d8dc", linewidth=5, zorder=1)
            for place, (name, score) in enumerate(variant.scores.items()):
                marker, role = ROLES[report.role(variant, name)]
                colour, change = COLOURS[place % len(COLOURS)], score.from_parent
                height = row + apart * (place - (len(variant.scores) - 1) / 2)
                middle, low, high = (100 * value for value in (change.change, change.low, change.high))
                label = f"{name} ({role})" if name != role else name
                bar = [[middle - low], [high - middle]]
                axes.errorbar(middle, height, xerr=bar, fmt=marker, color=colour, markersize=7, capsize=3, label=label)
        axes.set_yticks(range(len(trained)), [variant.name for variant in trained])
        axes.set_ylim(len(trained) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{value:+,g} {unit}".rstrip().replace("-", "−") if value else "0"
        )
        if max(abs(value) for value in axes.get_xlim()) > 100 * LOG_FROM:
            axes.set_xscale("symlog", linthresh=100)
        label = " or ".join(metric.label for metric in metrics)
        points = "" if metrics[0].relative else ", points"
        axes.set_xlabel(f"change of {label} against the parent{points}  (← better | worse →)")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=3)
