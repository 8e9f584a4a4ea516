"""Tokenized documents as a model reads them: token streams and training blocks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy

from quantune.core.errors import QuantuneError
from quantune.data.batches import BATCH_TOKENS, IGNORED
from quantune.data.columns import Column, Joined, Own, Sequence, holds_responses

PART = 2**20  # tokens that are counted at once


@dataclass
class Stream:
    """Documents joined into one sequence of tokens, of which slices are read."""

    ids: Sequence
    """Token ids; `bytes` and `words` belong to the same tokens: shape (tokens,), int32."""
    bytes: Sequence
    words: Sequence
    starts: numpy.ndarray
    """Index of each document's first token: shape (documents,), int64."""
    ends: numpy.ndarray
    """Index after each document's last token: shape (documents,), int64."""
    marks: Sequence | None = None
    """Of conversations: above 0 for a token of the content of a response."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def own(self) -> Own:
        """Whether a token is scored: it belongs to a document; of a conversation, to the content of a response."""
        return Own(self.starts, self.ends, len(self), self.marks)

    def scored(self) -> int:
        """Return how many tokens are scored."""
        if self.marks is None:
            return int((self.ends - self.starts).sum())
        return sum(int((self.marks[first : first + PART] > 0).sum()) for first in range(0, len(self), PART))


def column(prepared: Path, split: str, name: str, most: int | None = None) -> tuple[Column, numpy.ndarray]:
    """Return one column (ids, bytes or words) of a split's documents, or of the first `most`, mapped from disk.

    Returns:
        The values of all documents, one after the other, int32; and the index at which each document begins, with the
        end of the last document: shape (documents + 1,), int64.
    """
    mapped = Column(prepared, split, name)
    return mapped, mapped.starts[: None if most is None else most + 1]


def beginning(tokenizer) -> list[int]:
    """Return the token ids that the tokenizer puts before a text, such as `<s>`; those that it appends are left out."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    return [
        token for token, _ in takewhile(all, zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
    ]


def prompt(text: str, tokenizer) -> list[int]:
    """Return the token ids of a text that a model continues: the beginning and the text, without an end token."""
    return beginning(tokenizer) + tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def stream(prepared: Path, split: str, tokenizer, apart: bool = False) -> Stream:
    """Join a split's documents after the tokens that begin a text.

    Args:
        prepared: the folder of the prepared dataset.
        split: its split.
        tokenizer: of the model.
        apart: begin every document as a text of its own; else documents are joined by the end-of-text token, as
            training blocks are.

    Raises:
        QuantuneError: if the tokenizer has no token to join documents with.
    """
    if holds_responses(prepared, split):  # the template begins a conversation, and each is alone
        parts = [Joined(*column(prepared, split, name), [], [], False) for name in ("ids", "bytes", "words", "turns")]
        return Stream(*parts[:3], parts[0].starts, parts[0].ends, parts[3])
    begin, end = beginning(tokenizer), tokenizer.eos_token_id
    between = begin if apart and begin else [end]
    first = between if apart else begin
    columns = [column(prepared, split, name) for name in ("ids", "bytes", "words")]
    if end is None and len(columns[0][1]) > 2 and None in between:
        raise QuantuneError(f"the tokenizer has no end-of-text token to join the documents of '{split}' with")
    between = [] if None in between else between
    fills = [(between, first), *[([0] * len(between), [0] * len(first))] * 2]
    parts = [Joined(*values, *fill, False) for values, fill in zip(columns, fills, strict=True)]
    return Stream(*parts, parts[0].starts, parts[0].ends)


def blocks(prepared: Path, split: str, end: int, length: int, most: int | None = None) -> "Cut":
    """Return the split as training blocks, shape (blocks, length), int64: documents joined by token `end` and cut.

    With `most`, only so many documents are read, from the first.

    Raises:
        QuantuneError: if the split has fewer tokens than one block.
    """
    if end is None:
        raise QuantuneError(f"the tokenizer has no end-of-text token to join the documents of '{split}' with")
    whole = Joined(*column(prepared, split, "ids", most), [end], [], closed=True)
    if len(whole) < length:
        raise QuantuneError(
            f"split '{split}' has {len(whole)} tokens, fewer than one block of {length}; lower 'length'"
        )
    return Cut(whole, length)


