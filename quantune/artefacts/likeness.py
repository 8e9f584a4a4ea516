"""How alike two builds of the same artefact are: bit-equal, equal within a tolerance, or different and by how much.

The distance of two floating-point arrays is the Frobenius norm of their difference, relative to that of the first.
Integers, such as packed weights, and texts are equal or not.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from quantune.artefacts.hashes import file_sha256
from quantune.artefacts.record import ABSENT, UNRECORDED, read_provenance

TOLERANCE = 1e-5
"""Largest relative distance that rounding explains: other kernels, another order of summation."""


@dataclass(frozen=True)
class Difference:
    """The largest difference in one file."""

    file: str
    distance: float
    """Relative; infinite if the file has no counterpart, another shape or other text."""
    where: str
    """The tensor, column or key that differs most, or another problem, in words."""

    @property
    def tolerable(self) -> bool:
        """Whether rounding can explain the difference."""
        return self.distance <= TOLERANCE


def differences(first: Path, second: Path) -> list[Difference]:
    """Return the differences of two artefacts: of their files, and of digest and facts in their provenance.

    An empty list means bit-equal. Facts of the run (`run.json`) are not compared.
    """
    names = {name for folder in (first, second) for name in _files(folder)}
    compared = [_file(name, first / name, second / name) for name in sorted(names)]
    before, after = read_provenance(first) or {}, read_provenance(second) or {}
    for part in ("digest", "facts"):
        compared += [_worst(f"provenance.json: {part}", _of_values(before.get(part), after.get(part)))]
    return [item for item in compared if item]


def _files(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNRECORDED]
    return [str(path.relative_to(folder)) for path in paths]


def _file(name: str, first: Path, second: Path) -> Difference | None:
    for path, which in ((first, "first"), (second, "second")):
        if not path.exists():
            return Difference(name, math.inf, f"is not in the {which}")
    if file_sha256(first) == file_sha256(second):
        return None
    reader = READERS.get(first.suffix)
    if reader is None:
        return Difference(name, math.inf, "other content")
    return _worst(name, _of_values(reader(first), reader(second))) or Difference(name, 0.0, "same values, other bytes")


def _worst(name: str, distances: Iterator[tuple[str, float]]) -> Difference | None:
    worst = max(distances, key=lambda item: math.inf if math.isnan(item[1]) else item[1], default=None)
    return Difference(name, worst[1], worst[0]) if worst else None


def _of_values(first: Any, second: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Yield key and relative distance of every pair of values that is not equal."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            yield from _of_values(first.get(name, ABSENT), second.get(name, ABSENT), f"{key}.{name}" if key else name)
    elif _is_numeric(first) and _is_numeric(second):
        first, second = numpy.asarray(first), numpy.asarray(second)
        if first.shape != second.shape or first.dtype != second.dtype:
            yield f"{key}: {first.dtype}{list(first.shape)} and {second.dtype}{list(second.shape)}", math.inf
        elif first.dtype.kind != "f" and not numpy.array_equal(first, second):
            yield f"{key}: {numpy.mean(first != second):.2%} of {first.size:,} whole numbers differ", math.inf
        elif not numpy.array_equal(first, second, equal_nan=first.dtype.kind == "f"):
            yield key, distance(first, second)
    elif first is ABSENT or second is ABSENT:
        yield f"{key} is in only one of them", math.inf
    elif first != second:
        yield f"{key}: {_short(first)} and {_short(second)}", math.inf


def distance(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Return ‖second − first‖ / ‖first‖; infinite if infinities or NaN are not in the same places of both."""
    first, second = first.astype(numpy.float64), second.astype(numpy.float64)
    special = ~numpy.isfinite(first) | ~numpy.isfinite(second)
    if not numpy.array_equal(first[special], second[special], equal_nan=True):
        return math.inf
    first, second = first[~special], second[~special]
    norm = numpy.linalg.norm(first)
    return float(numpy.linalg.norm(second - first) / norm) if norm else math.inf


def _is_numeric(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, (int, float)) for item in value)
    return isinstance(value, (int, float, numpy.ndarray)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _tensors(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    known = {torch.from_numpy(numpy.empty(0, kind)).dtype for kind in "?bhilBefd"}

    def array(item: torch.Tensor) -> numpy.ndarray:
        return (item if item.dtype in known else item.float()).numpy()

    return {f"{name} ({item.dtype})": array(item) for name, item in load_file(path).items()}


def _columns(path: Path) -> dict[str, Any]:
    """Return the columns of a table; those that hold no numbers as text."""
    import pandas

    table = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)
    numeric = {name: pandas.api.types.is_numeric_dtype(column) for name, column in table.items()}
    return {name: column.to_numpy() if numeric[name] else list(map(_plain, column)) for name, column in table.items()}


def _plain(item: Any) -> Any:
    return item.tolist() if isinstance(item, numpy.ndarray) else str(item)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path: Path) -> dict[str, Any]:
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {f"line {number}": json.loads(line) for number, line in enumerate(lines, 1)}


READERS = {
    ".safetensors": _tensors,
    ".parquet": _columns,
    ".csv": _columns,
    ".json": _json,
    ".jsonl": _json_lines,
}
"""Suffix -> how to read a file as nested dictionaries of arrays and plain values."""
