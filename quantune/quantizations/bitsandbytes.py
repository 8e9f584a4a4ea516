"""bitsandbytes: int8 with outliers kept (Dettmers et al., 2022, arXiv:2208.07339) and the 4-bit NormalFloat of QLoRA
(Dettmers et al., 2023, arXiv:2305.14314). No data is needed; the packed weights are saved and loaded by transformers.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import Dtype
from quantune.quantizations import Quantization

BLOCK = 64  # weights that share one scale in bitsandbytes' 4-bit formats
NESTED_BLOCK = 256  # scales that share one second-level scale with double quantization


class BitsAndBytes(Quantization):
    """The base of the bitsandbytes methods."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' `BitsAndBytesConfig`."""
        raise NotImplementedError

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize one layer at a time, as transformers does while it loads; other weights keep the parent's dtype.

        The model is saved before its first forward pass, which may repack the weights for its device.
        """
        import torch
        from tqdm import tqdm
        from transformers import BitsAndBytesConfig
        from transformers.quantizers import AutoHfQuantizer

        from quantune.models import loading, offloading
        from quantune.models.checkpoints import quantizable, save_model
        from quantune.models.probes import probe_logits, require_identical_reload

        options = {key: getattr(torch, value) if "dtype" in key else value for key, value in self.arguments().items()}
        stored, device = loading.stored_dtype(parent), loading.device()
        model = loading.streamed([parent], str(stored).removeprefix("torch."))
        dense = quantizable(model)
        quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(**options), pre_quantized=False)
        quantizer.preprocess_model(model, dtype=stored, device_map={"": device})
        for name, layer in tqdm(dense.items(), desc="quantizing", unit="layer"):
            packed = model.get_submodule(name)
            empty, packed.bias = packed.weight, layer.bias
            packed.weight = type(empty)(layer.weight.data, requires_grad=False, **vars(empty)).to(device)
            offloading.move([packed], "cpu", stored)
        quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
        offloading.move(model.modules(), "cpu", stored)
        save_model(model, parent, folder)
        loading.keep_cpu_kernels_exact(model)
        logits = probe_logits(offloading.stream(model.eval(), device, stored))
        require_identical_reload(logits, folder, str(stored).removeprefix("torch."))
        return {}


class Int8(BitsAndBytes):
    """LLM.int8(): rows of int8 with one scale each; input features with outliers are computed in 16 bits."""

    readable: ClassVar[bool] = False

    method: Literal["int8"]
    """bitsandbytes LLM.int8()."""
    outlier_threshold: float = Field(default=6.0, ge=0, le=1e6)
    """Input features whose magnitude exceeds this are computed in 16 bits; 0: no features are."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' `BitsAndBytesConfig`."""
        return {"load_in_8bit": True, "llm_int8_threshold": self.outlier_threshold}

    def usual_error(self) -> float:
        """Return the limit of the usual error, which is lower for eight bits than for four."""
        return 0.1

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str, list[int]]]:
        """One int8 matrix and one scale for each row."""
        return {"weight": ("int8", [rows, columns]), "SCB": ("float32", [rows])}


class FourBit(BitsAndBytes):
    """Tables of 16 values, one scale for each block of 64 weights."""

    double_quantization: bool = False
    """Quantize the scales too, to 8 bits in blocks of 256: saves 0.37 bit per weight."""
    compute_dtype: Dtype = "float32"
    """Precision of the matrix products; bfloat16 on a GPU that has it."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' `BitsAndBytesConfig`."""
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.method,
            "bnb_4bit_use_double_quant": self.double_quantization,
            "bnb_4bit_compute_dtype": self.compute_dtype,
        }

    def misfit(self, widths: set[int]) -> str | None:
        """Return why blocks do not fit, or None: bitsandbytes does not pad, so blocks of 64 must fill the rows."""
        bad = sorted(width for width in widths if width % BLOCK)
        return f": blocks of {BLOCK} weights do not fill the layers' input width {bad[0]}" if bad else None

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str, list[int]]]:
        """Two weights a byte, a table of 16 values, and the scales: float32, or 8 bits with second-level scales."""
        blocks = rows * columns // BLOCK
        tensors = {"weight": ("uint8", [rows * columns // 2, 1]), "weight.quant_map": ("float32", [16])}
        if not self.double_quantization:
            return tensors | {"weight.absmax": ("float32", [blocks])}
        nested = -(-blocks // NESTED_BLOCK)
        return tensors | {
            "weight.absmax": ("uint8", [blocks]),
            "weight.nested_absmax": ("float32", [nested]),
            "weight.nested_quant_map": ("float32", [256]),
        }


class NormalFloat4(FourBit):
    """NF4: the 16 values are quantiles of a normal distribution."""

    method: Literal["nf4"]
    """bitsandbytes 4-bit NormalFloat."""


class FloatingPoint4(FourBit):
    """FP4: the 16 values are 4-bit floating-point numbers."""

    method: Literal["fp4"]
    """bitsandbytes 4-bit floating point."""
