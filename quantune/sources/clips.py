"""Collections of recordings in the layouts in which they are published: which clips, which transcripts, where.

Of a row's columns only those asked for are kept: names, ages and other columns about speakers are left behind.
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
    """One recording and what was said in it."""

    name: str
    """Path within the collection."""
    text: str
    translation: str | None = None
    place: Path | None = None
    """Of the audio file, or of the Parquet file that holds it."""
    cell: tuple[str, int, int] | None = None
    """In a Parquet file: column, row group, row."""
    speaker: str | None = None
    """Counted, never written."""

    def read(self) -> bytes:
        """Return the audio file's bytes; raises OSError."""
        if self.cell is None:
            return self.place.read_bytes()
        column, group, row = self.cell
        value = _column(self.place, column, group)[row].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""


def locale_folder(root: Path, locale: str | None) -> Path:
    """Return the folder of a locale in an unpacked release: what holds its tables and `clips`.

    Raises:
        ConfigError: if there is none of that name, or several and none is named.
    """
    found = {
        item.parent.name: item.parent for item in (*root.glob("clips"), *root.glob("*/clips"), *root.glob("*/*/clips"))
    }
    if locale is None and len(found) == 1:
        return next(iter(found.values()))
    if locale in found:
        return found[locale]
    if not found:
        raise ConfigError(f"'{root}' holds no Common Voice release: no folder with 'clips' and its .tsv files")
    what = f"'{root}' has no locale '{locale}'" if locale else f"'{root}' has several locales"
    raise ConfigError(f"{what}{choice(locale, found)}; set 'locale'")


def release_tables(root: Path, splits: dict[str, Any], where: str) -> dict[str, list[Path]]:
    """Return split -> its .tsv files in a locale's folder; raises ConfigError naming one that is not there."""
    found = {}
    for split, names in splits.items():
        found[split] = [
            root / f"{name.removesuffix('.tsv')}.tsv" for name in ([names] if isinstance(names, str) else names)
        ]
        for path in found[split]:
            if not path.is_file():
                there = sorted(item.stem for item in root.glob("*.tsv"))
                hint = f"tables: {listed(there)}{nearest(path.stem, there)}"
                raise ConfigError(f"splits.{split}: '{where}' has no '{path.name}'; {hint}")
    return found


def choice(given: str | None, there: Any) -> str:
    """Return the locales there are, in words, and the one that was probably meant."""
    return f"; locales: {listed(sorted(there))}{nearest(given, there) if given else ''}"


def local_tables(entry: Speech, root: Path, key: str) -> dict[str, list[Path]]:
    """Return split -> the tables of a collection on this machine, or its archive; "" for what is not divided yet.

    Raises:
        ConfigError: naming the key, if they are not there.
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
    found = [path for path in sorted(root.iterdir()) if path.suffix in endings]
    if not found:
        raise ConfigError(f"{key}.path: '{root}' holds no {listed(endings)}; name the files in 'splits'")
    return {"": found}


def files(entry: Dataset, tables: dict[str, list[Path]]) -> list[Path]:
    """Return the audio files that tables on this machine name, there or not; none for text, archives and Parquet."""
    first = next(iter(tables.values()))[0]
    if (
        entry.track != "speech"
        or entry.layout == "parquet"
        or (entry.layout == "common-voice" and first.suffix != ".tsv")
    ):
        return []
    return [
        clip.place
        for paths in tables.values()
        for path in paths
        for clip in _table(first.parent, path, entry.identity())
    ]


def read(root: Path, recipe: dict[str, Any], files: dict[str, list[str]]) -> dict[str, list[Clip]]:
    """Return split -> clips of a collection.

    Args:
        root: the folder that holds it; of a Common Voice release, the locale's.
        recipe: the dataset's.
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
    """Yield the clips that a table names."""
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
        what = (row[column] or "", translation)
        if layout == "parquet":
            group, index = row[audio]
            name = f"{path.relative_to(root)}:{group}:{index}"
            yield Clip(name, *what, path, (audio, group, index), row.get(SPEAKER))
        else:
            name = row[audio] or ""
            yield Clip(name, *what, folder / name, speaker=row.get(SPEAKER))


def _ljspeech(root: Path, path: Path) -> Iterator[Clip]:
    """Yield the clips of an LJSpeech metadata.csv: id|transcript|normalized transcript; the last one is taken."""
    there = {item.stem: item for item in sorted((root / "wavs").iterdir()) if item.suffix in AUDIO}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *texts = line.split("|")
        if texts:
            yield Clip(name, texts[-1], place=there.get(name, root / "wavs" / f"{name}.wav"))


def _rows(path: Path, needed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a TSV, CSV, JSON lines or Parquet file."""
    if path.suffix == ".parquet":
        yield from _parquet(path, needed)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix in (".jsonl", ".json"):
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
        elif path.suffix == ".csv":
            yield from csv.DictReader(io.StringIO(text))
        else:  # quotation marks in a TSV are those of the sentence
            yield from csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    except (ValueError, csv.Error) as error:
        raise QuantuneError(f"'{path}' cannot be read: {error}") from None


def _parquet(path: Path, needed: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file; in the place of the audio, the last column needed, stands its cell."""
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(path)
    there = opened.schema_arrow.names
    if not set(needed) <= set(there):
        yield dict.fromkeys(there)
        return
    columns = [name for name in there if name in (*needed[:-1], SPEAKER)]
    for group in range(opened.num_row_groups):
        for index, row in enumerate(opened.read_row_group(group, columns).to_pylist()):
            yield row | {needed[-1]: (group, index)}


@lru_cache(maxsize=2)
def _column(path: Path, column: str, group: int) -> Any:
    """Return a column of one row group of a Parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, [column]).column(0)


def personal_columns(path: Path) -> list[str]:
    """Return which columns about speakers a table has."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return [name for name in pyarrow.parquet.read_schema(path).names if name in PERSONAL]
    if path.suffix in (".json", ".jsonl"):
        return [name for name in next(_rows(path, []), {}) if name in PERSONAL]
    with path.open(encoding="utf-8-sig") as file:
        header = next(csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t"), [])
    return [name for name in header if name in PERSONAL]
