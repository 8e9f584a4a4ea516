"""The base of methods whose layers hold 8-bit codes, int8 or FP8, with one scale for each output.

Checkpoints are in compressed-tensors' formats `int-quantized` and `float-quantized`, which transformers and vLLM load.
"""

from typing import ClassVar, Literal

from quantune.quantizations import Quantization


class EightBits(Quantization):
    """Codes of 8 bits for weights, and for the inputs of layers unless `activations` is none."""

    code: ClassVar[str] = "int8"
    """Dtype of the codes."""

    @property
    def inputs(self) -> Literal["none", "dynamic", "static"]:
        """How the inputs of layers are rounded: not, with a scale for each token, or with a scale for all."""
        return "dynamic"

    @property
    def unpacks(self) -> bool:
        """Whether a layer's dense weights exist while it computes; codes are multiplied by codes as they are."""
        return self.inputs == "none"

    def unservable(self, widths: set[int]) -> str | None:
        """Return None: vLLM serves both formats."""
        return None

    def product_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes for each token that a layer's product takes: its input in float32 twice while it is rounded,
        or the codes, the sums and the scaled sums.
        """
        return 0 if self.unpacks else max(9 * columns, columns + 8 * rows)

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """One matrix of codes, one scale for each row, and the scale of static inputs."""
        tensors = {"weight": (self.code, [rows, columns]), "weight_scale": (None, [rows, 1])}
        return tensors | ({"input_scale": (None, [1])} if self.inputs == "static" else {})
