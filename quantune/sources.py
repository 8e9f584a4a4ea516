"""Models and datasets from outside, identified by their content, never by their path: which files, what is in them."""

import csv
import gzip
import hashlib
import json
import math
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from quantune.errors import ConfigError, QuantuneError, listed, nearest
from quantune.selection import FORMATS, PACKED, by_name, format_of, model_names

NEAR = 0.5  # share of a document's three-word runs found in one training document that makes it a near duplicate


def resolve(path: str, key: str) -> Path:
    """Return a configured path with its environment variables filled in.

    Raises:
        ConfigError: naming the key, if a variable is not set or nothing is there.
    """
    text = os.path.expanduser(os.path.expandvars(path))
    if "$" in text:
        name = re.sub(r"^\$\{?(\w*).*", r"\1", text[text.index("$") :], flags=re.DOTALL)
        raise ConfigError(f"{key}: environment variable '{name}' in '{path}' is not set; export {name}=/some/folder")
    found = Path(text)
    if not found.exists():
        there = [item.name for item in found.parent.iterdir()] if found.parent.is_dir() else []
        raise ConfigError(f"{key}: '{text}' does not exist{nearest(found.name, there)}")
    return found


def model_files(folder: Path, key: str) -> dict[str, Path]:
    """Return name -> path of the files of a model in Hugging Face layout.

    Raises:
        ConfigError: if there is no config.json or no safetensors weights.
    """
    if not folder.is_dir():
        raise ConfigError(f"{key}: '{folder}' is a file; give the folder that holds config.json and *.safetensors")
    try:
        names = model_names([path.name for path in sorted(folder.iterdir())], f"'{folder}'")
    except QuantuneError as error:
        raise ConfigError(f"{key}: {error}") from None
    return {name: folder / name for name in names}


def model_config(path: Path, what: str) -> dict[str, Any]:
    """Return what a model's config.json holds.

    Raises:
        QuantuneError: if it holds no JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise QuantuneError(f"{what}: config.json is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise QuantuneError(f"{what}: config.json does not hold a JSON object: not a config.json of transformers")
    return found


def copy_model(files: list[Path], folder: Path, ours: bool = False) -> None:
    """Copy a model's files; link them where they are `ours`, downloaded for this alone."""
    for path in files:
        try:
            if ours:
                os.link(path, folder / path.name)
                continue
        except OSError:
            pass  # a file system without links
        shutil.copyfile(path, folder / path.name)


def parameters(folder: Path) -> int:
    """Return the number of values in a folder's safetensors files, read from their headers."""
    from safetensors import safe_open

    files = [safe_open(path, "numpy") for path in folder.glob("*.safetensors")]
    return sum(math.prod(file.get_slice(name).get_shape()) for file in files for name in file.keys())  # noqa: SIM118


def split_files(root: Path, splits: dict, key: str) -> dict[str, list[Path]]:
    """Return split -> files; a dataset that is split by shares has its files under the split "".

    Raises:
        ConfigError: if a pattern matches nothing.
    """
    if root.is_file() or not splits or not by_name(splits):
        if splits and by_name(splits):
            raise ConfigError(f"{key}.path: '{root}' is a file; splits by file name need the folder that holds them")
        files = [root] if root.is_file() else [path for path in sorted(root.iterdir()) if format_of(path.name)]
        if not files:
            raise ConfigError(f"{key}.path: '{root}' holds no file of a known format ({listed(FORMATS)})")
        return {"": files}
    found = {}
    for split, patterns in splits.items():
        found[split] = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = sorted(path for path in root.glob(pattern) if path.is_file())
            if not matches:
                there = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
                raise ConfigError(f"{key}.splits.{split}: no file '{pattern}' in '{root}'{nearest(pattern, there)}")
            found[split] += matches
    return found


def documents(path: Path, recipe: dict) -> list[str]:
    """Read a file's documents.

    Args:
        path: a text, JSON, JSON lines, CSV, TSV or Parquet file, or one of these compressed with gzip.
        recipe: the dataset's recipe: format, column, document, first, join.

    Raises:
        QuantuneError: naming the file and the column, if the column is missing or not text.
    """
    found = _documents(path, recipe)[: recipe["first"]]
    return found if recipe["join"] is None else [recipe["join"].join(found)]


def _documents(path: Path, recipe: dict) -> list[str]:
    kind = recipe["format"] or format_of(path.name)
    if kind is None:
        known = listed(sorted(set(FORMATS.values())))
        raise QuantuneError(f"'{path}': unknown format '{path.suffix}'; set the dataset's 'format' to one of: {known}")
    if kind == "text":
        try:
            with (gzip.open if path.suffix == PACKED else open)(path, "rt", encoding="utf-8") as file:
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
    """Split documents by shares, in an order drawn from the seed.

    The order is that of SHA-256 over seed and position: the same with every version of every library.
    """
    order = sorted(range(len(texts)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    parts, begin, share = {}, 0, 0.0
    for split, part in shares.items():
        share += part
        end = round(share * len(texts))
        parts[split] = [texts[index] for index in sorted(order[begin:end])]
        begin = end
    return parts


def without_leaks(splits: dict[str, list[str]], how: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Drop held-out documents that repeat a training document.

    Args:
        splits: split -> documents; "train" is the training split.
        how: "exact" (same letters and digits, case aside) or "near" (also: at least half of the document's three-word
            runs occur in one training document).

    Returns:
        The splits, and split -> number of documents dropped.
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
