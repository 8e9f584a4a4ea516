"""Quantization methods: every module in this folder is one, found by being here.

A method module defines one or more `Quantization` recipes. To add a method, add a module and its test.
"""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from quantune.recipe import Recipe, subclasses


class Quantization(Recipe):
    """How a checkpoint is quantized. Subclasses set the literal `method` and implement the functions below."""

    keeps_inputs: ClassVar[bool] = False
    """Whether, when an adapter is trained on top, quantized layers keep their inputs for the backward pass."""

    settings: ClassVar[frozenset[str]] = frozenset({"max_distance"})
    max_distance: float | None = Field(default=None, gt=0)
    """Largest accepted distance of the logits of fixed random tokens from the parent's, relative to their norm; beyond
    it the job fails, naming the layer that changed most. null: 1.0 at 2 bits, 0.6 at 3, 0.35 at 4, 0.05 at 8, and 0.1
    for int8."""

    def usual_distance(self) -> float:
        """Return the accepted distance where the recipe gives none: about one and a half times the worst measured on
        OPT of 2.5 and 29 million parameters, groups of 32 to whole rows; one destroyed layer is beyond it.
        """
        return 0.35

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize the checkpoint in `parent` and save it, packed, into the empty `folder`; return facts.

        Methods that calibrate have a field `dataset`, and get the prepared `data` and the `seed` of the draw.
        """
        raise NotImplementedError

    def check(self, parent: Path, folder: Path) -> dict[str, Any]:
        """Check what is in `folder` tensor by tensor; return facts for the provenance, raise QuantuneError."""
        raise NotImplementedError

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Return suffix -> (dtype, shape) of the tensors that a quantized layer (outputs, inputs) has on disk.

        A dtype of None is that of the parent.
        """
        raise NotImplementedError

    def misfit(self, widths: set[int]) -> str | None:
        """Return why this recipe does not fit layers of these input widths (".key: why", or ": why"), or None."""
        return None


def methods() -> list[type[Quantization]]:
    """Return every quantization recipe."""
    return subclasses(__name__, Quantization, "method")
