"""The figures of the report."""

from pathlib import Path

from quantune.report import by_layer
from quantune.report.figures import by_layer as layers
from quantune.report.figures import calibration, tradeoffs
from quantune.report.figures.finetuning import forgetting, loss_curves
from quantune.report.gather import Report


def draw(report: Report, folder: Path) -> list[str]:
    """Draw every figure that the report has numbers for; return their names, in the order to be read."""
    names = []
    for evaluation in report.scored():
        for name, axis in tradeoffs.axes_of(report, evaluation).items():
            tradeoffs.draw(report, evaluation, axis, folder / f"{name}.{evaluation}.svg")
            names.append(f"{name}.{evaluation}")
    for evaluation in report.scored():
        if report.metric(evaluation).relative and calibration.studies(report, evaluation):
            calibration.draw(report, evaluation, folder / f"calibration.{evaluation}.svg")
            names.append(f"calibration.{evaluation}")
    if report.made_by("finetuning"):
        loss_curves(report, folder / "loss-curves.svg")
        names.append("loss-curves")
    for fact, studies in by_layer.studies(report).items():
        layers.draw(studies, by_layer.FACTS[fact], folder / f"by-layer-{fact}.svg")
        names.append(f"by-layer-{fact}")
    trained = report.made_by("finetuning")
    for family in dict.fromkeys(report.metric(evaluation).family for evaluation in report.scored(*trained)):
        own = [item for item in trained if any(score.metric.family == family for score in item.scores.values())]
        if own:
            forgetting(report, own, folder / f"forgetting-{family}.svg")
            names.append(f"forgetting-{family}")
    return names
