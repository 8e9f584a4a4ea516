"""The report's numbers for other programs: table.csv and metrics.json."""

import csv
import math
from pathlib import Path
from typing import Any

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
        numbers = {"size_bytes": variant.size_bytes}
        if variant.performance:
            measured = variant.performance.columns().items()
            numbers |= {name: value for name, value in measured if value is not None}
        for name, score in variant.scores.items():
            numbers |= {
                f"{name}.{metric}": score.numbers[metric] for metric in score.metric.reported + score.metric.counts
            }
        by_variant[variant.name] = {key: value for key, value in numbers.items() if math.isfinite(value)}
    return by_variant


def _row(variant: VariantResult, columns: list[str]) -> dict[str, Any]:
    row = {"variant": variant.name, "listed": variant.listed, "model": variant.model, "parent": variant.parent}
    row |= {"steps": variant.steps, "kind": variant.kind, "parameters": variant.parameters}
    row |= {"trainable_parameters": variant.facts.get("trainable_parameters")}
    row |= {"size_bytes": variant.size_bytes, "bits_per_weight": variant.bits_per_weight}
    row |= dict.fromkeys(columns) | (variant.performance.columns() if variant.performance else {})
    for name, score in variant.scores.items():
        for metric in score.metric.reported:
            row |= {f"{name}.{key}": score.numbers[key] for key in (metric, f"{metric}_error")}
        row |= {f"{name}.{key}": score.numbers[key] for key in score.metric.counts}
        row |= {} if score.real_time_factor is None else {f"{name}.real_time_factor": score.real_time_factor}
        for reference, change in (("full_precision", score.from_root), ("parent", score.from_parent)):
            prefix = f"{name}.change_from_{reference}"
            row[prefix] = change.change if change else None
            row |= {f"{prefix}_{key}": getattr(change, key, None) for key in ("low", "high", "p_value")}
    return row
