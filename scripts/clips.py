"""Unpack or download a collection of recordings; decode every clip once to check its audio; write one Parquet file
for each split: id, text, translation, language, seconds, and the audio in its original encoding.
"""

import shutil
from pathlib import Path

from quantune.artefacts import job
from quantune.sources import clips, download, layouts


def collect(order, inputs, folder, scratch):
    recipe, files = order["recipe"], order["options"]["files"]
    base = download.fetch_sources(order, scratch)
    unpacked = scratch / "unpacked"
    root, tables = layouts.tables(recipe, {split: [base / path for path in files[split]] for split in files}, unpacked)
    held = unpacked if unpacked.exists() else Path(order["options"].get("root") or base)
    splits = clips.read(root, recipe, tables, held)
    paths = [Path(path) for group in tables.values() for path in group]
    personal = {name for path in paths for name in clips.personal_columns(path, recipe["layout"])}
    print(f"not copied: {', '.join(sorted(personal)) or 'no columns'} about speakers")
    facts = layouts.write(splits, recipe, layouts.language(recipe, root), folder)
    shutil.rmtree(unpacked, ignore_errors=True)
    return facts | {"personal_columns_dropped": sorted(personal)} | download.facts(order)


job.run(snakemake, collect, imports=False)
