"""Fine-tune a checkpoint: load it, add the trainable weights, run the training loop, save the trained weights."""

from functools import partial

from quantune.artefacts import job
from quantune.planning import config


def train(order, inputs, folder, scratch):
    import peft  # noqa: F401 (this takes seconds; do it before the job takes the GPU)

    from quantune.data import examples, mixing, packing
    from quantune.finetunings.training import checkpointing, loop, loss, noise, precision
    from quantune.models import adapters, loading

    (parent,), (prepared,) = inputs["parent"], inputs["data"]
    recipe, seed = config.recipe_and_seed(config.AnyFinetuning, order)
    form = {name: getattr(recipe, name) for name in ("task", "packing", "end_of_text", "loss_on")}
    names = (recipe.dataset, *sorted(recipe.mix))
    parts = {
        name: examples.read(path, recipe.train_split, parent, recipe.length, most=recipe.max_samples, **form)
        for name, path in zip(names, (prepared, *inputs.get("mixed", [])), strict=True)
    }
    data = mixing.Mixture(parts, recipe.mix, recipe.mix_until, seed) if recipe.mix else parts[recipe.dataset]
    validation = None
    if recipe.validation_split:
        validation = examples.read(prepared, recipe.validation_split, parent, recipe.length, **form)
    others = {
        name: examples.read(path, recipe.also_validate[name], parent, recipe.length, **form)
        for name, path in zip(sorted(recipe.also_validate), inputs.get("validated", []), strict=True)
    }
    quantized = loading.quantization_method(parent) is not None
    model = loading.model([parent], precision.loaded_dtype(recipe, quantized))
    model.config.use_cache = False
    footprint = model.get_memory_footprint()
    original = next(iter(inputs.get("original", ())), None)
    model = recipe.prepare(model, seed, original)
    packing.settle(model, [data, validation, *others.values()])
    checkpointing.enable(model, recipe)
    trainable, total = adapters.parameters(model)
    print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.4%}) on {len(data)} examples")

    with loss.fused(model, recipe.label_smoothing), noise.noisy(model, recipe), precision.attending(recipe):
        store = partial(recipe.save, model, parent)
        facts = loop.train(model, recipe, seed, data, validation, folder, scratch, store, others)
    recipe.save(model, parent, folder)
    facts |= recipe.facts(model)
    predicted = sum((order["predicted"] or {}).values()) or None
    facts |= {"documents_cut": data.cut} if hasattr(data, "cut") else {}
    facts |= {"mixture": data.counts} if recipe.mix else {}
    facts |= {"trainable_parameters": trainable, "total_parameters": total, "base_footprint_bytes": footprint}
    return facts | {"estimated_bytes": predicted}


job.run(snakemake, train)
