"""The figures of the report."""

from pathlib import Path

from quantune.report import by_layer
from quantune.report.axes import axes_of
from quantune.report.figures import by_layer as layers
from quantune.report.figures import calibration, tradeoffs
from quantune.report.figures.finetuning import forgetting, loss_curves
from quantune.report.gather import Report


def draw(report: Report, folder: Path, png: bool = False) -> list[str]:
    """Draw every figure that the report has numbers for; return their names, in the order to be read.

    Args:
        report: the numbers.
        folder: where the figures are saved, as SVG.
        png: save them as PNG beside it, too.
    """
    names = []
    for evaluation in report.scored():
        for name, axis in axes_of(report, evaluation).items():
            tradeoffs.draw(report, evaluation, axis, folder / f"{name}.{evaluation}.svg", png)
            names.append(f"{name}.{evaluation}")
    for evaluation in report.scored():
        if report.metric(evaluation).relative and calibration.studies(report, evaluation):
            calibration.draw(report, evaluation, folder / f"calibration.{evaluation}.svg", png)
            names.append(f"calibration.{evaluation}")
    if report.made_by("finetuning"):
        loss_curves(report, folder / "loss-curves.svg", png)
        names.append("loss-curves")
    for fact, studies in by_layer.studies(report).items():
        layers.draw(studies, by_layer.FACTS[fact], folder / f"by-layer-{fact}.svg", png)
        names.append(f"by-layer-{fact}")
    trained = report.made_by("finetuning")
    for family in dict.fromkeys(report.metric(evaluation).family for evaluation in report.scored(*trained)):
        own = [item for item in trained if any(score.metric.family == family for score in item.scores.values())]
        if own:
            forgetting(report, own, folder / f"forgetting-{family}.svg", png)
            names.append(f"forgetting-{family}")
    return names
