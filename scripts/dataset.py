"""Download a dataset's files if they are remote; read documents from them, divide these into splits and drop leaks;
write one Parquet file for each split.
"""

import pyarrow
import pyarrow.parquet

from quantune.artefacts import job
from quantune.core.errors import QuantuneError
from quantune.sources import documents, download


def dataset(order, inputs, folder, scratch):
    recipe, files = order["recipe"], order["options"]["files"]
    base = download.fetch_sources(order, scratch)
    splits = {
        split: [text for path in paths for text in documents.read_documents(base / path, recipe)]
        for split, paths in files.items()
    }
    read = sum(map(len, splits.values()))
    splits = {split: [text for text in texts if text.strip()] for split, texts in splits.items()}
    empty = read - sum(map(len, splits.values()))
    if list(splits) == [""]:
        shares = recipe["splits"] or {"train": 1.0}
        splits = documents.divide(splits[""], shares, recipe["seed"])
    leaks = {}
    if recipe["remove_leaks"] != "none":
        splits, leaks = documents.without_leaks(splits, recipe["remove_leaks"])
    for split, texts in splits.items():
        if not texts:
            raise QuantuneError(f"split '{split}' has no documents left (read {read}, empty {empty}, leaks {leaks})")
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / f"{split}.parquet")
        print(f"{split}: {len(texts)} documents, {sum(map(len, texts))} characters")
    print(f"dropped: {empty} empty, {sum(leaks.values())} held-out documents that repeat a training document")
    counts = {split: len(texts) for split, texts in splits.items()}
    return {"documents": counts, "empty": empty, "leaks": leaks} | download.facts(order)


job.run(snakemake, dataset, imports=False)
