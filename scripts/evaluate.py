"""Evaluate a variant: load it once for each dtype, write each evaluation's raw items and a summary."""

import json
import math
from functools import cache

from quantune.artefacts import job
from quantune.planning import config


@cache
def loaded(folders):
    from quantune.models import loading

    return loading.LoadedVariant(folders)


def evaluate(order, inputs, folder, scratch):
    (checkpoint,), (data,) = inputs["checkpoint"], inputs.get("data", [None])
    recipe, _ = config.recipe_and_seed(config.AnyEvaluation, order)
    result = recipe.evaluate(loaded((*inputs.get("base", []), checkpoint)), data, folder)
    timing = result.pop("run", {})
    result = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in result.items()
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(result))
    return {"run": timing}


job.run_all(snakemake, evaluate)
