"""What the report's figures have in common: the same bytes from the same numbers, text kept as text, colours that
colour-blind readers can tell apart (Okabe and Ito).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
WIDTH = 8.0  # inches; at 800 px a point of text is 1.4 px
DOTS = 200  # of a PNG, in an inch
LOG_FROM = 3  # largest over smallest value from which an axis is logarithmic


@contextmanager
def canvas(path: Path, height: float, png: bool = False) -> Iterator[Figure]:
    """Give a figure to draw on, of `height` inches, and save it as SVG; `png`: as PNG beside it, too."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        if png:
            figure.savefig(path.with_suffix(".png"), dpi=DOTS, metadata={"Software": None})
