"""Print the layer errors and the losses of every quantized checkpoint in a work folder, and of its parent, as JSON.

    snakemake checkpoints --configfile experiments/quality.yaml
    python benchmarks/quality.py work-quality > benchmarks/results/quality.json
    python benchmarks/quality.py                                      # prints the table of docs/quality.md from it

The numbers are those of the guard (quantune/quantizations/arithmetic/quality.py), measured again on the saved
checkpoints; docs/quality.md shows them.
"""

import contextlib
import json
import sys
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter

from quantune.artefacts.record import read_provenance
from quantune.core import hardware
from quantune.planning.config import AnyQuantization
from quantune.quantizations.arithmetic import quality

RESULTS = Path(__file__).parent / "results/quality.json"
STEPS = (
    ("rtn-w8", "int8"),
    ("rtn-w4-g32", "rtn-w4", "rtn-w4-row", "nf4", "fp4", "gptq-w4", "awq-w4"),
    ("rtn-w3", "gptq-w3", "awq-w3"),
)
"""Rows by bits: eight, four, three, then two."""
PACKAGES = ("torch", "transformers", "bitsandbytes", "compressed-tensors")


def measured(folder: Path) -> dict:
    """Return the losses and the largest output error of a quantized checkpoint."""
    made = read_provenance(folder)
    recipe = TypeAdapter(AnyQuantization).validate_python({k: v for k, v in made["recipe"].items() if k != "seed"})
    parent = Path(made["parents"]["parent"][0]["path"])
    (data,) = made["parents"].get("data") or [None]
    source, inputs = recipe.probe(parent, data and Path(data["path"]), made["recipe"].get("seed", 0))
    measures = quality.measure(parent, folder, inputs, made["facts"].get("output_errors") if recipe.rescales else None)
    layer, error = measures.worst()[0]
    return {
        "model": parent.name,
        "recipe": made["recipe"],
        "bits_per_weight": made["facts"]["bits_per_weight"],
        "measured_on": source,
        "loss_before": round(measures.before, 4),
        "loss_after": round(measures.after, 4),
        "unigram_loss": round(measures.unigram, 4),
        "largest_output_error": round(error, 4),
        "layer": layer,
        "destroyed": quality.destroyed(measures),
        "warnings": quality.quality_warnings(measures, recipe.usual_error()),
    }


def main(work: str) -> None:
    """Print the measurements of every quantized checkpoint in `work`."""
    folders = [path for path in sorted(Path(work, "checkpoints").iterdir()) if path.name.count("+") == 1]
    with contextlib.redirect_stdout(sys.stderr):
        results = {folder.name: measured(folder) for folder in folders}
    versions = {name: metadata.version(name) for name in PACKAGES}
    command = "python benchmarks/quality.py work-quality"
    output = {"command": command, "hardware": hardware.detect()["device"], "versions": versions, "results": results}
    print(json.dumps(output, indent=1))


def table() -> str:
    """Return the committed measurements as the Markdown table of docs/quality.md."""
    results = json.loads(RESULTS.read_text())["results"]
    models = list(dict.fromkeys(item["model"] for item in results.values()))
    rows = dict.fromkeys(name.partition("+")[2].replace("-lj-", "-") for name in results)
    order = sorted(rows, key=lambda name: (*[name not in group for group in STEPS], name))
    lines = ["| | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for row in order:
        named = (row, row.replace("-w", "-lj-w"))
        cells = [
            next((results[f"{model}+{name}"] for name in named if f"{model}+{name}" in results), None)
            for model in models
        ]
        lines.append(f"| {row} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines)


def cell(item: dict | None) -> str:
    """Return the largest output error and the rise of the loss, with a mark where the guard warns or stops."""
    if item is None:
        return "–"
    rise = f"{item['loss_after'] - item['loss_before']:+.2f}".replace("-", "−")
    mark = " **✗**" if item["destroyed"] else " ⚠" if item["warnings"] else ""
    return f"{item['largest_output_error']:.3f}, {rise}{mark}"


if __name__ == "__main__":
    main(sys.argv[1]) if sys.argv[1:] else print(table())
