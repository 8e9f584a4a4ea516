"""The recommendation as plain data, for other programs."""

from typing import Any

from quantune.report import recommendation
from quantune.report.gather import Report


def recommended(report: Report) -> dict[str, dict[str, Any]]:
    """Return model -> the variant to ship, how it stands to the limits, and the runner-up.

    Without limits, the variant is the balanced choice; `smallest` and `best` are named beside it.
    """
    by_model = {}
    for answer in recommendation.answers(report):
        choice = answer.balanced or answer.choice
        named = {"variant": choice.candidate.variant.name, "standing": choice.standing}
        named["runner_up"] = choice.runner_up.variant.name if choice.runner_up else None
        if answer.balanced:
            named |= {"smallest": answer.smallest.variant.name, "best": answer.choice.candidate.variant.name}
        by_model[answer.model.name] = named
    return by_model
