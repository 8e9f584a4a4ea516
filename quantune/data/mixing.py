"""Several data sets in one training: each gives its share of the examples of an epoch.

Which examples an epoch has follows from the shares, the sizes and the seed. The loop draws their order, as it does of
one data set, so a resumed training goes on with the same examples.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy

from quantune.core.errors import QuantuneError
from quantune.data.batches import IGNORED, Data
from quantune.sources.draw import order

Until = Literal["first", "all"] | int


def counts(sizes: dict[str, int], shares: dict[str, float], until: Until) -> dict[str, int]:
    """Return data set -> its examples in an epoch.

    Args:
        sizes: data set -> its examples.
        shares: data set -> its share, all but the first; that has the rest.
        until: the epoch ends when the first data set is exhausted (none is repeated), when all are (the others are
            repeated), or after so many examples.

    Raises:
        QuantuneError: if a share is less than one example.
    """
    main = next(iter(sizes))
    shares = {main: 1 - sum(shares.values())} | shares
    if isinstance(until, int):
        total = until
    else:
        ends = {name: sizes[name] / share for name, share in shares.items()}
        total = math.floor(min(ends.values()) + 1e-9) if until == "first" else math.ceil(max(ends.values()) - 1e-9)
    wanted = {name: round(share * total) for name, share in shares.items()}
    wanted[main] = total - sum(count for name, count in wanted.items() if name != main)
    if until == "first":
        wanted = {name: min(count, sizes[name]) for name, count in wanted.items()}
    elif until == "all":
        wanted = {name: max(count, sizes[name]) for name, count in wanted.items()}
    for name, count in wanted.items():
        if count < 1:
            raise QuantuneError(
                f"mix: of {total} examples a share of {shares[name]:g} of '{name}' is less than one; raise the share or"
                " 'mix_until', or take 'mix_until: all'"
            )
    return wanted


class Mixture:
    """Examples of several data sets, numbered as one; see `batches.Data`."""

    unit = "examples of several data sets"

    def __init__(self, parts: dict[str, Data], shares: dict[str, float], until: Until, seed: int):
        """Choose the examples of an epoch: of each data set the first in an order that the seed gives, again from the
        first if it has too few.
        """
        sizes = {name: len(part) for name, part in parts.items()}
        self.counts = counts(sizes, shares, until)
        self.parts = list(parts.values())
        drawn = [numpy.resize(numpy.array(order(sizes[name], seed)), count) for name, count in self.counts.items()]
        self.owners = numpy.repeat(numpy.arange(len(self.parts)), list(self.counts.values()))
        self.numbers = numpy.concatenate(drawn)
        for name, count in self.counts.items():
            print(f"an epoch has {count} examples of {name}, which has {sizes[name]}")

    def __len__(self) -> int:
        return len(self.numbers)

    def _by_part(self, chosen: list[int]) -> Iterator[tuple[Data, list[int]]]:
        """Yield each data set that some of the examples are of, and their numbers in it."""
        owners = self.owners[chosen]
        for owner in numpy.unique(owners).tolist():
            yield self.parts[owner], self.numbers[numpy.asarray(chosen)[owners == owner]].tolist()

    def lengths(self) -> list[int]:
        """Return the tokens in each example."""
        sizes = numpy.empty(len(self), "int64")
        for owner, part in enumerate(self.parts):
            own, lengths = self.owners == owner, part.lengths()
            sizes[own] = part.tokens([0]) if lengths is None else numpy.asarray(lengths)[self.numbers[own]]
        return sizes.tolist()

    def content(self, number: int) -> bytes:
        """Return the bytes that identify an example."""
        return self.parts[self.owners[number]].content(int(self.numbers[number]))

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in some of the examples."""
        return sum(part.tokens(numbers) for part, numbers in self._by_part(chosen))

    def labels(self, chosen: list[int]) -> int:
        """Return the labels of some of the examples."""
        return sum(part.labels(numbers) for part, numbers in self._by_part(chosen))

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, Any]]:
        """Yield some of the examples as a model's inputs, without labels and without padding."""
        for part, numbers in self._by_part(chosen):
            yield from part.inputs(numbers)

    def batch(self, examples: list[int]) -> dict[str, Any]:
        """Return the arguments of the model for some examples, those of each data set one after the other."""
        return joined([part.batch(numbers) for part, numbers in self._by_part(examples)])


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return several batches as one, padded on the right to the longest."""
    import torch

    if len(batches) == 1:
        return batches[0]
    longest = max(batch["labels"].shape[1] for batch in batches)
    square = any(batch.get("attention_mask", torch.empty(0)).dim() == 4 for batch in batches)
    names = dict.fromkeys(name for batch in batches for name in batch)
    columns: dict[str, list] = {name: [] for name in names}
    for batch in batches:
        for name in names:
            columns[name].append(_padded(batch, name, longest, square))
    return {name: torch.cat(values) for name, values in columns.items()}


def _padded(batch: dict[str, Any], name: str, longest: int, square: bool) -> Any:
    """Return an argument of a batch at a length; one that the batch lacks is what a model takes without it."""
    import torch

    rows, length = batch["labels"].shape
    more, value = longest - length, batch.get(name)
    if name == "position_ids":
        value = torch.arange(length).expand(rows, -1) if value is None else value
        return torch.cat([value, torch.arange(more).expand(rows, -1)], dim=1)
    if name == "attention_mask" and square:
        if value is None:
            value = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
        mask = torch.eye(longest, dtype=torch.bool).repeat(rows, 1, 1, 1)  # padding attends to itself
        mask[:, :, :length, :length] = value
        return mask
    if name == "attention_mask":
        value = torch.ones(rows, length, dtype=torch.int64) if value is None else value
    if name not in ("input_ids", "labels", "attention_mask"):
        return value
    return torch.nn.functional.pad(value, (0, more), value=IGNORED if name == "labels" else 0)
