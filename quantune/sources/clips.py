"""Collections of recordings in their published layouts: the clips, their transcripts and their audio files.

Only the columns that the recipe names are kept: names, ages and other columns about speakers are left behind.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError, listed, nearest
from quantune.sources import documents, selection
from quantune.sources.entries import Dataset, Speech

COLUMNS = {"common-voice": "sentence", "ljspeech": "text", "manifest": "text", "parquet": "text"}
PERSONAL = ("client_id", "age", "gender", "accent", "accents", "variant")
SPEAKER = "client_id"
MANIFESTS = (".tsv", ".csv", ".jsonl")
AUDIO = (".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus")


@dataclass(frozen=True)
class Clip:
    """One recording and its transcript."""

    name: str
    """Path within the collection."""
    text: str
    translation: str | None = None
    file: Path | None = None
    """Path of the audio file, or of the Parquet file that holds the audio."""
    cell: tuple[str, int, int] | None = None
    """In a Parquet file: column, row group, row."""
    speaker: str | None = None
    """Used to count speakers, never written."""

    def read(self) -> bytes:
        """Return the audio file's bytes; raises OSError."""
        if self.cell is None:
            return self.file.read_bytes()
        column, group, row = self.cell
        value = _column(self.file, column, group)[row].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""


def locale_folder(root: Path, locale: str | None) -> Path:
    """Return the folder of a locale in an unpacked release, which holds its tables and `clips`.

    Raises:
        ConfigError: if no locale has that name, or `locale` is None and there are several.
    """
    folders = {
        item.parent.name: item.parent for item in (*root.glob("clips"), *root.glob("*/clips"), *root.glob("*/*/clips"))
    }
    if locale is None and len(folders) == 1:
        return next(iter(folders.values()))
    if locale in folders:
        return folders[locale]
    if not folders:
        raise ConfigError(f"'{root}' holds no Common Voice release: no folder with 'clips' and its .tsv files")
    problem = f"'{root}' has no locale '{locale}'" if locale else f"'{root}' has several locales"
    raise ConfigError(f"{problem}{locale_hint(locale, folders)}; set 'locale'")


def release_tables(root: Path, splits: dict[str, Any], where: str) -> dict[str, list[Path]]:
    """Return split -> its .tsv files in a locale's folder; raises ConfigError that names the first missing one."""
    tables = {}
    for split, names in splits.items():
        tables[split] = [
            root / f"{name.removesuffix('.tsv')}.tsv" for name in ([names] if isinstance(names, str) else names)
        ]
        for path in tables[split]:
            if not path.is_file():
                existing = sorted(item.stem for item in root.glob("*.tsv"))
                hint = f"tables: {listed(existing)}{nearest(path.stem, existing)}"
                raise ConfigError(f"splits.{split}: '{where}' has no '{path.name}'; {hint}")
    return tables


def locale_hint(given: str | None, locales: Any) -> str:
    """Return a text for errors: the existing locales, and the one that is nearest to the given one."""
    return f"; locales: {listed(sorted(locales))}{nearest(given, locales) if given else ''}"


def local_tables(entry: Speech, root: Path, key: str) -> dict[str, list[Path]]:
    """Return split -> the tables of a collection on this machine, or its archive; split "" if it is not divided yet.

    Raises:
        ConfigError: naming the key, if the files are missing.
    """
    try:
        if entry.layout == "common-voice":
            if root.is_file():
                return {"": [root]}
            return release_tables(locale_folder(root, entry.locale), entry.chosen_splits(), str(root))
        if entry.layout == "ljspeech":
            if not (root / "metadata.csv").is_file() or not (root / "wavs").is_dir():
                raise ConfigError(f"'{root}' has no LJSpeech layout: metadata.csv and wavs/ are needed")
            return {"": [root / "metadata.csv"]}
    except ConfigError as error:
        raise ConfigError(f"{key}.path: {error}") from None
    if root.is_file() or (entry.splits and not entry.shares()):
        return selection.split_files(root, entry.splits, key)
    endings = (".parquet",) if entry.layout == "parquet" else MANIFESTS
    paths = [path for path in sorted(root.iterdir()) if path.suffix in endings]
    if not paths:
        raise ConfigError(f"{key}.path: '{root}' holds no {listed(endings)}; name the files in 'splits'")
    return {"": paths}


