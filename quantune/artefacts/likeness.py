"""How alike two makings of the same artefact are: bit-equal, equal within a tolerance, or different and by how much.

The distance of two floating-point arrays is the Frobenius norm of their difference, relative to that of the first.
Whole numbers, such as packed weights, and texts are equal or not.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from quantune.artefacts.hashes import file_sha256
from quantune.artefacts.record import ABSENT, UNRECORDED, recorded

TOLERANCE = 1e-5
"""Relative distance of what may differ by rounding: other kernels, another order of summation."""


@dataclass(frozen=True)
class Difference:
    """What differs in one file."""

    file: str
    distance: float
    """Relative; infinite if the file has no counterpart, another shape or other text."""
    where: str
    """The tensor, column or key that differs most, or what else is wrong."""

    @property
    def tolerable(self) -> bool:
        """Whether it may be rounding."""
        return self.distance <= TOLERANCE


def differences(first: Path, second: Path) -> list[Difference]:
    """Return what differs between two artefacts: files by content, then by numbers; what its provenance tells.

    An empty list means bit-equal. What belongs to the run, not to the artefact, is left out.
    """
    names = {name for folder in (first, second) for name in _files(folder)}
    found = [_file(name, first / name, second / name) for name in sorted(names)]
    before, after = recorded(first) or {}, recorded(second) or {}
    for part in ("digest", "facts"):
        found += [_worst(f"provenance.json: {part}", _of_values(before.get(part), after.get(part)))]
    return [item for item in found if item]


def _files(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNRECORDED]
    return [str(path.relative_to(folder)) for path in paths]


def _file(name: str, first: Path, second: Path) -> Difference | None:
    for path, of in ((first, "first"), (second, "second")):
        if not path.exists():
            return Difference(name, math.inf, f"is not in the {of}")
    if file_sha256(first) == file_sha256(second):
        return None
    reader = READERS.get(first.suffix)
    if reader is None:
        return Difference(name, math.inf, "other content")
    return _worst(name, _of_values(reader(first), reader(second))) or Difference(name, 0.0, "same values, other bytes")


def _worst(name: str, found: Iterator[tuple[str, float]]) -> Difference | None:
    worst = max(found, key=lambda item: math.inf if math.isnan(item[1]) else item[1], default=None)
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
        yield f"{key} is in one of them alone", math.inf
    elif first != second:
        yield f"{key}: {_short(first)} and {_short(second)}", math.inf


def distance(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Return ‖second − first‖ / ‖first‖; infinite if infinities and what is no number are not the same in both."""
    first, second = first.astype(numpy.float64), second.astype(numpy.float64)
    odd = ~numpy.isfinite(first) | ~numpy.isfinite(second)
    if not numpy.array_equal(first[odd], second[odd], equal_nan=True):
        return math.inf
    first, second = first[~odd], second[~odd]
    size = numpy.linalg.norm(first)
    return float(numpy.linalg.norm(second - first) / size) if size else math.inf


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
    """Return the columns of a table; what is not numbers as text."""
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
