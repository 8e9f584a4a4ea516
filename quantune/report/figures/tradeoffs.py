"""Quality against what it costs: size, memory, speed. A point a variant, and the line of the best trade-offs."""

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from quantune.report.axes import Axis, Measured, metric_of, quality
from quantune.report.figures.canvas import BLUE, GREEN, GREY, LOG_FROM, ORANGE, canvas
from quantune.report.gather import Report

KINDS = {
    "model": ("o", "#333333", "full precision"),
    "quantization": ("s", BLUE, "quantized"),
    "finetuning": ("^", ORANGE, "adapter"),
    "merge": ("D", GREEN, "merged"),
}
NEAR = 9  # points; a name further above or below gets a line to its point
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
LEADER = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4}
# Where a name may stand, the best first: offset from its point (points), horizontal and vertical alignment.
PLACES = [
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, NEAR, "center", "bottom"),
    (0, -NEAR, "center", "top"),
    *((x, y, "left" if x > 0 else "right", "center") for y in (14, -14, 26, -26, 40, -40) for x in (14, -14)),
]


def draw(report: Report, evaluation: str, axis: Axis, path: Path, png: bool = False) -> None:
    """Draw quality with 95 % intervals against an axis (bars: its slowest and fastest repeat), and the best trade-offs.

    Quality is the evaluation's metric; with several models, the one that compares them whatever their tokens are.
    """
    variants = report.having(evaluation)
    alone, metric = not report.of_several_models(evaluation), metric_of(report, evaluation)
    label = metric.label if metric.scale == 1 else f"{metric.label}, %,"
    direction = "lower" if metric.lower_is_better else "higher"
    scores = {variant.name: _reach(quality(variant.scores[evaluation], metric)) for variant in variants}
    measured = [item for item in variants if axis.of(item)]
    shown = [item for item in measured if math.isfinite(scores[item.name][0])]
    unit, power = (
        _unit(max((item[0] for item in map(axis.of, measured)), default=1)) if "{unit}" in axis.label else ("", 1)
    )
    points = [(axis.of(item)[0] / power, scores[item.name][0], item) for item in shown]
    with canvas(path, 5.0, png) as figure:
        axes = figure.add_subplot()
        for kind, (marker, colour, name) in KINDS.items():
            chosen = [point for point in points if point[2].kind == kind]
            if chosen:
                up = list(zip(*(scores[item.name][1:] for _, _, item in chosen), strict=True))
                x, y = [point[0] for point in chosen], [point[1] for point in chosen]
                across = [axis.of(item) for _, _, item in chosen]
                across = [[(a - low) / power for a, low, _ in across], [(high - a) / power for a, _, high in across]]
                across = across if any(map(any, across)) else None
                style = {"color": colour, "ecolor": f"{colour}66", "markersize": 7, "label": name}
                axes.errorbar(x, y, up, across, fmt=marker, **style)
        sign = -1 if axis.more_is_better else 1
        worse = 1 if metric.lower_is_better else -1
        front = best_tradeoffs([(sign * x, worse * y) for x, y, _ in points])
        front = [(sign * x, worse * y) for x, y in front]
        if len(front) > 1:
            x, y = zip(*front, strict=True)
            axes.step(x, y, where="post", color=GREY, linestyle=":", linewidth=1.4, zorder=1, label=axis.best)
        if axis.limit is not None and points:
            axes.axvline(axis.limit / power, color="#333333", linestyle="--", linewidth=1, zorder=1, label="limit")
        _scale(axes, [y for _, y, _ in points])
        axes.margins(x=0.18, y=0.1)
        axes.set_xlabel(axis.label.format(unit=unit) + (" (higher is better)" if axis.more_is_better else ""))
        axes.set_ylabel(f"{label} on {evaluation} ({direction} is better)")
        if shown:
            figure.legend(loc="outside upper left", ncols=5, columnspacing=1.4, handletextpad=0.4)
        if missing := len(measured) - len(shown):
            axes.set_title(f"{missing} not shown: not a finite number", color="#555")
        names = [(alone and item.steps) or item.name for item in shown]
        bars = [max(scores[item.name][1:]) for item in shown]
        _label(figure, axes, [(x, y, bar, name) for (x, y, _), bar, name in zip(points, bars, names, strict=True)])


def _reach(measured: Measured) -> Measured:
    """Return a value, and how far its interval reaches down and up."""
    value, low, high = measured
    return value, value - low, high - value


def best_tradeoffs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates (smaller is better), by the first coordinate."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _unit(size: int) -> tuple[str, int]:
    """Return the decimal unit for sizes up to this many bytes, and its bytes."""
    return next(((unit, power) for unit, power in (("GB", 10**9), ("MB", 10**6)) if size >= power), ("kB", 1000))


def _scale(axes: Axes, values: list[float]) -> None:
    """Make the upright axis logarithmic, with plain numbers at its ticks, if its values are far apart."""
    if values and min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value:.0e}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _label(figure: Figure, axes: Axes, points: list[tuple[float, float, float, str]]) -> None:
    """Name each point (x, y, half the length of its bar, name), at the first place around it that hides least of the
    points, bars and other names.
    """
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    taken = []
    for x, y, error, _ in points:
        (left, middle), (_, low), (_, high) = axes.transData.transform([(x, y), (x, y - error), (x, y + error)])
        taken.append(Bbox.from_extents(left - 6, middle - 6, left + 6, middle + 6))
        if math.isfinite(low) and math.isfinite(high):
            taken.append(Bbox.from_extents(left - 2, low, left + 2, high))
    for x, y, _, text in sorted(points, key=lambda point: (point[1], point[0])):
        best = None
        for right, up, horizontal, vertical in PLACES:
            line = LEADER if abs(up) > NEAR else None
            style = {"ha": horizontal, "va": vertical, "bbox": HALO, "arrowprops": line}
            note = axes.annotate(text, (x, y), (right, up), textcoords="offset points", fontsize=9, **style)
            box = note.get_window_extent(renderer)
            hidden = sum(_overlap(box, other) for other in taken) + (box.width * box.height - _overlap(box, axes.bbox))
            if best is None or hidden < best[0]:
                if best:
                    best[1].remove()
                best = (hidden, note, box)
            else:
                note.remove()
            if hidden == 0:
                break
        taken.append(best[2])


def _overlap(one: Bbox, other: Bbox) -> float:
    """Return the area two boxes share, in square pixels."""
    shared = Bbox.intersection(one, other)
    return shared.width * shared.height if shared else 0.0
