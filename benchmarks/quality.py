"""Print the layer errors and the losses of every quantized checkpoint in a work folder, and of its parent, as JSON.

    snakemake checkpoints --configfile experiments/quality.yaml
    python benchmarks/quality.py work-quality > benchmarks/results/quality.json

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

PACKAGES = ("torch", "transformers", "bitsandbytes", "compressed-tensors")


def measured(folder: Path) -> dict:
    """Return the losses and the largest output error of a quantized checkpoint."""
    made = read_provenance(folder)
    recipe = TypeAdapter(AnyQuantization).validate_python({k: v for k, v in made["recipe"].items() if k != "seed"})
    parent = Path(made["parents"]["parent"][0]["path"])
    if data := made["parents"].get("data"):
        seed = made["recipe"].get("seed", 0)
        source, inputs = quality.calibration_inputs(recipe, Path(data[0]["path"]), seed, parent)
    else:
        source, inputs = quality.probe_inputs(parent)
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


if __name__ == "__main__":
    main(sys.argv[1])