class Cut(Sequence):
    """A sequence cut into blocks of one length: an array of shape (blocks, length) whose rows are read from disk."""

    dtype = numpy.dtype("int64")

    def __init__(self, whole: Sequence, length: int):
        self.whole, self.shape = whole, (len(whole) // length, length)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, begin: int, end: int) -> numpy.ndarray:
        """Return neighbouring blocks."""
        length = self.shape[1]
        return self.whole[begin * length : end * length].reshape(-1, length).astype("int64")

    def __getitem__(self, place: Any) -> numpy.ndarray:
        if isinstance(place, list):
            return numpy.concatenate([self.part(number, number + 1) for number in place])
        return self.part(place, place + 1)[0] if isinstance(place, int) else super().__getitem__(place)


class Blocks:
    """Blocks of a split as examples; see `batches.Data`."""

    def __init__(self, blocks: "numpy.ndarray | Cut"):
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

    def labels(self, chosen: list[int]) -> int:
        """Return the labels of some of the blocks: each token but the first is predicted."""
        return len(chosen) * (self.blocks.shape[1] - 1)

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


class Documents:
    """Documents of a split as examples, one by one: each is a text of its own. A batch is padded on the right to its
    longest document; see `batches.Data`.
    """

    unit = "documents"

    def __init__(self, prepared: Path, split: str, tokenizer, length: int, end_of_text: bool, most: int | None = None):
        """Read a split.

        Args:
            prepared: the folder of the prepared dataset.
            split: its split.
            tokenizer: of the model; its tokens that begin a text, such as `<s>`, begin each document.
            length: the most tokens of an example; the rest of a longer document is left out.
            end_of_text: whether the end-of-text token follows each document.
            most: the number of documents, from the first; None: all.

        Raises:
            QuantuneError: if no document has two tokens, or the tokenizer lacks the end-of-text token.
        """
        end = tokenizer.eos_token_id
        if end_of_text and end is None:
            raise QuantuneError("the tokenizer has no end-of-text token; take 'end_of_text: false'")
        self.before, self.length = numpy.array(beginning(tokenizer), "int64"), length
        self.after = numpy.array([end] if end_of_text else [], "int64")
        self.padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.ids, self.starts = column(prepared, split, "ids", most)
        whole = numpy.diff(self.starts)
        sizes = numpy.minimum(whole + len(self.before) + len(self.after), length)
        self.numbers = numpy.flatnonzero((whole > 0) & (sizes > 1))
        self.sizes = sizes[self.numbers]
        self.label_counts = self.sizes - 1
        """Labels of each document: each token but the first is predicted."""
        self.cut = int((whole + len(self.before) + len(self.after) > length).sum())
        if not len(self):
            raise QuantuneError(f"split '{split}': no document has two tokens; there is nothing to predict")
        if self.cut:
            print(f"{split}: {self.cut} of {len(self)} documents are longer than {length} tokens and were cut")
        if short := len(whole) - len(self):
            print(f"{split}: left out {short} documents of fewer than two tokens")

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, number: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the token ids and the labels of a document, int64; nothing predicts the first token."""
        begin, end = self.starts[self.numbers[number] :][:2]
        ids = numpy.concatenate([self.before, self.ids[begin:end], self.after])[: self.length]
        return ids, numpy.concatenate([[IGNORED], ids[1:]])

    def content(self, number: int) -> bytes:
        """Return the bytes that identify a document."""
        return self.example(number)[0].astype("<i8").tobytes()

    def lengths(self) -> list[int]:
        """Return the tokens in each document."""
        return self.sizes.tolist()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in some of the documents."""
        return int(self.sizes[chosen].sum())

    def labels(self, chosen: list[int]) -> int:
        """Return the labels of some of the documents."""
        return int(self.label_counts[chosen].sum())

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield some of the documents as a model's inputs, one in each batch."""
        import torch

        for number in chosen:
            yield {"input_ids": torch.from_numpy(self.example(number)[0])[None]}

    def batch(self, examples: list[int]) -> dict[str, Any]:
        """Return input_ids, attention_mask (0: padding) and labels, each of shape (examples, longest), int64."""
        import torch

        shape = len(examples), int(self.sizes[examples].max())
        tokens, labels = torch.full(shape, self.padding), torch.full(shape, IGNORED)
        mask = torch.zeros(shape, dtype=torch.int64)
        for row, number in enumerate(examples):
            ids, targets = map(torch.from_numpy, self.example(number))
            tokens[row, : len(ids)], mask[row, : len(ids)], labels[row, : len(ids)] = ids, 1, targets
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def require_length(config, length: int) -> None:
    """Raise QuantuneError if the model was not made for sequences of this length."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit and length > limit:
        raise QuantuneError(f"length {length} is more than the model's {limit} positions; lower 'length'")
