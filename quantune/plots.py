"""The report's figures as SVG: the same bytes from the same numbers, text kept as text, colours that colour-blind
readers can tell apart (Okabe and Ito) and that shape repeats.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from quantune.report import Report
from quantune.statistics import Z95

STYLE = {
    "svg.hashsalt": "quantune",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#333",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#555",
    "ytick.color": "#555",
    "legend.frameon": False,
    "grid.color": "#e6e8eb",
    "axes.grid": True,
    "axes.axisbelow": True,
}
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a8f98"
KINDS = {
    "model": ("o", "#333333", "full precision"),
    "quantization": ("s", BLUE, "quantized"),
    "finetuning": ("^", ORANGE, "adapter"),
    "merge": ("D", GREEN, "merged"),
}
ROLES = {"target": ("o", "target domain"), "general": ("D", "general"), "other": ("s", "other")}
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
WIDTH = 8.0  # inches; at 800 px a point of text is 1.4 px
LOG_FROM = 3  # largest over smallest value from which an axis is logarithmic
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


def draw(report: Report, folder: Path) -> list[str]:
    """Draw every figure that the report has numbers for; return their names, in the order to be read."""
    names = []
    for evaluation in report.named("perplexity"):
        quality_size(report, evaluation, folder / f"quality-size.{evaluation}.svg")
        names.append(f"quality-size.{evaluation}")
    if report.made_by("finetuning"):
        loss_curves(report, folder / "loss-curves.svg")
        names.append("loss-curves")
        if report.named("perplexity"):
            forgetting(report, folder / "forgetting.svg")
            names.append("forgetting")
    return names


def quality_size(report: Report, evaluation: str, path: Path) -> None:
    """Draw quality against size on disk, a point a variant, with 95 % intervals and the line of the best trade-offs.

    Quality is token perplexity; where models differ, and their tokens with them, it is bits per byte.
    """
    alone = len(report.models) == 1
    measure, label = ("token_perplexity", "perplexity") if alone else ("bits_per_byte", "bits per byte")
    scores = {variant.name: variant.scores[evaluation].numbers for variant in report.variants.values()}
    shown = [item for item in report.variants.values() if math.isfinite(scores[item.name][measure])]
    with _figure(path, height=5.0) as figure:
        axes = figure.add_subplot()
        unit, power = _unit(max(item.size_bytes for item in report.variants.values()))
        points = [(item.size_bytes / power, scores[item.name][measure], item) for item in shown]
        for kind, (marker, colour, told) in KINDS.items():
            chosen = [point for point in points if point[2].kind == kind]
            if chosen:
                bars = [Z95 * scores[item.name][f"{measure}_error"] for _, _, item in chosen]
                x, y = [point[0] for point in chosen], [point[1] for point in chosen]
                axes.errorbar(x, y, bars, fmt=marker, color=colour, ecolor=f"{colour}66", markersize=7, label=told)
        front = best_tradeoffs([point[:2] for point in points])
        if len(front) > 1:
            x, y = zip(*front, strict=True)
            axes.step(x, y, where="post", color=GREY, linestyle=":", linewidth=1.4, zorder=1, label="best for its size")
        values = [y for _, y, _ in points]
        _scale(axes, values)
        axes.margins(x=0.18, y=0.1)
        axes.set_xlabel(f"size on disk of what must be loaded, {unit}")
        axes.set_ylabel(f"{label} on {evaluation} (lower is better)")
        if shown:
            figure.legend(loc="outside upper left", ncols=5, columnspacing=1.4, handletextpad=0.4)
        if missing := len(report.variants) - len(shown):
            axes.set_title(f"{missing} not shown: not a finite number", color="#555")
        names = [(alone and item.steps) or item.name for item in shown]
        bars = [Z95 * scores[item.name][f"{measure}_error"] for item in shown]
        _label(figure, axes, [(x, y, bar, name) for (x, y, _), bar, name in zip(points, bars, names, strict=True)])


def best_tradeoffs(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both coordinates (smaller is better), by the first coordinate."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def loss_curves(report: Report, path: Path) -> None:
    """Draw training and validation loss over optimizer steps, a panel for each fine-tuned variant."""
    trained = [variant for variant in report.made_by("finetuning") if variant.curves is not None]
    columns = min(2, len(trained))
    rows = math.ceil(len(trained) / columns)
    with _figure(path, height=0.7 + 2.5 * rows) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axes in panels[len(trained) :]:
            axes.set_visible(False)
        for axes, variant in zip(panels, trained, strict=False):
            for column, colour, marker in (("train_loss", BLUE, "o"), ("validation_loss", ORANGE, "D")):
                curve = variant.curves[["step", column]].dropna()
                axes.plot(curve.step, curve[column], color=colour, marker=marker, markersize=4)
            axes.set_title(variant.name)
            axes.set_xlabel("optimizer step")
        for axes in panels[::columns]:
            axes.set_ylabel("loss, nats per token")
        handles = panels[0].get_lines()
        figure.legend(handles, ["training", "validation"], loc="outside upper left", ncols=2)


def forgetting(report: Report, path: Path) -> None:
    """Draw what each fine-tuning changed against what it was applied to, with 95 % intervals, a row a variant."""
    trained = report.made_by("finetuning")
    apart = 0.18 if len(report.named("perplexity")) > 2 else 0  # rows between the marks of one variant
    with _figure(path, height=1.5 + 0.62 * len(trained)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color="#333333", linewidth=1)
        for row, variant in enumerate(trained):
            changes = [100 * score.from_parent.change for score in variant.scores.values()]
            axes.plot([min(changes), max(changes)], [row, row], color="#d5d8dc", linewidth=5, zorder=1)
            for place, (name, score) in enumerate(variant.scores.items()):
                marker, told = ROLES[report.role(variant, name)]
                colour, change = COLOURS[place % len(COLOURS)], score.from_parent
                height = row + apart * (place - (len(variant.scores) - 1) / 2)
                middle, low, high = (100 * value for value in (change.change, change.low, change.high))
                label = f"{name} ({told})" if name != told else name
                bar = [[middle - low], [high - middle]]
                axes.errorbar(middle, height, xerr=bar, fmt=marker, color=colour, markersize=7, capsize=3, label=label)
        axes.set_yticks(range(len(trained)), [variant.name for variant in trained])
        axes.set_ylim(len(trained) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+,.0f} %".replace("-", "−") if value else "0")
        if max(abs(value) for value in axes.get_xlim()) > 100 * LOG_FROM:
            axes.set_xscale("symlog", linthresh=100)
        axes.set_xlabel("change of perplexity against the parent  (← better | worse →)")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=3)


@contextmanager
def _figure(path: Path, height: float) -> Iterator[Figure]:
    """Give a figure to draw on, of `height` inches, and save it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, metadata={"Date": None, "Creator": None})


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
