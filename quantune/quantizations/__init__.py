"""Quantization methods: every module in this folder is one, found by being here.

A method module defines one or more `Quantization` recipes. To add a method, add a module and its test.
"""

from pathlib import Path
from typing import Any, ClassVar

from quantune.recipe import Recipe, subclasses


class Quantization(Recipe):
    """How a checkpoint is quantized. Subclasses set the literal `method` and implement the functions below."""

    unpacked: ClassVar[bool] = False
    """Whether loading unpacks the weights: they are small on disk, dense in memory."""
    keeps_inputs: ClassVar[bool] = False
    """Whether, when an adapter is trained on top, quantized layers keep their inputs for the backward pass."""

    def quantize(self, parent: Path, folder: Path) -> None:
        """Quantize the checkpoint in `parent` and save it, packed, into the empty `folder`."""
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
