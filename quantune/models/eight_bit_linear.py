"""Linear layers with weights of 8 bits, int8 or FP8 (E4M3), and one scale for each output.

Their inputs may be rounded to 8 bits, too: with one scale for each token, computed when the layer is called (dynamic),
or with one scale for all tokens, from calibration (static). The product is then one of 8-bit codes, and the scales are
applied to the sums:

- int8: `torch._int_mm` on a GPU with tensor cores for int8 (compute capability 7.5) and on processors with VNNI. The
  sums are whole numbers, exact in int32. Elsewhere float32 computes the same sums, in pieces that stay below 2^24.
- FP8: `torch._scaled_mm` on GPUs with tensor cores for FP8 (8.9: Ada, Hopper, Blackwell), summed in float32. A CPU
  multiplies the codes in float32, where each product is exact. Older GPUs are refused.

The grids are those of SmoothQuant (Xiao et al., 2022, arXiv:2211.10438) and of FP8 formats for deep learning
(Micikevicius et al., 2022, arXiv:2209.05433), as vLLM computes them: the largest magnitude becomes the largest code.
"""

from pathlib import Path

import torch

from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.models import act_order
from quantune.models.packed_linear import PackedLinear, add_kept_channels, keep_packed

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Dtype of codes -> the largest code; the smallest is its negative."""
INT8_CAPABILITY = (7, 5)
"""Compute capability of the first GPUs with tensor cores for int8."""
EXACT = 1024
"""Products of int8 codes whose sum is exact in float32: 1024 x 127 x 127 < 2^24."""
FEWEST_ROWS = 32
"""Rows to which inputs are padded for `torch._int_mm`, which refuses fewer than 17 on a GPU."""
VNNI = bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def scales(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the scales that map the largest magnitude of each last dimension to the largest code, (..., 1), float32.

    Zeros have the scale 1.
    """
    scale = values.abs().amax(-1, keepdim=True).float() / LARGEST[dtype]
    return torch.where(scale == 0, 1.0, scale)


def codes(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the codes nearest to values / scale; magnitudes above the largest code become that code."""
    scaled = (values / scale.float()).clamp_(-LARGEST[dtype], LARGEST[dtype])
    return (scaled.round_() if dtype is torch.int8 else scaled).to(dtype)


def sums(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return rows @ weightsᵀ of codes, (rows, outputs): int32 or float32 for int8, float32 for FP8.

    Args:
        rows: codes of the inputs, (rows, columns).
        weights: codes of the weights, (outputs, columns).

    Raises:
        QuantuneError: if the device is a GPU without FP8.
    """
    if torch.compiler.is_compiling() and len(rows) == 1:  # one kernel, which reads only codes
        return (weights.float() * rows.float()).sum(-1, keepdim=True).T
    on_gpu, whole = rows.device.type == "cuda", all(size % 16 == 0 for size in weights.shape)
    if rows.dtype is torch.int8:
        if on_gpu and whole and torch.cuda.get_device_capability(rows.device) >= INT8_CAPABILITY:
            padded = torch.nn.functional.pad(rows, (0, 0, 0, max(0, FEWEST_ROWS - len(rows))))
            return torch._int_mm(padded, weights.T)[: len(rows)]
        return torch._int_mm(rows, weights.T) if VNNI and not on_gpu else emulated_sums(rows, weights)
    if on_gpu:
        require_fp8(rows.device)
        if whole:
            one = torch.ones((), device=rows.device)
            return torch._scaled_mm(rows, weights.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return emulated_sums(rows, weights)


def emulated_sums(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return what `sums` does, from float32 products: equal for int8, for FP8 but for the order of the additions."""
    size = EXACT if rows.dtype is torch.int8 else rows.shape[-1]
    with torch.autocast(rows.device.type, enabled=False):
        parts = [
            left.float() @ right.float().T
            for left, right in zip(rows.split(size, -1), weights.split(size, -1), strict=True)
        ]
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part.to(torch.int32) for part in parts]).sum(0, dtype=torch.int32)


def multiply(
    states: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor, input_scale: torch.Tensor | None
) -> torch.Tensor:
    """Return the product of inputs, rounded to 8 bits, and weights of 8 bits: (tokens, outputs), float32.

    Args:
        states: the inputs, (tokens, columns), in any floating-point dtype.
        weights: codes, (outputs, columns); the inputs get the same kind of codes.
        scale: of the weights, (outputs, 1).
        input_scale: of all inputs, one value; None: each token has its own, from its largest magnitude.
    """
    states = states.float()
    of_states = scales(states, weights.dtype) if input_scale is None else input_scale.float()
    return sums(codes(states, of_states, weights.dtype), weights) * of_states * scale.float().T


def require_fp8(device: torch.device) -> None:
    """Raise QuantuneError if a GPU cannot multiply FP8."""
    capability = torch.cuda.get_device_capability(device)
    if problem := hardware.without_fp8(torch.cuda.get_device_name(device), capability):
        raise QuantuneError(problem)


class EightBitLinear(PackedLinear):
    """A frozen linear layer with weights of 8 bits; it replaces `nn.Linear`, also for PEFT.

    The gradient of its inputs passes their rounding unchanged (straight-through estimator).
    """

    def __init__(self, source: torch.nn.Module):
        """Take over the tensors of a compressed-tensors layer: weight, weight_scale, input_scale, bias."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.rounds_inputs = source.quantization_scheme.input_activations is not None
        self.register_buffer("codes", source.weight.data)
        self.register_buffer("scale", source.weight_scale.data)
        for name in ("input_scale", "bias"):
            value = getattr(source, name, None)
            self.register_buffer(name, None if value is None else value.data)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dense weights, (outputs, inputs): code * scale, as compressed-tensors computes them."""
        return (self.codes.to(self.scale.dtype) * self.scale).to(dtype)

    def product(self, states: torch.Tensor) -> torch.Tensor:
        """Return states @ weightᵀ + bias, without a backward pass; in mixed precision in 16 bits."""
        if not self.rounds_inputs:
            return super().product(states)
        kind = states.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        out = multiply(states.reshape(-1, self.in_features), self.codes, self.scale, self.input_scale)
        if self.bias is not None:
            out += self.bias.float()
        return out.to(dtype).view(*states.shape[:-1], self.out_features)


def keep_compressed(model: torch.nn.Module, folder: Path | None = None) -> int:
    """Replace the layers of a model loaded from a compressed-tensors checkpoint, so that they stay packed; return their
    number.

    Args:
        model: the model, as transformers loaded it.
        folder: the checkpoint, whose groups out of order and kept channels transformers leaves out; None: it has none.
    """
    if folder:
        act_order.attach(model, folder)
        add_kept_channels(model, folder)
    return keep_packed(model) + keep_packed(model, "weight_scale", EightBitLinear)
