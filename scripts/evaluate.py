"""Evaluate a variant: keep the raw items, and a summary beside them."""

import json
import math

from quantune import config, job


def evaluate(order, inputs, folder, scratch):
    (checkpoint,), (data,) = inputs["checkpoint"], inputs.get("data", [None])
    recipe, _ = config.ordered(config.Evaluation, order)
    result = recipe.evaluate([*inputs.get("base", []), checkpoint], data, folder)
    timing = result.pop("run", {})
    result = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in result.items()
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(result))
    return {"run": timing}


job.run(snakemake, evaluate)
