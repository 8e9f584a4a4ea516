"""Quantize a checkpoint, save it packed, and check every layer of what was saved."""

from pydantic import TypeAdapter

from quantune import config, job


def quantize(order, inputs, folder, scratch):
    (parent,) = inputs["parent"]
    recipe = TypeAdapter(config.Quantization).validate_python(order["recipe"])
    print(f"quantizing {parent.name} with {recipe!r}")
    recipe.quantize(parent, folder)
    facts = recipe.check(parent, folder)
    print(f"{facts['layers_quantized']} layers at {facts['bits_per_weight']} bits per weight; reload is exact")
    return facts


job.run(snakemake, quantize)
