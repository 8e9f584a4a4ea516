"""Quantize a checkpoint, save it packed, check every saved layer, and measure the quantization error on real input."""

from quantune.artefacts import job
from quantune.core.errors import QuantuneError
from quantune.planning import config


def quantize(order, inputs, folder, scratch):
    from quantune.models import checkpoints
    from quantune.quantizations.arithmetic import quality

    (parent,), (data,) = inputs["parent"], inputs.get("data", [None])
    recipe, seed = config.recipe_and_seed(config.AnyQuantization, order)
    layers = checkpoints.linear_layers(parent, recipe.quantizes_head())
    if problem := recipe.mismatch(layers):
        raise QuantuneError(f"quantizations{problem}" if problem.startswith(".") else problem.removeprefix(": "))
    print(f"quantizing the {len(layers)} linear layers of {parent.name} with {recipe!r}")
    facts = recipe.quantize(parent, folder, data, seed)
    facts |= recipe.check(parent, folder)
    facts["quality"] = quality.guard(recipe, parent, folder, data, seed, facts.get("output_errors"))
    print(f"{facts['layers_quantized']} layers at {facts['bits_per_weight']} bits per weight; reload is exact")
    return facts


job.run(snakemake, quantize)
