"""Download a dataset's files if they are remote; read documents from them, divide these into splits and drop leaks;
write one Parquet file for each split.
"""

import tempfile
from pathlib import Path

from quantune.artefacts import job
from quantune.core.errors import QuantuneError
from quantune.sources import chat, documents, download, draw, leaks
from quantune.sources.texts import Texts


def dataset(order, inputs, folder, scratch):
    recipe, files = order["recipe"], order["options"]["files"]
    base = download.fetch_sources(order, scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        splits = {split: Texts(Path(temporary, f"{split}.read")) for split in files}
        for split, paths in files.items():
            for path in paths:
                for parts in documents.read_documents(base / path, recipe):
                    splits[split].append(parts)
        for text in order["options"].get("texts", []):
            splits[""].append((text,))
        empty = sum(texts.blank for texts in splits.values())
        read = empty + sum(map(len, splits.values()))
        if list(splits) == [""]:
            shares = draw.shares(len(splits[""]), recipe["splits"] or {"train": 1.0}, recipe["seed"])
            whole = splits.pop("")
            splits = {name: whole.chosen(drawn, Path(temporary, f"{name}.drawn")) for name, drawn in shares.items()}
        for split, size in recipe.get("sample", {}).items():
            numbers = draw.sample(len(splits[split]), size, recipe["seed"], split)
            splits[split] = splits[split].chosen(numbers, Path(temporary, f"{split}.sample"))
        dropped = {}
        if recipe["remove_leaks"] != "none":
            compared = {split: chat.Contents(texts) if recipe.get("chat") else texts for split, texts in splits.items()}
            for split, kept in leaks.without_leaks(compared, recipe["remove_leaks"]).items():
                dropped[split] = len(splits[split]) - len(kept)
                if dropped[split]:
                    splits[split] = splits[split].chosen(kept, Path(temporary, f"{split}.kept"))
        for split, texts in splits.items():
            if not len(texts):
                raise QuantuneError(
                    f"split '{split}' has no documents left (read {read}, empty {empty}, leaks {dropped})"
                )
            write = texts.write_messages if recipe.get("chat") else texts.write_parquet
            write(folder / f"{split}.parquet")
            print(f"{split}: {len(texts)} documents, {texts.characters} characters")
    print(f"dropped: {empty} empty, {sum(dropped.values())} held-out documents that repeat a training document")
    counts = {split: len(texts) for split, texts in splits.items()}
    return {"documents": counts, "empty": empty, "leaks": dropped} | download.facts(order)


job.run(snakemake, dataset, imports=False)
