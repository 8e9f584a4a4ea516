"""The report's figures: which there are, and those of fine-tuning. The others are in `quantune.report.figures.tradeoffs` and
`quantune.report.figures.calibration`.
"""

from pathlib import Path

from quantune.report.figures import calibration, tradeoffs
from quantune.report.figures.finetuning import forgetting, loss_curves
from quantune.report.gather import Report

FORGETTING = {"perplexity": "forgetting", "transcription": "forgetting-speech"}  # kind of evaluation -> figure


def draw(report: Report, folder: Path) -> list[str]:
    """Draw every figure that the report has numbers for; return their names, in the order to be read."""
    names = []
    for evaluation in report.scored():
        for name, axis in tradeoffs.axes_of(report, evaluation).items():
            tradeoffs.draw(report, evaluation, axis, folder / f"{name}.{evaluation}.svg")
            names.append(f"{name}.{evaluation}")
    for evaluation in report.named("perplexity"):
        if calibration.studies(report, evaluation):
            calibration.draw(report, evaluation, folder / f"calibration.{evaluation}.svg")
            names.append(f"calibration.{evaluation}")
    if report.made_by("finetuning"):
        loss_curves(report, folder / "loss-curves.svg")
        names.append("loss-curves")
    for kind, name in FORGETTING.items():
        evaluations = [item for item in report.scored() if report.evaluations[item]["kind"] == kind]
        trained = [item for item in report.made_by("finetuning") if any(name in item.scores for name in evaluations)]
        if trained:
            forgetting(report, trained, folder / f"{name}.svg")
            names.append(name)
    return names
