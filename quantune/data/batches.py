"""What training and calibration data have in common, whatever they are read from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 16384  # about so many tokens go through a layer at once while a model is calibrated
IGNORED = -100  # label that the loss leaves out


class Data(Protocol):
    """Examples to train on or to calibrate with, as a model reads them; they are numbered from 0."""

    unit: str
    """What one example is, in the plural."""

    def __len__(self) -> int: ...

    def lengths(self) -> "list[int] | None":
        """Return the tokens in each example; None if they are all as long."""

    def batch(self, examples: list[int]) -> "dict[str, torch.Tensor]":
        """Return the arguments of the model's forward pass for some examples, `labels` among them."""

    def batches(self, size: int) -> "Iterator[dict[str, torch.Tensor]]":
        """Yield all examples, so many together, with labels."""

    def inputs(self, chosen: list[int]) -> "Iterator[dict[str, torch.Tensor]]":
        """Yield some examples as a model's inputs, without labels and without padding."""

    def content(self, number: int) -> bytes:
        """Return the bytes that identify an example."""

    def tokens(self, chosen: list[int]) -> int:
        """Return how many tokens some examples have."""
