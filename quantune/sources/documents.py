"""Documents of text, read from files one after the other."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from quantune.core.errors import QuantuneError, listed
from quantune.sources import chat, row_templates, tables, text_files
from quantune.sources.selection import FORMATS, format_of

BETWEEN = {"line": r"\n", "paragraph": r"\n[ \t]*\n", "file": r"(?!)"}
"""Unit of a document -> the regular expression of the text between two documents."""


def read_documents(path: Path, recipe: dict) -> Iterator[Iterable[str]]:
    """Yield each document of a file, as its parts one after the other.

    With `first`, reading ends after that many documents: the rest of the file is neither read nor verified.

    Args:
        path: a text, JSON, JSON lines, CSV, TSV or Parquet file, or one of these compressed with gzip.
        recipe: the dataset's recipe: format, column, document, first, join; template or chat.

    Raises:
        QuantuneError: naming the file, the place and the column, if the file cannot be read, or the column is missing
            or not text.
    """
    texts = islice(_documents(path, recipe), recipe["first"])
    if recipe["join"] is None:
        yield from ((text,) for text in texts)
    else:
        yield _joined(texts, recipe["join"])


def _joined(texts: Iterator[str], between: str) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield between
        yield text


def _documents(path: Path, recipe: dict) -> Iterator[str]:
    kind = recipe["format"] or format_of(path.name)
    if kind is None:
        known = listed(sorted(set(FORMATS.values())))
        raise QuantuneError(f"'{path}': unknown format '{path.suffix}'; set the dataset's 'format' to one of: {known}")
    form, template = recipe.get("chat"), recipe.get("template")
    if kind == "text" and (form or template):
        key = "chat" if form else "template"
        raise QuantuneError(f"'{path}' is plain text, and '{key}' needs rows: json, csv, tsv or parquet; set 'format'")
    if form:
        return chat.read(path, kind, form, recipe.get("columns", {}))
    if template:
        return row_templates.read(path, kind, template)
    if kind == "text":
        return _divided(path, recipe["document"])
    column = recipe["column"]
    return (tables.text(row.get(column), path, place, column) for place, row in tables.rows(path, kind, [column]))


def _divided(path: Path, unit: str) -> Iterator[str]:
    """Yield the documents of a text file; its last, unfinished one stays in memory until its end is read."""
    parts, kept, fresh = [], 0, 0  # kept, fresh: characters that were searched for an end, and that were not
    for chunk in text_files.chunks(path):
        parts.append(chunk)
        fresh += len(chunk)
        if kept + fresh > text_files.LARGEST and len(parts) > 1 and kept > text_files.LARGEST // 2:
            raise text_files.too_long(path, f"document: {unit}")
        if fresh >= kept:  # searching the unfinished document again for each chunk would take quadratic time
            *whole, rest = re.split(BETWEEN[unit], "".join(parts))
            yield from _trimmed(whole, unit)
            parts, kept, fresh = [rest], len(rest), 0
    yield from _trimmed(re.split(BETWEEN[unit], "".join(parts)), unit)


def _trimmed(texts: list[str], unit: str) -> Iterator[str]:
    return (text.strip("\n") if unit == "paragraph" else text for text in texts)
