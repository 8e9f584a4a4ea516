"""Fine-tune a checkpoint: load it, add the trainable weights, run the training loop, save the trained weights."""

from functools import partial

from quantune.artefacts import job
from quantune.planning import config


def train(order, inputs, folder, scratch):
    import peft  # noqa: F401 (this takes seconds; do it before the job takes the GPU)

    from quantune.data import examples
    from quantune.finetunings.training import checkpointing, loop, loss, precision
    from quantune.models import adapters, loading

    (parent,), (prepared,) = inputs["parent"], inputs["data"]
    recipe, seed = config.recipe_and_seed(config.AnyFinetuning, order)
    splits = (recipe.train_split, recipe.validation_split)
    form = {"task": recipe.task, "packing": recipe.packing, "end_of_text": recipe.end_of_text}
    data, validation = (
        examples.read(prepared, split, parent, recipe.length, **form) if split else None for split in splits
    )
    quantized = loading.quantization_method(parent) is not None
    model = loading.model([parent], precision.loaded_dtype(recipe, quantized))
    model.config.use_cache = False
    footprint = model.get_memory_footprint()
    original = next(iter(inputs.get("original", ())), None)
    model = recipe.prepare(model, seed, original)
    checkpointing.enable(model, recipe)
    trainable, total = adapters.parameters(model)
    print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.4%}) on {len(data)} examples")

    with loss.fused(model), precision.attending(recipe):
        store = partial(recipe.save, model, parent)
        facts = loop.train(model, recipe, seed, data, validation, folder, scratch, store)
    recipe.save(model, parent, folder)
    facts |= recipe.facts(model)
    predicted = sum((order["predicted"] or {}).values()) or None
    facts |= {} if recipe.packing or not hasattr(data, "cut") else {"documents_cut": data.cut}
    facts |= {"trainable_parameters": trainable, "total_parameters": total, "base_footprint_bytes": footprint}
    return facts | {"estimated_bytes": predicted}


job.run(snakemake, train)
