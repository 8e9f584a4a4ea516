"""Collections of recordings in their published layouts: the clips, their transcripts and their audio files.

Only the columns that the recipe names are kept: names, ages and other columns about speakers are left behind.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError, listed, nearest
from quantune.sources import containment, draw, selection, tables, text_files
from quantune.sources.entries import Dataset, Speech

COLUMNS = {"common-voice": "sentence", "ljspeech": "text", "manifest": "text", "parquet": "text"}
PERSONAL = ("client_id", "age", "gender", "accent", "accents", "variant")
SPEAKER = "client_id"
MANIFESTS = (".tsv", ".csv", ".jsonl")
AUDIO = (".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus")


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, or a segment of one, and its transcript."""

    name: str
    """Path within the collection; for a segment with its begin and length in seconds."""
    text: str
    translation: str | None = None
    file: Path | None = None
    """Path of the audio file, or of the Parquet file that holds the audio; None if the table names no file."""
    cell: tuple[str, int, int] | None = None
    """In a Parquet file: column, row group, row."""
    speaker: str | None = None
    """Used to count speakers, never written."""
    begin: float | None = None
    """Seconds to skip, if the table gives an offset."""
    duration: float | None = None
    """Seconds of the segment, if the table gives them."""

    def source(self) -> bytes | Path:
        """Return the audio file's bytes or its path; raises BrokenAudioError if there is no such file."""
        from quantune.sources.audio import BrokenAudioError

        if self.cell is not None:
            column, group, row = self.cell
            try:
                value = _column(self.file, column, group)[row].as_py()
            except (ValueError, OSError) as error:  # those of pyarrow are ValueErrors
                raise BrokenAudioError(f"the Parquet file is damaged ({error})") from None
            value = (value.get("bytes") if isinstance(value, dict) else value) or b""
            if not isinstance(value, bytes):
                raise BrokenAudioError(f"the column '{column}' holds {type(value).__name__}, not an audio file's bytes")
            return value
        if self.file is None:
            raise BrokenAudioError("the table names no file")
        if problem := text_files.problem(self.file):
            raise BrokenAudioError("the file is missing" if problem == "does not exist" else f"the file {problem}")
        return self.file


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
    paths = [path for path in selection.entries(root, key) if path.suffix in endings]
    for path in paths:
        selection.require_file(path, f"{key}.path")
    if not paths:
        raise ConfigError(f"{key}.path: '{root}' holds no {listed(endings)}; name the files in 'splits'")
    return {"": paths}


def audio_files(entry: Dataset, tables: dict[str, list[Path]], root: Path) -> list[Path]:
    """Return the audio files that tables on this machine name, even missing ones; none for text, archives, Parquet.

    Args:
        entry: the dataset.
        tables: split -> its tables.
        root: the folder that must hold the audio files.
    """
    first = next(iter(tables.values()))[0]
    if (
        entry.track != "speech"
        or entry.layout == "parquet"
        or (entry.layout == "common-voice" and first.suffix != ".tsv")
    ):
        return []
    named = (
        clip.file
        for paths in tables.values()
        for path in paths
        for clip in _table(first.parent, path, entry.identity(), root)
        if clip.file
    )
    return [path for path in named if containment.regular_or_missing(path)]


def read(root: Path, recipe: dict[str, Any], files: dict[str, list[str]], held: Path) -> dict[str, list[Clip]]:
    """Return split -> clips of a collection.

    Args:
        root: the folder of the collection; of a Common Voice release, the folder of the locale.
        recipe: the dataset's recipe.
        files: split -> its tables' paths; "" for a collection that is not divided yet.
        held: the folder that must hold the audio files.

    Raises:
        QuantuneError: naming the file, if it cannot be read, lacks a column, or names a file outside `held`.
    """
    splits = {
        split: [clip for path in paths for clip in _table(root, Path(path), recipe, held)]
        for split, paths in files.items()
    }
    if list(splits) == [""]:
        splits = draw.divide(splits[""], recipe["splits"] or {"train": 1.0}, recipe["seed"])
    for split, size in recipe.get("sample", {}).items():
        splits[split] = [splits[split][at] for at in draw.sample(len(splits[split]), size, recipe["seed"], split)]
    return splits