def audio_files(entry: Dataset, tables: dict[str, list[Path]]) -> list[Path]:
    """Return the audio files that tables on this machine name, even missing ones; none for text, archives, Parquet."""
    first = next(iter(tables.values()))[0]
    if (
        entry.track != "speech"
        or entry.layout == "parquet"
        or (entry.layout == "common-voice" and first.suffix != ".tsv")
    ):
        return []
    return [
        clip.file
        for paths in tables.values()
        for path in paths
        for clip in _table(first.parent, path, entry.identity())
    ]


def read(root: Path, recipe: dict[str, Any], files: dict[str, list[str]]) -> dict[str, list[Clip]]:
    """Return split -> clips of a collection.

    Args:
        root: the folder of the collection; of a Common Voice release, the folder of the locale.
        recipe: the dataset's recipe.
        files: split -> its tables' paths; "" for a collection that is not divided yet.

    Raises:
        QuantuneError: naming the file, if it cannot be read or lacks a column.
    """
    splits = {
        split: [clip for path in paths for clip in _table(root, Path(path), recipe)] for split, paths in files.items()
    }
    if list(splits) == [""]:
        splits = documents.divide(splits[""], recipe["splits"] or {"train": 1.0}, recipe["seed"])
    return splits


def _table(root: Path, path: Path, recipe: dict[str, Any]) -> Iterator[Clip]:
    """Yield the clips that a table names; raises QuantuneError if a column is missing."""
    layout, column = recipe["layout"], recipe["column"] or COLUMNS[recipe["layout"]]
    if layout == "ljspeech":
        yield from _ljspeech(root, path)
        return
    audio = recipe["audio"] or ("audio" if layout == "parquet" else "path")
    needed = [column, *filter(None, [recipe["translation"]]), audio]
    folder = root / "clips" if layout == "common-voice" else path.parent
    for row in _rows(path, needed):
        if missing := [name for name in needed if name not in row]:
            raise QuantuneError(
                f"'{path}' has no column '{missing[0]}'; columns: {listed(row)}{nearest(missing[0], row)};"
                " set the dataset's 'column' or 'audio'"
            )
        translation = row[recipe["translation"]] if recipe["translation"] else None
        texts = (row[column] or "", translation)
        if layout == "parquet":
            group, index = row[audio]
            name = f"{path.relative_to(root)}:{group}:{index}"
            yield Clip(name, *texts, path, (audio, group, index), row.get(SPEAKER))
        else:
            name = row[audio] or ""
            yield Clip(name, *texts, folder / name, speaker=row.get(SPEAKER))


def _ljspeech(root: Path, path: Path) -> Iterator[Clip]:
    """Yield the clips of an LJSpeech metadata.csv: id|transcript|normalized transcript; the last column is taken."""
    recordings = {item.stem: item for item in sorted((root / "wavs").iterdir()) if item.suffix in AUDIO}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *texts = line.split("|")
        if texts:
            yield Clip(name, texts[-1], file=recordings.get(name, root / "wavs" / f"{name}.wav"))


def _rows(path: Path, needed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a TSV, CSV, JSON lines or Parquet file; raises QuantuneError if it cannot be read."""
    if path.suffix == ".parquet":
        yield from _parquet(path, needed)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        elif path.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text))
        else:  # quotation marks in a TSV belong to the sentence
            yield from csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    except (ValueError, csv.Error) as error:
        raise QuantuneError(f"'{path}' cannot be read: {error}") from None


def _parquet(path: Path, needed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file; the last needed column, the audio, holds (row group, row) instead of bytes."""
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(path)
    names = opened.schema_arrow.names
    if not set(needed) <= set(names):
        yield dict.fromkeys(names)
        return
    columns = [name for name in names if name in (*needed[:-1], SPEAKER)]
    for group in range(opened.num_row_groups):
        for index, row in enumerate(opened.read_row_group(group, columns).to_pylist()):
            yield row | {needed[-1]: (group, index)}


@lru_cache(maxsize=2)
def _column(path: Path, column: str, group: int) -> Any:
    """Return a column of one row group of a Parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, [column]).column(0)


def personal_columns(path: Path) -> list[str]:
    """Return the names of the columns about speakers in a table."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return [name for name in pyarrow.parquet.read_schema(path).names if name in PERSONAL]
    if path.suffix in (".json", ".jsonl"):
        return [name for name in next(_rows(path, []), {}) if name in PERSONAL]
    with path.open(encoding="utf-8-sig") as file:
        header = next(csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t"), [])
    return [name for name in header if name in PERSONAL]
