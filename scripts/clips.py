"""Unpack or download a collection of recordings; decode every clip once to see that it can be heard; write one Parquet
file for each split: id, text, translation, language, seconds, and the audio as it came.
"""

import shutil
from pathlib import Path

from quantune.artefacts import job
from quantune.sources import clips, download, layouts


def collect(order, inputs, folder, scratch):
    recipe, files = order["recipe"], order["options"]["files"]
    base = download.fetched(order, scratch)
    unpacked = scratch / "unpacked"
    root, tables = layouts.tables(recipe, {split: [base / path for path in files[split]] for split in files}, unpacked)
    splits = clips.read(root, recipe, tables)
    named = {name for paths in tables.values() for path in paths for name in clips.personal_columns(Path(path))}
    print(f"left behind: {', '.join(sorted(named)) or 'no columns'} about speakers")
    facts = layouts.write(splits, recipe, layouts.language(recipe, root), folder)
    shutil.rmtree(unpacked, ignore_errors=True)
    return facts | {"personal_columns_dropped": sorted(named)} | download.facts(order)


job.run(snakemake, collect, imports=False)
