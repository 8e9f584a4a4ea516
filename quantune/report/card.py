"""The numbers of one variant for a model card, and the recommendation, as plain data for other programs."""

import math
from typing import Any

from quantune.report import recommendation
from quantune.report.gather import Report
from quantune.report.scores import Change, Score


def recommended(report: Report) -> dict[str, dict[str, Any]]:
    """Return model -> the variant to ship, how it stands to the limits, and the runner-up.

    Without limits, the variant is the balanced choice; `smallest` and `best` are named beside it.
    """
    found = {}
    for answer in recommendation.answers(report):
        choice = answer.balanced or answer.choice
        named = {"variant": choice.candidate.variant.name, "standing": choice.standing}
        named["runner_up"] = choice.runner_up.variant.name if choice.runner_up else None
        if answer.balanced:
            named |= {"smallest": answer.smallest.variant.name, "best": answer.choice.candidate.variant.name}
        found[answer.model.name] = named
    return found


def numbers(report: Report, name: str) -> dict[str, Any]:
    """Return the numbers of a variant: size, memory, speed, and each evaluation with intervals; None: not known.

    Shares are not in per cent; a change of perplexity is relative, one of an error rate a difference.
    """
    variant = report.variants[name]
    standings = [item for item in recommended(report).values() if item["variant"] == name]
    return {
        "variant": name,
        "model": variant.model,
        "recommended": standings[0]["standing"] if standings else None,
        "size_bytes": variant.size_bytes,
        "bits_per_weight": variant.bits_per_weight,
        "machine": variant.performance.machine if variant.performance else None,
        "performance": variant.performance.columns() if variant.performance else {},
        "evaluations": {
            evaluation: _evaluation(score, report.evaluations[evaluation])
            for evaluation, score in variant.scores.items()
        },
    }


def _evaluation(score: Score, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the metric with its interval, the data, and the changes against the model and the parent."""
    key = score.metric.key
    value, low, high = (_finite(score.numbers[f"{key}{end}"]) for end in ("", "_low", "_high"))
    return {
        "metric": key,
        "label": score.metric.label,
        "dataset": recipe.get("dataset"),
        "split": recipe.get("split"),
        "measured_over": "" if score.broken else score.metric.amount(score.numbers),
        "value": value,
        "low": low,
        "high": high,
        "interval_by": score.numbers.get("method"),
        "lower_is_better": score.metric.lower_is_better,
        "changes": [_change(change) for change in dict.fromkeys((score.from_root, score.from_parent)) if change],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "against": change.against,
        "change": _finite(change.change),
        "low": _finite(change.low),
        "high": _finite(change.high),
        "p_value": _finite(change.p_in_family),
        "compared": change.family,
        "verdict": change.verdict,
        "loss_below": change.tolerance if change.bounded else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
