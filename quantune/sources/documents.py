"""Documents of text: read from files, divided into splits, and compared to remove leaks."""

import csv
import gzip
import re
from collections import defaultdict
from pathlib import Path

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.sources.draw import order
from quantune.sources.selection import FORMATS, GZIP, format_of

NEAR = 0.5  # share of a document's three-word runs, all in one training document, that makes it a near duplicate


def read_documents(path: Path, recipe: dict) -> list[str]:
    """Return a file's documents.

    Args:
        path: a text, JSON, JSON lines, CSV, TSV or Parquet file, or one of these compressed with gzip.
        recipe: the dataset's recipe: format, column, document, first, join.

    Raises:
        QuantuneError: naming the file and the column, if the file cannot be read, or the column is missing or not text.
    """
    texts = _documents(path, recipe)[: recipe["first"]]
    return texts if recipe["join"] is None else [recipe["join"].join(texts)]


def _documents(path: Path, recipe: dict) -> list[str]:
    kind = recipe["format"] or format_of(path.name)
    if kind is None:
        known = listed(sorted(set(FORMATS.values())))
        raise QuantuneError(f"'{path}': unknown format '{path.suffix}'; set the dataset's 'format' to one of: {known}")
    if kind == "text":
        try:
            with (gzip.open if path.suffix == GZIP else open)(path, "rt", encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise QuantuneError(f"'{path}' is not UTF-8 text ({error}); convert it, for example with iconv") from None
        except gzip.BadGzipFile as error:
            raise QuantuneError(f"'{path}' is not compressed with gzip ({error})") from None
        if recipe["document"] == "file":
            return [text]
        return text.split("\n") if recipe["document"] == "line" else _paragraphs(text)
    return _column(path, kind, recipe["column"], recipe["first"])


def _paragraphs(text: str) -> list[str]:
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text)]


def _column(path: Path, kind: str, column: str, first: int | None) -> list[str]:
    import tempfile

    import datasets

    datasets.disable_progress_bars()
    options = {"keep_default_na": False} if kind in ("csv", "tsv") else {}
    if kind == "tsv":
        options |= {"sep": "\t", "quoting": csv.QUOTE_NONE}
    builder = "csv" if kind == "tsv" else kind
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(builder, data_files=str(path), split="train", cache_dir=cache, **options)
        except Exception as error:
            cause = str(error.__cause__ or error).splitlines() or ["it is empty"]
            raise QuantuneError(f"'{path}' cannot be read as {kind}: {cause[0]}") from error
        if column not in table.column_names:
            raise QuantuneError(
                f"'{path}' has no column '{column}'; columns: {listed(table.column_names)}"
                f"{nearest(column, table.column_names)}; set the dataset's 'column'"
            )
        values = list(table[column][:first])
    for bad in (value for value in values if value is not None and not isinstance(value, str)):
        raise QuantuneError(f"'{path}', column '{column}': text expected, found {type(bad).__name__} ({bad!r:.40})")
    return [value or "" for value in values]


def divide(texts: list[str], shares: dict[str, float], seed: int) -> dict[str, list[str]]:
    """Return split -> documents, divided by shares in an order drawn from the seed.

    The order is that of SHA-256 over seed and position, so it does not depend on the version of a library.
    """
    numbers = order(len(texts), seed)
    parts, begin, share = {}, 0, 0.0
    for split, part in shares.items():
        share += part
        end = round(share * len(texts))
        parts[split] = [texts[index] for index in sorted(numbers[begin:end])]
        begin = end
    return parts


def without_leaks(splits: dict[str, list[str]], how: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Remove held-out documents that repeat a training document.

    Args:
        splits: split -> documents; "train" is the training split.
        how: "exact" (same letters and digits, case aside) or "near" (also: at least half of the document's three-word
            runs occur in one training document).

    Returns:
        The splits, and split -> number of documents removed.
    """
    exact = {_normal(text) for text in splits["train"]}
    index = defaultdict(list)
    if how == "near":
        for number, text in enumerate(splits["train"]):
            for run in _runs(text):
                index[run].append(number)
    kept, dropped = {"train": splits["train"]}, {}
    for split, texts in splits.items():
        if split != "train":
            kept[split] = [text for text in texts if _normal(text) not in exact and not _near(text, index)]
            dropped[split] = len(texts) - len(kept[split])
    return kept, dropped


def _near(text: str, index: dict[tuple, list[int]]) -> bool:
    runs, hits = _runs(text), defaultdict(int)
    for run in runs:
        for number in index.get(run, ()):
            hits[number] += 1
    return bool(hits) and max(hits.values()) >= NEAR * len(runs)


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()


def _normal(text: str) -> str:
    return " ".join(_words(text)) or text.strip()


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _words(text) or [text.strip()]
    return {tuple(words[index : index + 3]) for index in range(max(1, len(words) - 2))}
