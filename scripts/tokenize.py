"""Tokenize every split of a dataset once for each root model: token ids of each document, not cut or padded."""

import os

from quantune.artefacts import job


def tokenize(order, inputs, folder, scratch):
    import datasets
    import pyarrow

    from quantune.data import text
    from quantune.models import loading

    (source,), (model,) = inputs["dataset"], inputs["model"]
    tokenizer, tokens = loading.tokenizer(model), {}
    for path in sorted(source.glob("*.parquet")):
        documents = datasets.Dataset.from_parquet(str(path), cache_dir=str(scratch))
        workers = min(int(os.environ["OMP_NUM_THREADS"]), len(documents))
        encoded = documents.map(
            lambda batch: text.encode(batch["text"], tokenizer),
            batched=True,
            batch_size=256,
            num_proc=workers if workers > 1 and len(documents) > 1000 else None,
            remove_columns=["text"],
            desc=f"tokenizing {path.stem}",
        )
        table = encoded.data.table.combine_chunks().cast(text.SCHEMA)
        with (
            pyarrow.OSFile(str(folder / f"{path.stem}.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, text.SCHEMA) as writer,
        ):
            writer.write_table(table, max_chunksize=1024)
        tokens[path.stem] = sum(map(len, table["ids"]))
        print(f"{path.stem}: {len(documents)} documents, {tokens[path.stem]} tokens")
    return {"tokens": tokens}


job.run(snakemake, tokenize)
