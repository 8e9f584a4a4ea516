"""Tokenize every split of a dataset once for each root model: token ids of each document, not cut or padded."""

import os

from quantune.artefacts import job


def tokenize(order, inputs, folder, scratch):
    from quantune.data import tokens
    from quantune.models import loading
    from quantune.sources import texts

    (source,), (model,) = inputs["dataset"], inputs["model"]
    if int(os.environ["OMP_NUM_THREADS"]) > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # the threads of the tokenizer; no other process is started
    tokenizer, counts = loading.tokenizer(model), {}
    for path in sorted(source.glob("*.parquet")):
        count, counts[path.stem] = tokens.write(texts.read_parquet(path), tokenizer, folder / f"{path.stem}.arrow")
        print(f"{path.stem}: {count} documents, {counts[path.stem]} tokens")
    return {"tokens": counts}


job.run(snakemake, tokenize)
