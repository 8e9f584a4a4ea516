"""Calibration data: which token blocks or clips a method saw, drawn with a seed, hashed; too few are warned about."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar

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
    """Blocks of tokens, or clips; fewer than 128 warns."""
    length: int = Field(default=512, gt=1)
    """Tokens in one block (2048 in the GPTQ paper). Speech has the length of its transcripts."""

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes that fitting the grids of a matrix (outputs, inputs) takes, beside its Gram matrix."""
        raise NotImplementedError


def order(count: int, seed: int) -> list[int]:
    """Return the numbers of the samples in the order in which they are taken.

    It follows from SHA-256 over the seed and the sample's number: the same with every version of every library.
    """
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())


def draw(recipe: Calibrated, data: Path, seed: int, checkpoint: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Draw the calibration samples: blocks of text, or clips with their transcripts.

    Args:
        recipe: what to draw.
        data: the prepared dataset.
        seed: of the draw.
        checkpoint: of the model to calibrate, whose inputs the samples become.

    Returns:
        Batches of the model's inputs, without padding, and facts for the provenance: SHA-256 of the samples, counts,
        warnings.
    """
    from quantune import tracks

    samples = tracks.samples(recipe, data, checkpoint)
    chosen = order(len(samples), seed)[: recipe.samples]
    warnings = []
    if len(chosen) < recipe.samples:
        warnings.append(
            f"'{recipe.dataset}', split '{recipe.split}', holds {len(samples)} {samples.unit}, not the"
            f" {recipe.samples} asked for"
        )
    if len(chosen) < FEW:
        warnings.append(f"calibrated on {len(chosen)} samples; fewer than {FEW} can harm the model")
    for warning in warnings:
        print(f"WARNING: {warning}", flush=True)
    digest = hashlib.sha256()
    for number in chosen:
        digest.update(samples.content(number))
    facts = {
        "sha256": digest.hexdigest(),
        "samples": len(chosen),
        "tokens": samples.tokens(chosen),
        "warnings": warnings,
    }
    return list(samples.inputs(chosen)), facts
