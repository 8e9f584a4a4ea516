"""Benchmark a variant: write the time of each run, the memory and the settings."""

import json

from quantune.artefacts import job
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.evaluations.benchmark import Benchmark, peak


def benchmark(order, inputs, folder, scratch):
    import torch

    planned, current = order["recipe"]["hardware"], hardware.detect()
    if planned != current or (current["kind"] == "gpu") != torch.cuda.is_available():
        raise QuantuneError(
            f"planned for {hardware.describe(planned)}, but this job runs on {hardware.describe(current)}"
            f" (a GPU that torch can use: {torch.cuda.is_available()}); start snakemake on the machine to measure"
        )
    recipe = Benchmark.model_validate({key: value for key, value in order["recipe"].items() if key != "hardware"})
    result = {"hardware": current} | recipe.measure([*inputs.get("base", []), *inputs["checkpoint"]], folder)
    (folder / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    key = {"gpu": "peak_device_bytes", "cpu": "peak_memory_bytes"}[current["kind"]]
    facts = {key: result["before_bytes"] + peak(result["points"])}
    if not all(point["fits"] for point in result["points"]):
        facts["predicted"] = None  # the prediction is for the largest point
    return {"run": facts}


job.run(snakemake, benchmark)
