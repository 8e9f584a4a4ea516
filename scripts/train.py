"""Fine-tune a checkpoint: load it, add what is to be trained, run the loop, save a plain PEFT adapter."""

from quantune import config, job


def train(order, inputs, folder, scratch):
    import peft  # noqa: F401 (seconds, which pass before the GPU is taken)

    from quantune import checkpoints, forecast, loading, packed_linear, tracks, training

    (parent,), (data,) = inputs["parent"], inputs["data"]
    recipe, seed = config.ordered(config.Finetuning, order)
    examples = tracks.examples(recipe, data, recipe.train_split, parent)
    held_out = tracks.examples(recipe, data, recipe.validation_split, parent) if recipe.validation_split else None

    model = loading.model([parent], recipe.precision)
    model.config.use_cache = False
    model = recipe.prepare(model, seed)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable, total = model.get_nb_trainable_parameters()
    total += packed_linear.dense_parameters(model)
    print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.4%}) on {len(examples)} examples")

    facts = training.train(model, recipe, seed, examples, held_out, folder, scratch)
    checkpoints.save_adapter(model, folder)
    checkpoints.copy_tokenizer(parent, folder)
    return facts | {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "estimated_bytes": forecast.training_bytes(parent, recipe),
    }


job.run(snakemake, train)
