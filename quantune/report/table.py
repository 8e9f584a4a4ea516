"""The report's numbers for other programs: table.csv and metrics.json."""

import csv
import math
from pathlib import Path
from typing import Any

from quantune.artefacts.record import RUN_NUMBERS
from quantune.report.gather import Report, VariantResult


def table(report: Report) -> list[dict[str, Any]]:
    """Return a row for each variant, unrounded; None where something is not known or does not apply."""
    variants = report.variants.values()
    columns = list(dict.fromkeys(name for item in variants if item.performance for name in item.performance.columns()))
    return [_row(variant, columns) for variant in variants]


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the table as CSV; what is None, or no column of a row, is left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_curves(report: Report, folder: Path) -> None:
    """Write the loss curves of each variant that was trained, as CSV (step, train_loss, validation_loss, ...)."""
    folder.mkdir()
    for variant in report.variants.values():
        if variant.curves is not None:
            variant.curves.to_csv(folder / f"{variant.name}.csv", index=False)


def metrics(report: Report) -> dict[str, dict[str, float]]:
    """Return variant -> name -> number, as `dvc metrics` reads it; numbers that are not finite are left out."""
    by_variant = {}
    for variant in report.variants.values():
        numbers = of_variant(report, variant)
        for name in report.evaluations:
            numbers |= {f"{name}.{key}": value for key, value in of_evaluation(report, variant, name).items()}
        by_variant[variant.name] = {key: value for key, value in numbers.items() if math.isfinite(value)}
    return by_variant


def of_variant(report: Report, variant: VariantResult) -> dict[str, float]:
    """Return name -> number of a variant: what its job recorded, its size and its benchmark."""
    numbers = {"size_bytes": variant.size_bytes, "bits_per_weight": variant.bits_per_weight}
    numbers |= variant.facts | _of_run(report, variant.path) | {"parameters": variant.parameters}
    numbers |= variant.performance.columns() if variant.performance else {}
    return {name: value for name, value in numbers.items() if _is_number(value)}


def of_evaluation(report: Report, variant: VariantResult, name: str) -> dict[str, float]:
    """Return name -> number of an evaluation of a variant: those of its metric, and what its job recorded."""
    score = variant.scores.get(name)
    made = score or variant.generations.get(name)
    numbers = _of_run(report, made.path) if made else {}
    if score:
        numbers |= {key: score.numbers[key] for key in score.metric.reported + score.metric.counts}
    return {name: value for name, value in numbers.items() if _is_number(value)}


def _of_run(report: Report, path: str) -> dict[str, Any]:
    run = report.artefacts[path].get("run", {})
    return {name: run.get(name) for name in (*RUN_NUMBERS, "steps_per_second", "real_time_factor")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _row(variant: VariantResult, columns: list[str]) -> dict[str, Any]:
    row = {"variant": variant.name, "listed": variant.listed, "model": variant.model, "parent": variant.parent}
    row |= {"steps": variant.steps, "kind": variant.kind, "parameters": variant.parameters}
    row |= {"trainable_parameters": variant.facts.get("trainable_parameters")}
    row |= {"size_bytes": variant.size_bytes, "bits_per_weight": variant.bits_per_weight}
    row |= dict.fromkeys(columns) | (variant.performance.columns() if variant.performance else {})
    for name, score in variant.scores.items():
        for metric in score.metric.reported:
            ends = [f"{metric}{end}" for end in ("", "_error", "_low", "_high")]
            row |= {f"{name}.{key}": score.numbers[key] for key in ends}
        row |= {f"{name}.{key}": score.numbers[key] for key in score.metric.counts}
        row |= {} if score.real_time_factor is None else {f"{name}.real_time_factor": score.real_time_factor}
        for reference, change in (("full_precision", score.from_root), ("parent", score.from_parent)):
            prefix = f"{name}.change_from_{reference}"
            row[prefix] = change.change if change else None
            row |= {f"{prefix}_{key}": getattr(change, key, None) for key in ("low", "high", "p_value")}
            row[f"{prefix}_p_in_family"] = change.p_in_family if change else None
        row[f"{name}.group"] = score.letters
    return row
