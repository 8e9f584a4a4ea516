"""Weights of 8 bits with one scale for each output, in compressed-tensors' own formats, which vLLM serves.

FP8 (E4M3; Micikevicius et al., 2022, arXiv:2209.05433) in the format `float-quantized`, int8 in `int-quantized`. Inputs
of layers may be rounded to 8 bits, too; the products are then those of 8-bit codes (`models/eight_bit_linear.py`). No
data is needed: each token's scale is computed when a layer is called.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from quantune.core import hardware
from quantune.quantizations.coded import EightBits


class Uncalibrated(EightBits):
    """The base of methods without data."""

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Round in float32, one layer at a time; scales and the other layers are stored in the parent's dtype."""
        from quantune.models import loading
        from quantune.quantizations.formats import eight_bits

        eight_bits.save(loading.streamed([parent], "float32"), self, parent, folder)
        return {}


class FP8(Uncalibrated):
    """8-bit floating point: 4 bits of exponent, 3 of mantissa."""

    code: ClassVar[str] = "float8_e4m3fn"

    method: Literal["fp8"]
    """8-bit floating point (E4M3) with one scale for each output."""
    activations: Literal["dynamic", "none"] = "dynamic"
    """Inputs of layers. dynamic: FP8, with a scale for each token (W8A8); needs a GPU that multiplies FP8 (Ada, Hopper,
    Blackwell), or a CPU, which computes the same more slowly. none: as they are; only weights are stored in FP8."""

    @property
    def inputs(self) -> Literal["none", "dynamic"]:
        """How the inputs of layers are rounded."""
        return self.activations

    def usual_error(self) -> float:
        """Return the limit of the usual error."""
        return 0.06

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the model cannot be quantized, or why this machine cannot multiply FP8, or None."""
        if problem := super().unsuitable(config):
            return problem
        weakest = None if self.activations == "none" else hardware.weakest_gpu()
        problem = hardware.without_fp8(*weakest) if weakest else None
        return f".activations: {problem}" if problem else None


class Int8Dynamic(Uncalibrated):
    """int8 weights and inputs, with a scale for each token."""

    method: Literal["int8-dynamic"]
    """int8 for weights and inputs of layers (W8A8), with a scale for each output and for each token."""

    def usual_error(self) -> float:
        """Return the limit of the usual error."""
        return 0.1
