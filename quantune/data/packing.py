"""Whole documents in sequences of a fixed length, without attention from one document to another.

Positions begin at 0 in each document. Most models of transformers divide attention where positions begin again. Others
need an attention mask of all pairs of tokens. Some can do neither: `settle` finds out by trying, and refuses them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

from quantune.core.errors import QuantuneError
from quantune.data.batches import IGNORED
from quantune.data.text import Documents


class Packed:
    """Documents of a split as examples, several in a sequence; see `batches.Data`."""

    unit = "sequences of whole documents"

    def __init__(self, documents: Documents):
        """Pack documents: the longest first, each into the fullest sequence that has room."""
        self.documents, self.cut, self.masked = documents, documents.cut, False
        self.members, self.begins = packed(numpy.asarray(documents.lengths()), documents.length)
        self.sizes = numpy.add.reduceat(numpy.asarray(documents.lengths())[self.members], self.begins[:-1])
        counts = documents.label_counts[self.members]
        self.counts = numpy.add.reduceat(counts, self.begins[:-1])

    def __len__(self) -> int:
        return len(self.begins) - 1

    def inside(self, number: int) -> list[int]:
        """Return the numbers of the documents in a sequence."""
        return self.members[self.begins[number] : self.begins[number + 1]].tolist()

    def content(self, number: int) -> bytes:
        """Return the bytes that identify a sequence."""
        return b"".join(self.documents.content(item) for item in self.inside(number))

    def lengths(self) -> list[int]:
        """Return the tokens in each sequence."""
        return self.sizes.tolist()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in some of the sequences."""
        return int(self.sizes[chosen].sum())

    def labels(self, chosen: list[int]) -> int:
        """Return the labels of some of the sequences."""
        return int(self.counts[chosen].sum())

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield the documents in some of the sequences as a model's inputs, one in each batch."""
        for number in chosen:
            yield from self.documents.inputs(self.inside(number))

    def batch(self, examples: list[int]) -> dict[str, Any]:
        """Return input_ids, position_ids and labels, each of shape (examples, longest), int64.

        Padding is a document of its own. If the model needs a mask, attention_mask is true where a token attends to
        another: shape (examples, 1, longest, longest).
        """
        shape = len(examples), int(self.sizes[examples].max())
        tokens, labels = torch.full(shape, self.documents.padding), torch.full(shape, IGNORED)
        positions, owners = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
        for row, number in enumerate(examples):
            begin = 0
            for item in self.inside(number):
                ids, targets = self.documents.example(item)
                end = begin + len(ids)
                tokens[row, begin:end], labels[row, begin:end] = torch.from_numpy(ids), torch.from_numpy(targets)
                positions[row, begin:end], owners[row, begin:end] = torch.arange(len(ids)), item
                begin = end
            positions[row, begin:] = torch.arange(shape[1] - begin)
        return {"input_ids": tokens, "position_ids": positions, "labels": labels} | (
            {"attention_mask": _mask(owners)} if self.masked else {}
        )


def _mask(owners: torch.Tensor) -> torch.Tensor:
    """Return which tokens a token attends to: those before it, and itself, of its own document."""
    length = owners.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return ((owners[:, :, None] == owners[:, None, :]) & causal)[:, None]


def packed(sizes: numpy.ndarray, length: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return documents packed into sequences of at most `length` tokens (best fit, the longest first).

    Args:
        sizes: the tokens of each document, each at most `length`.
        length: the most tokens of a sequence.

    Returns:
        The numbers of the documents, sequence by sequence, each ascending; and the index at which each sequence begins,
        with the end of the last.
    """
    where = numpy.empty(len(sizes), "int64")
    room: dict[int, list[int]] = {}  # free tokens -> sequences that have so many
    spaces: list[int] = []  # the keys of `room`, ascending
    count = 0
    for number in numpy.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[number])
        place = bisect_left(spaces, size)
        if place == len(spaces):
            free, sequence, count = length, count, count + 1
        else:
            free = spaces[place]
            sequence = room[free].pop()
            if not room[free]:
                del room[free], spaces[place]
        where[number] = sequence
        if free - size not in room:
            room[free - size] = []
            insort(spaces, free - size)
        room[free - size].append(sequence)
    members = numpy.argsort(where, kind="stable")
    return members, numpy.searchsorted(where[members], numpy.arange(count + 1))


def settle(model: torch.nn.Module, data: Iterable[Any]) -> None:
    """Let packed data be read by a model: by positions alone, or with a mask.

    Raises:
        QuantuneError: if the model's tokens attend to other documents either way.
    """
    packs = [part for item in data for part in getattr(item, "parts", [item]) if isinstance(part, Packed)]
    if not packs:
        return
    for masked in (False, True):
        if apart(model, masked):
            for part in packs:
                part.masked = masked
            return
    kind = getattr(model.config, "model_type", type(model).__name__)
    raise QuantuneError(
        f"'{kind}' cannot keep packed documents apart: a token attends to other documents, or positions do not begin"
        " again; set 'packing: false'"
    )


@torch.no_grad()
def apart(model: torch.nn.Module, masked: bool) -> bool:
    """Return whether a model keeps two packed documents apart, by positions alone or with a mask, by trying.

    The second document's logits must not depend on the first, and must be those of the document alone.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(0, vocabulary, (2, 80), generator=torch.Generator().manual_seed(0))
    first = 40  # tokens of the first document; more than the window of local attention in tests
    positions = torch.cat([torch.arange(first), torch.arange(80 - first)])[None]
    owners = (torch.arange(80) >= first).long()[None]
    tokens[1, first:] = tokens[0, first:]

    def logits(ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return model(input_ids=ids.to(device), use_cache=False, **inputs).logits[0, first - 80 :].float()

    try:
        inputs = {"position_ids": positions} | ({"attention_mask": _mask(owners)} if masked else {})
        one, other = (logits(tokens[row : row + 1], **inputs) for row in (0, 1))
        alone = logits(tokens[:1, first:])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # it takes no positions, or no mask
    finally:
        model.train(was_training)
    exact = alone.dtype == torch.float32 and all(value.dtype == torch.float32 for value in model.parameters())
    near = (1e-4 if exact else 0.1) * float(alone.abs().max())
    leak = float((one - other).abs().max())
    return leak <= near / 100 and float((one - alone).abs().max()) <= near
