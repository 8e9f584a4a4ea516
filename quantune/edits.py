"""Edits between what was said and what was written: substitutions, insertions and deletions of words and characters, by
jiwer (minimum edit distance).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edits:
    """How one transcript differs from another."""

    length: int
    """Words or characters of the reference."""
    substitutions: int
    insertions: int
    deletions: int


def words(reference: str, hypothesis: str) -> Edits:
    """Return the edits between words, told apart by white space."""
    import jiwer

    return _edits(reference.split(), hypothesis.split(), lambda: jiwer.process_words(reference, hypothesis))


def characters(reference: str, hypothesis: str) -> Edits:
    """Return the edits between characters, spaces among them."""
    import jiwer

    return _edits(list(reference), list(hypothesis), lambda: jiwer.process_characters(reference, hypothesis))


def _edits(reference: list[str], hypothesis: list[str], process) -> Edits:
    if not reference:  # jiwer takes no empty reference
        return Edits(0, 0, len(hypothesis), 0)
    found = process()
    return Edits(len(reference), found.substitutions, found.insertions, found.deletions)