def _table(root: Path, path: Path, recipe: dict[str, Any], held: Path) -> Iterator[Clip]:
    """Yield the clips that a table names; raises QuantuneError if a column or a cell is wrong."""
    layout, column = recipe["layout"], recipe["column"] or COLUMNS[recipe["layout"]]
    if layout == "ljspeech":
        yield from _ljspeech(root, path, held)
        return
    audio = recipe["audio"] or ("audio" if layout == "parquet" else "path")
    texts = [column, *filter(None, [recipe["translation"]])]
    if layout == "parquet":
        if audio not in tables.columns(path, "parquet"):
            raise tables.no_column(path, audio, tables.columns(path, "parquet"), "'audio'")
        for number, (group, index, row) in enumerate(tables.parquet(path, texts, [SPEAKER]), 1):
            said, title = _said(row, path, f"row {number}", texts), f"{path.relative_to(root)}:{group}:{index}"
            yield Clip(title, *said, file=path, cell=(audio, group, index), speaker=row.get(SPEAKER))
        return
    folder = root / "clips" if layout == "common-voice" else path.parent
    for place, row in tables.rows(path, _kind(path), [*texts, audio]):
        if missing := [name for name in (*texts, audio) if name not in row]:
            raise tables.no_column(path, missing[0], row, "'column' or 'audio'")
        name = tables.text(row[audio], path, place, audio)
        begin, duration = _segment(path, place, row) if layout == "manifest" else (None, None)
        title = name or f"{path.name}, {place}"
        if begin is not None:
            title += f":{begin:g}" + (f"+{duration:g}" if duration else "")
        speaker = row.get(SPEAKER)
        yield Clip(
            title,
            *_said(row, path, place, texts),
            file=containment.below(folder, name, held, f"'{path}', {place}, column '{audio}'"),
            speaker=str(speaker) if speaker else None,
            begin=begin,
            duration=duration,
        )


def _said(row: dict[str, Any], path: Path, place: str, columns: list[str]) -> list[str | None]:
    """Return the transcript and, if the recipe names its column, the translation or None."""
    transcript, *more = (tables.text(row[name], path, place, name) for name in columns)
    return [transcript, *(text if row[columns[1]] is not None else None for text in more)]


def _kind(path: Path) -> str:
    """Return the format of a table; TSV unless its ending says otherwise."""
    kind = selection.format_of(path.name)
    return kind if kind and kind != "text" else "tsv"


def _segment(path: Path, place: str, row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return `offset` and `duration` of a row, in seconds, None where it gives none.

    A duration without an offset describes the whole file, in any notation; it is used if it is a number of seconds.
    """
    times = []
    for name in ("offset", "duration"):
        value = row.get(name)
        try:
            seconds = None if value in (None, "") else float(value)
        except (TypeError, ValueError):
            seconds = math.nan
        if isinstance(value, bool) or (seconds is not None and not 0 <= seconds < math.inf):
            if name == "duration" and times[0] is None:
                return None, None
            what = "seconds, 0 or more, are expected"
            raise QuantuneError(f"'{path}', {place}, column '{name}': {what}, found {value!a:.40}; correct the row")
        times.append(seconds)
    return times[0], times[1] or None


def _ljspeech(root: Path, path: Path, held: Path) -> Iterator[Clip]:
    """Yield the clips of an LJSpeech metadata.csv: id|transcript|normalized transcript; the last column is taken."""
    recordings = {item.stem: item.name for item in sorted((root / "wavs").iterdir()) if item.suffix in AUDIO}
    for number, line in enumerate(text_files.lines(path), 1):
        name, *texts = line.rstrip("\r\n").split("|")
        if texts:
            file = containment.below(
                root / "wavs", recordings.get(name, f"{name}.wav"), held, f"'{path}', line {number}"
            )
            yield Clip(name, texts[-1], file=file)


@lru_cache(maxsize=2)
def _column(path: Path, column: str, group: int) -> Any:
    """Return a column of one row group of a Parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, [column]).column(0)


def personal_columns(path: Path, layout: str) -> list[str]:
    """Return the names of the columns about speakers in a table; a table of LJSpeech has none."""
    names = [] if layout == "ljspeech" else tables.columns(path, "parquet" if layout == "parquet" else _kind(path))
    return [name for name in names if name in PERSONAL]
