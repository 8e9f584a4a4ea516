"""Draws of calibration samples as AutoGPTQ, optimum and AutoAWQ make them: from single documents, or at random places.

A document begins with the tokens that the tokenizer puts before a text. No document is drawn twice.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from quantune.core.errors import QuantuneError
from quantune.data import text
from quantune.data.batches import BATCH_TOKENS
from quantune.sources.draw import order


class Sequences:
    """Token sequences of any lengths as a model reads them, without padding."""

    def __init__(self, sequences: list[numpy.ndarray], documents: int, unit: str):
        self.sequences = sequences
        """Token ids, int64."""
        self.documents = documents
        """The number of documents that they are from, or of windows."""
        self.unit = unit

    def __len__(self) -> int:
        return len(self.sequences)

    def content(self, number: int) -> bytes:
        """Return the bytes that identify a sequence."""
        return self.sequences[number].astype("<i8").tobytes()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in some of the sequences."""
        return sum(len(self.sequences[number]) for number in chosen)

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield some of the sequences as a model's inputs; those in a batch have one length."""
        import torch

        by_length: dict[int, list[numpy.ndarray]] = {}
        for number in chosen:
            by_length.setdefault(len(self.sequences[number]), []).append(self.sequences[number])
        for length, sequences in sorted(by_length.items()):
            size = max(1, BATCH_TOKENS // length)
            for first in range(0, len(sequences), size):
                yield {"input_ids": torch.from_numpy(numpy.stack(sequences[first : first + size]))}


def draw(prepared: Path, split: str, tokenizer, how: str, samples: int, length: int, seed: int) -> Sequences:
    """Return calibration samples drawn from the documents of a split.

    Args:
        prepared: the folder of the prepared dataset.
        split: its split.
        tokenizer: of the model.
        how: `draw` of the quantization, which describes each, but for blocks.
        samples: the number of documents.
        length: tokens in a sample.
        seed: of the order of the documents, and of the windows' places.

    Raises:
        QuantuneError: if no document, or too little text, is fit for the draw.
    """
    if how == "windows":
        return _windows(text.stream(prepared, split, tokenizer).ids, split, samples, length, seed)
    values, starts = text.column(prepared, split, "ids")
    begin = text.beginning(tokenizer)
    sizes = numpy.diff(starts) + len(begin)
    fit = {"long-documents": sizes >= length, "short-documents": sizes <= length, "documents": sizes > 1}[how]
    fit = numpy.flatnonzero(fit & (numpy.diff(starts) > 0))
    if not len(fit):
        limit = {"long-documents": f" of at least {length} tokens", "short-documents": f" of at most {length} tokens"}
        raise QuantuneError(f"split '{split}' has no document{limit.get(how, '')}; change 'length' or 'draw'")
    numbers = [int(fit[place]) for place in order(len(fit), seed)[:samples]]
    whole = [numpy.concatenate([begin, values[starts[at] : starts[at + 1]]]).astype("int64") for at in numbers]
    if how == "documents":
        return Sequences([ids[:length] for ids in whole], len(whole), "documents")
    if how == "long-documents":
        places = [_place(seed, at, len(ids) - length + 1) for at, ids in zip(numbers, whole, strict=True)]
        windows = [ids[first : first + length] for first, ids in zip(places, whole, strict=True)]
        return Sequences(windows, len(windows), f"documents of at least {length} tokens")
    joined = numpy.concatenate(whole)
    count = len(joined) // length
    if not count:
        raise QuantuneError(
            f"the {len(whole)} documents drawn from '{split}' have {len(joined)} tokens, fewer than one block of"
            f" {length}; raise 'samples' or lower 'length'"
        )
    blocks = list(joined[: count * length].reshape(count, length))
    return Sequences(blocks, len(whole), f"documents of at most {length} tokens")


def _windows(joined: numpy.ndarray, split: str, samples: int, length: int, seed: int) -> Sequences:
    """Return windows at random places of the joined text, which may overlap."""
    places = len(joined) - length + 1
    if places < 1:
        raise QuantuneError(
            f"split '{split}' has {len(joined)} tokens, fewer than one window of {length}; lower 'length'"
        )
    begins = [_place(seed, number, places) for number in range(samples)]
    windows = [joined[at : at + length].astype("int64") for at in begins]
    return Sequences(windows, min(samples, len(joined) // length), "windows without overlap")


def _place(seed: int, number: int, places: int) -> int:
    """Return the begin of a window, drawn with the seed from so many places; `number` is the window's or document's."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:window".encode()).digest()) % places
