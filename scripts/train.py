"""Fine-tune a checkpoint: load it, add the trainable weights, run the training loop, save the trained weights."""

from quantune.artefacts import job
from quantune.planning import config


def train(order, inputs, folder, scratch):
    import peft  # noqa: F401 (this takes seconds; do it before the job takes the GPU)

    from quantune.data import examples
    from quantune.finetunings.training import loop, loss
    from quantune.models import adapters, loading

    (parent,), (prepared,) = inputs["parent"], inputs["data"]
    recipe, seed = config.recipe_and_seed(config.AnyFinetuning, order)
    splits = (recipe.train_split, recipe.validation_split)
    data, validation = (
        examples.read(prepared, split, parent, recipe.length, recipe.task) if split else None for split in splits
    )
    model = loading.model([parent], recipe.precision)
    model.config.use_cache = False
    model = recipe.prepare(model, seed)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable, total = adapters.parameters(model)
    print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.4%}) on {len(data)} examples")

    with loss.fused(model):
        facts = loop.train(model, recipe, seed, data, validation, folder, scratch)
    recipe.save(model, parent, folder)
    predicted = sum((order["predicted"] or {}).values()) or None
    return facts | {"trainable_parameters": trainable, "total_parameters": total, "estimated_bytes": predicted}


job.run(snakemake, train)
