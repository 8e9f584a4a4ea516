"""Edits between a reference and a hypothesis: substitutions, insertions and deletions of words and characters, by jiwer
(minimum edit distance).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Edits:
    """How one transcript differs from another."""

    length: int
    """Words or characters of the reference."""
    substitutions: int
    insertions: int
    deletions: int


@dataclass(frozen=True)
class Piece:
    """A run of words, or of characters, that two transcripts have in common or differ in."""

    kind: Literal["equal", "substitute", "insert", "delete"]
    said: str
    """In the reference."""
    written: str
    """In the hypothesis."""


def words(reference: str, hypothesis: str) -> Edits:
    """Return the edits between words, separated by white space."""
    import jiwer

    return _edits(reference.split(), hypothesis.split(), lambda: jiwer.process_words(reference, hypothesis))


def characters(reference: str, hypothesis: str) -> Edits:
    """Return the edits between characters, spaces included."""
    import jiwer

    return _edits(list(reference), list(hypothesis), lambda: jiwer.process_characters(reference, hypothesis))


def aligned(reference: str, hypothesis: str, unit: Literal["words", "characters"]) -> list[Piece]:
    """Return the pieces of a hypothesis aligned with its reference, by the edits that are counted."""
    import jiwer

    between, process = {"words": (" ", jiwer.process_words), "characters": ("", jiwer.process_characters)}[unit]
    said, written = (text.split() if unit == "words" else list(text) for text in (reference, hypothesis))
    if not said:
        return [Piece("insert", "", hypothesis)] if written else []
    return [
        Piece(
            item.type,
            between.join(said[item.ref_start_idx : item.ref_end_idx]),
            between.join(written[item.hyp_start_idx : item.hyp_end_idx]),
        )
        for item in process(reference, hypothesis).alignments[0]
    ]


def _edits(reference: list[str], hypothesis: list[str], process) -> Edits:
    if not reference:  # jiwer takes no empty reference
        return Edits(0, 0, len(hypothesis), 0)
    output = process()
    return Edits(len(reference), output.substitutions, output.insertions, output.deletions)
