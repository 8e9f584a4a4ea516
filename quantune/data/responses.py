"""Conversations of a split as examples: the loss counts the responses, the last of them, or everything."""

from pathlib import Path
from typing import Literal

import numpy

from quantune.core.errors import QuantuneError
from quantune.data.batches import IGNORED
from quantune.data.text import Documents, column

LossOn = Literal["everything", "responses", "last-response"]


class Conversations(Documents):
    """Conversations as examples, one by one, padded in a batch; their template begins and ends them."""

    unit = "conversations"

    def __init__(self, prepared: Path, split: str, tokenizer, length: int, loss_on: LossOn, most: int | None = None):
        """Read a split.

        Args:
            prepared: the folder of the prepared dataset.
            split: its split.
            tokenizer: of the model.
            length: the most tokens of an example; the rest of a longer conversation is left out.
            loss_on: the tokens that the loss counts.
            most: the number of conversations, from the first; None: all.

        Raises:
            QuantuneError: if no conversation has a label within its first `length` tokens.
        """
        self.before = self.after = numpy.empty(0, "int64")
        self.padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.length, self.loss_on = length, loss_on
        self.ids, self.starts = column(prepared, split, "ids", most)
        self.turns, _ = column(prepared, split, "turns")
        whole = numpy.diff(self.starts)
        counts = self._counts()
        self.numbers = numpy.flatnonzero(counts)
        self.sizes, self.label_counts = numpy.minimum(whole, length)[self.numbers], counts[self.numbers]
        self.cut = int((whole[self.numbers] > length).sum())
        if not len(self):
            raise QuantuneError(f"split '{split}': no response begins within {length} tokens; raise 'length'")
        if self.cut:
            print(f"{split}: {self.cut} of {len(self)} conversations are longer than {length} tokens and were cut")
        if short := len(whole) - len(self):
            print(f"{split}: left out {short} conversations whose responses begin after {length} tokens")

    def example(self, number: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Return the token ids and the labels of a conversation, int64."""
        begin, end = self.starts[self.numbers[number] :][:2]
        ids = self.ids[begin:end][: self.length].astype("int64")
        return ids, numpy.where(self._kept(self.turns[begin:end])[: self.length], ids, IGNORED)

    def _kept(self, turns: numpy.ndarray) -> numpy.ndarray:
        """Return which tokens of a conversation the loss counts; nothing predicts the first."""
        if self.loss_on == "everything":
            kept = numpy.ones(len(turns), bool)
        else:
            responses = abs(turns)
            kept = responses == responses.max() if self.loss_on == "last-response" else responses > 0
            kept &= responses > 0
        kept[:1] = False
        return kept

    def _counts(self) -> numpy.ndarray:
        """Return the labels of each conversation within its first `length` tokens."""
        counts = numpy.zeros(len(self.starts) - 1, "int64")
        for number, (begin, end) in enumerate(zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)):
            if end > begin:
                counts[number] = self._kept(self.turns[begin:end])[: self.length].sum()
        return counts
