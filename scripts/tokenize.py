"""Tokenize every split of a dataset once for each root model: token ids of each document, not cut or padded."""

import os

from quantune.artefacts import job


def tokenize(order, inputs, folder, scratch):
    from quantune.data import chat, tokens
    from quantune.models import loading
    from quantune.sources import texts

    (source,), (model,) = inputs["dataset"], inputs["model"]
    processes = int(os.environ["OMP_NUM_THREADS"])  # the cores of the rule
    tokenizer, counts = loading.tokenizer(model), {}
    for path in sorted(source.glob("*.parquet")):
        target = folder / f"{path.stem}.arrow"
        if texts.holds_messages(path):
            count, counts[path.stem] = chat.write(texts.read_messages(path), tokenizer, target, processes)
        else:
            count, counts[path.stem] = tokens.write(texts.read_parquet(path), tokenizer, target, processes)
        print(f"{path.stem}: {count} documents, {counts[path.stem]} tokens")
    return {"tokens": counts}


job.run(snakemake, tokenize)
