"""Columns of a prepared split, mapped from disk: a slice reads its own values, and nothing else is in memory.

Memory holds eight bytes for each document, the index of its first token.
"""

from pathlib import Path
from typing import Any

import numpy
import pyarrow

from quantune.core.errors import QuantuneError, listed, nearest


class Sequence:
    """A sequence of numbers of which slices are read: subclasses give the length and `part`."""

    dtype = numpy.dtype("int32")

    def __len__(self) -> int:
        raise NotImplementedError

    def part(self, begin: int, end: int) -> numpy.ndarray:
        """Return the numbers from `begin` to before `end`, which are inside the sequence."""
        raise NotImplementedError

    def __getitem__(self, place: Any) -> numpy.ndarray:
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            return self.part(begin, max(begin, end))[::step]
        return self.part(0, len(self))[place if isinstance(place, tuple) else numpy.asarray(place)]

    def __array__(self, dtype=None, copy=None) -> numpy.ndarray:
        return numpy.asarray(self[:], dtype)

    def tolist(self) -> list[int]:
        """Return all numbers as a list."""
        return self[:].tolist()


class Column(Sequence):
    """One column of a split (ids, bytes, words or turns): the values of all documents, one after the other."""

    def __init__(self, prepared: Path, split: str, name: str):
        """Map a column.

        Raises:
            QuantuneError: if there is no such split.
        """
        table = _table(prepared, split)
        chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
        self.chunks = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in chunks]
        sizes = numpy.fromiter(map(len, self.chunks), "int64", len(chunks))
        self.ends = numpy.cumsum(sizes)
        """Index after the last value of each chunk."""
        self.starts = numpy.zeros(table.num_rows + 1, "int64")
        """Index at which each document begins, with the end of the last: shape (documents + 1,), int64."""
        row = 1
        for chunk, before in zip(chunks, self.ends - sizes, strict=True):
            offsets = chunk.offsets.to_numpy(zero_copy_only=True)
            self.starts[row : row + len(chunk)] = before + (offsets[1:].astype("int64") - offsets[0])
            row += len(chunk)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def part(self, begin: int, end: int) -> numpy.ndarray:
        """Return some values; they are not copied if they are in one chunk."""
        parts, number = [], int(numpy.searchsorted(self.ends, begin, side="right"))
        while begin < end:
            first = int(self.ends[number]) - len(self.chunks[number])
            parts.append(self.chunks[number][begin - first : end - first])
            begin, number = int(self.ends[number]), number + 1
        return parts[0] if len(parts) == 1 else numpy.concatenate([numpy.empty(0, "int32"), *parts])


class Joined(Sequence):
    """The documents of a column in one sequence, with tokens before the first and between any two of them."""

    def __init__(self, values: Sequence, starts: numpy.ndarray, between: list[int], first: list[int], closed: bool):
        """Join documents.

        Args:
            values: the column.
            starts: the index of each document in it, with the end of the last.
            between: tokens between two documents.
            first: tokens before the first document.
            closed: whether the tokens `between` follow the last document, too.
        """
        self.values, self.raw = values, starts
        self.between, self.before = (numpy.array(tokens, "int32") for tokens in (between, first))
        self.starts = starts[:-1] + len(first) + len(between) * numpy.arange(max(len(starts) - 1, 0))
        """Index of each document's first token."""
        self.ends = self.starts + numpy.diff(starts)
        last = len(self.starts) - 1
        self.size = len(first) if last < 0 else int(self.ends[last]) + len(between) * closed

    def __len__(self) -> int:
        return self.size

    def part(self, begin: int, end: int) -> numpy.ndarray:
        """Return some tokens, int32."""
        places = numpy.arange(begin, end)
        document = numpy.searchsorted(self.starts, places, side="right") - 1
        tokens, known = numpy.empty(len(places), "int32"), document >= 0
        tokens[~known] = self.before[places[~known]]
        after = numpy.full(len(places), -1)
        after[known] = places[known] - self.ends[document[known]]
        tokens[after >= 0] = self.between[after[after >= 0]]
        inside = numpy.flatnonzero(known & (after < 0))  # their values lie one after the other in the column
        if len(inside):
            ends = inside[[0, -1]]
            low, high = (places[ends] - self.starts[document[ends]] + self.raw[document[ends]]).tolist()
            tokens[inside] = self.values[low : high + 1]
        return tokens


class Own(Sequence):
    """Whether each token of joined documents belongs to a document, and is marked if marks are given; bool."""

    dtype = numpy.dtype("bool")

    def __init__(self, starts: numpy.ndarray, ends: numpy.ndarray, size: int, marks: Sequence | None = None):
        self.starts, self.ends, self.size, self.marks = starts, ends, size, marks

    def __len__(self) -> int:
        return self.size

    def part(self, begin: int, end: int) -> numpy.ndarray:
        """Return whether some tokens do."""
        if self.marks is not None:
            return self.marks[begin:end] > 0
        places = numpy.arange(begin, end)
        document = numpy.searchsorted(self.starts, places, side="right") - 1
        return (document >= 0) & (places < self.ends[numpy.maximum(document, 0)]) if len(self.ends) else places < 0


def _table(prepared: Path, split: str) -> pyarrow.Table:
    path = Path(prepared) / f"{split}.arrow"
    if not path.exists():
        splits = [item.stem for item in Path(prepared).glob("*.arrow")]
        raise QuantuneError(f"'{prepared}' has no split '{split}'; splits: {listed(splits)}{nearest(split, splits)}")
    with pyarrow.memory_map(str(path)) as source:
        return pyarrow.ipc.open_file(source).read_all()


def holds_responses(prepared: Path, split: str) -> bool:
    """Return whether a split holds conversations, whose responses are marked."""
    return "turns" in _table(prepared, split).column_names
