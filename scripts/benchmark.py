"""Benchmark a variant: keep the raw runs, and memory and settings beside them."""

import json

from quantune.artefacts import job
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.evaluations.benchmark import Benchmark, peak


def benchmark(order, inputs, folder, scratch):
    import torch

    planned, found = order["recipe"]["hardware"], hardware.found()
    if planned != found or (found["kind"] == "gpu") != torch.cuda.is_available():
        raise QuantuneError(
            f"planned for {hardware.told(planned)}, but this job runs on {hardware.told(found)}"
            f" (a GPU that torch can use: {torch.cuda.is_available()}); start snakemake on the machine to be measured"
        )
    recipe = Benchmark.model_validate({key: value for key, value in order["recipe"].items() if key != "hardware"})
    result = {"hardware": found} | recipe.measure([*inputs.get("base", []), *inputs["checkpoint"]], folder)
    (folder / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    whole = {"gpu": "peak_device_bytes", "cpu": "peak_memory_bytes"}[found["kind"]]
    facts = {whole: result["before_bytes"] + peak(result["points"])}
    if not all(point["fits"] for point in result["points"]):
        facts["predicted"] = None  # it was of the largest point
    return {"run": facts}


job.run(snakemake, benchmark)
