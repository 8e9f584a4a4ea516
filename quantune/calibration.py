"""Calibration data: which token blocks a method saw, drawn with a seed, hashed, and warned about where they are few."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import numpy
from pydantic import Field

from quantune.quantizations.packed import Packed

FEW = 128  # samples below which calibration is known to become unreliable (GPTQ and AWQ papers use 128 or more)
BATCH_TOKENS = 16384  # about so many tokens go through a layer at once


class Calibrated(Packed):
    """A method that looks at data: which, how much, and how it is drawn."""

    requantized: ClassVar[bool]
    """Whether each layer is calibrated on the outputs of the quantized layers before it, or on the original ones."""

    dataset: str
    """Name of the dataset to calibrate on; best like what the model will read."""
    split: str = "train"
    """Its split."""
    samples: int = Field(default=128, gt=0)
    """Blocks of tokens; fewer than 128 warns."""
    length: int = Field(default=512, gt=1)
    """Tokens in one block (2048 in the GPTQ paper)."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes that fitting the grids of a matrix (outputs, inputs) takes, beside its Gram matrix."""
        raise NotImplementedError


def draw(recipe: Calibrated, data: Path, seed: int, end: int) -> tuple[numpy.ndarray, dict[str, Any]]:
    """Draw the calibration blocks.

    The documents are joined by the token `end` and cut into blocks; which ones are taken, in which order, follows from
    SHA-256 over the seed and the block's number: the same with every version of every library.

    Returns:
        Token ids, shape (samples, length), int64, and facts for the provenance: SHA-256 of the blocks, counts,
        warnings.
    """
    from quantune import text

    blocks = text.blocks(data, recipe.split, end, recipe.length)
    order = sorted(range(len(blocks)), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    chosen = numpy.ascontiguousarray(blocks[order[: recipe.samples]])
    warnings = []
    if len(chosen) < recipe.samples:
        warnings.append(
            f"'{recipe.dataset}', split '{recipe.split}', holds {len(chosen)} blocks of {recipe.length} tokens, not"
            f" the {recipe.samples} asked for"
        )
    if len(chosen) < FEW:
        warnings.append(f"calibrated on {len(chosen)} samples; fewer than {FEW} can harm the model")
    for warning in warnings:
        print(f"WARNING: {warning}", flush=True)
    facts = {
        "sha256": hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest(),
        "samples": len(chosen),
        "tokens": int(chosen.size),
        "warnings": warnings,
    }
    return chosen, facts
