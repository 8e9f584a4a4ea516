"""The interface of training and calibration data."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 16384  # about this many tokens pass through a layer at once during calibration
IGNORED = -100  # label that the loss ignores


class Data(Protocol):
    """Examples for training or calibration, as a model reads them; they are numbered from 0."""

    unit: str
    """Noun for the examples, in the plural."""

    def __len__(self) -> int: ...

    def lengths(self) -> "list[int] | None":
        """Return the tokens in each example; None if all have the same length."""

    def batch(self, examples: list[int]) -> "dict[str, torch.Tensor]":
        """Return the arguments of the model's forward pass for some examples, `labels` among them."""

    def inputs(self, chosen: list[int]) -> "Iterator[dict[str, torch.Tensor]]":
        """Yield some examples as a model's inputs, without labels and without padding."""

    def content(self, number: int) -> bytes:
        """Return the bytes that identify an example."""

    def tokens(self, chosen: list[int]) -> int:
        """Return how many tokens some examples have."""

    def labels(self, chosen: list[int]) -> int:
        """Return over how many labels the loss of a batch of some examples is the mean."""


def in_batches(data: Data, size: int, most: int | None = None) -> "Iterator[dict[str, torch.Tensor]]":
    """Yield the first `most` examples, or all, with labels, `size` of similar length in each batch."""
    numbers, lengths = range(min(len(data), most or len(data))), data.lengths()
    order = sorted(numbers, key=lengths.__getitem__) if lengths else list(numbers)
    for first in range(0, len(order), size):
        yield data.batch(order[first : first + size])
