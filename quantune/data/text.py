"""Tokenized documents as a model reads them: token streams and training blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.data.batches import BATCH_TOKENS
from quantune.data.tokens import encode


@dataclass
class Stream:
    """Documents joined into one sequence of tokens; three arrays of the same length (int32)."""

    ids: numpy.ndarray
    bytes: numpy.ndarray
    words: numpy.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def column(prepared: Path, split: str, name: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return one column (ids, bytes or words) of a split's documents, without a Python object for each number.

    Returns:
        The values of all documents, concatenated, int32; and the index at which each document begins, with the end of
        the last document: shape (documents + 1,), int64.
    """
    path = Path(prepared) / f"{split}.arrow"
    if not path.exists():
        splits = [item.stem for item in Path(prepared).glob("*.arrow")]
        raise QuantuneError(f"'{prepared}' has no split '{split}'; splits: {listed(splits)}{nearest(split, splits)}")
    with pyarrow.memory_map(str(path)) as source:
        chunks = pyarrow.ipc.open_file(source).read_all().column(name).chunks
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
        sizes = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
        none = numpy.empty(0, "int32")
        starts = numpy.concatenate([[0], numpy.cumsum(numpy.concatenate([none, *sizes]), dtype="int64")])
        return numpy.concatenate([none, *values]), starts.astype("int64")


def joined(values: numpy.ndarray, starts: numpy.ndarray, between: list[int]) -> numpy.ndarray:
    """Return the documents of a column, concatenated, int32, with the tokens `between` between any two documents."""
    after = starts[1:-1]  # the indices between two documents
    return numpy.insert(values, numpy.repeat(after, len(between)), numpy.tile(between, len(after)).astype("int32"))


def stream(prepared: Path, split: str, tokenizer, separator: str) -> Stream:
    """Join a split's documents by a separator, after the tokens that begin a text (such as `<s>`)."""
    begin = list(tokenizer("", verbose=False)["input_ids"])
    joint = encode([separator], tokenizer) if separator else {"ids": [[]], "bytes": [[]], "words": [[]]}
    first = {"ids": begin, "bytes": [0] * len(begin), "words": [0] * len(begin)}
    parts = {name: joined(*column(prepared, split, name), joint[name][0]) for name in first}
    return Stream(*(numpy.concatenate([numpy.array(first[name], dtype="int32"), parts[name]]) for name in first))


def blocks(prepared: Path, split: str, end: int, length: int) -> numpy.ndarray:
    """Return the split as training blocks, shape (blocks, length), int64: documents joined by token `end` and cut.

    Raises:
        QuantuneError: if the split has fewer tokens than one block.
    """
    if end is None:
        raise QuantuneError(f"the tokenizer has no end-of-text token to join the documents of '{split}' with")
    values, starts = column(prepared, split, "ids")
    whole = numpy.append(joined(values, starts, [end]), [end] if len(starts) > 1 else []).astype("int64")
    count = len(whole) // length
    if not count:
        raise QuantuneError(
            f"split '{split}' has {len(whole)} tokens, fewer than one block of {length}; lower 'length'"
        )
    return whole[: count * length].reshape(count, length)


class Blocks:
    """Blocks of a split as examples; see `batches.Data`."""

    def __init__(self, blocks: numpy.ndarray):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    unit = "blocks of tokens"

    def content(self, number: int) -> bytes:
        """Return the bytes that identify a block."""
        return self.blocks[number].astype("<i8").tobytes()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in some of the blocks."""
        return len(chosen) * self.blocks.shape[1]

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield some of the blocks as a model's inputs, about `BATCH_TOKENS` tokens in each batch."""
        import torch

        size = max(1, BATCH_TOKENS // self.blocks.shape[1])
        for first in range(0, len(chosen), size):
            yield {"input_ids": torch.from_numpy(self.blocks[chosen[first : first + size]])}

    def lengths(self) -> None:
        """Return None: all blocks have the same length."""

    def batch(self, examples: list[int]) -> dict[str, Any]:
        """Return input_ids and labels, the same tensor, shape (examples, length), int64."""
        import torch

        tokens = torch.from_numpy(self.blocks[examples])
        return {"input_ids": tokens, "labels": tokens}

    def batches(self, size: int) -> Iterator[dict[str, Any]]:
        """Yield all blocks with labels, `size` in each batch."""
        for first in range(0, len(self), size):
            yield self.batch(list(range(first, min(first + size, len(self)))))


def require_length(config, length: int) -> None:
    """Raise QuantuneError if the model was not made for sequences of this length."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise QuantuneError(f"length {length} is more than the model's {limit} positions; lower 'length'")
