"""Fine-tune a checkpoint: load it, add what is to be trained, run the loop, save a plain PEFT adapter."""

from quantune import config, job


def train(order, inputs, folder, scratch):
    import torch

    from quantune import checkpoints, forecast, loading, packed_linear, text, training

    (parent,), (data,) = inputs["parent"], inputs["data"]
    recipe, seed = config.ordered(config.Finetuning, order)
    tokenizer = loading.tokenizer(parent)
    blocks = torch.from_numpy(text.blocks(data, recipe.train_split, tokenizer.eos_token_id, recipe.length))
    held_out = torch.empty(0, recipe.length, dtype=torch.long)
    if recipe.validation_split:
        held_out = torch.from_numpy(text.blocks(data, recipe.validation_split, tokenizer.eos_token_id, recipe.length))

    model = loading.model([parent], recipe.precision)
    text.require_length(model.config, recipe.length)
    model.config.use_cache = False
    model = recipe.prepare(model, seed)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable, total = model.get_nb_trainable_parameters()
    total += packed_linear.dense_parameters(model)
    print(f"training {trainable:,} of {total:,} parameters ({trainable / total:.4%}) on {len(blocks)} blocks")

    facts = training.train(
        model,
        recipe,
        seed,
        examples=len(blocks),
        batch=lambda numbers: {"input_ids": blocks[numbers], "labels": blocks[numbers]},
        validation=[
            {"input_ids": held_out[index : index + 1], "labels": held_out[index : index + 1]}
            for index in range(len(held_out))
        ],
        folder=folder,
        scratch=scratch,
    )
    checkpoints.save_adapter(model, folder)
    checkpoints.copy_tokenizer(parent, folder)
    return facts | {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "estimated_bytes": forecast.training_bytes(parent, recipe),
    }


job.run(snakemake, train)
