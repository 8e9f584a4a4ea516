"""Figure of numbers by layer: a panel for each variant, a line for each kind of linear layer."""

import math
from pathlib import Path

from quantune.report.by_layer import Study
from quantune.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, canvas

COLOURS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, GREY), ("o", "D", "s", "^", "v")


def draw(studies: list[Study], label: str, path: Path, png: bool = False) -> None:
    """Draw the numbers of all variants over the layers."""
    columns = min(2, len(studies))
    rows = math.ceil(len(studies) / columns)
    names = list(dict.fromkeys(part for study in studies for part in study.parts))
    with canvas(path, height=0.9 + 2.5 * rows, png=png) as figure:
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axes in panels[len(studies) :]:
            axes.set_visible(False)
        for axes, study in zip(panels, studies, strict=False):
            for part, numbers in study.parts.items():
                place = names.index(part)
                colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
                axes.plot(list(numbers), list(numbers.values()), color=colour, marker=marker, markersize=4, label=part)
            axes.set_title(study.variant)
            axes.set_xlabel("layer")
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[::columns]:
            axes.set_ylabel(label)
        handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4)
