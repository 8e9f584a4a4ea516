"""Linear layers that stay packed: dense weights exist only while a layer computes, forward and backward.

transformers unpacks compressed-tensors checkpoints permanently at the first forward pass. Here each layer unpacks its
weights at every use, with the same arithmetic, so results equal those of dense weights. That is once for a forward
pass, and once more for the backward pass of an adapter on top, as QLoRA does for NF4 (Dettmers et al., 2023,
arXiv:2305.14314, section 3). The memory needed is that of the packed weights and one dense layer.

A compiled step that decodes one sequence unpacks the weights in the registers of the product's kernel, so it reads only
packed words. PyTorch's int4 kernels are not used: they compute in bfloat16, support 4 bits only, and on a CPU are
slower in float32 than unpacking.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open

from quantune.models import stored
from quantune.models.layer_names import KEPT_CHANNELS


class PackedLinear(torch.nn.Linear):
    """A frozen linear layer with packed weights; it replaces `nn.Linear`, also for PEFT."""

    def __init__(self, source: torch.nn.Module):
        """Take over the tensors of a compressed-tensors layer: weight_packed, weight_scale, weight_zero_point, bias."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        scheme = source.quantization_scheme.weights
        self.bits = scheme.num_bits
        units = -(-self.in_features * self.bits // _bits_of_unit(self.bits))
        codes = source.weight_packed.data.view(torch.uint8)  # little-endian, as on every platform of PyTorch
        if missing := units * _bits_of_unit(self.bits) // 8 - codes.shape[1]:
            codes = torch.nn.functional.pad(codes, (0, missing))
        self.register_buffer("packed", codes.view(self.out_features, units, -1))
        self.register_buffer("scale", source.weight_scale.data)
        zero = None
        if not scheme.symmetric:
            zero = unpack_from_int32(source.weight_zero_point.data, self.bits, self.scale.shape, packed_dim=0)
            zero = (zero.to(torch.int16) + 2 ** (self.bits - 1)).to(torch.uint8)
        self.register_buffer("zero", zero)
        for part in ("kept", "kept_columns"):  # weights of input channels that are stored beside the codes
            self.register_buffer(part, getattr(source, f"weight_{part}", None))
        self.register_buffer("groups", getattr(source, "weight_g_idx", None))  # of each input, if they are out of order
        bias = getattr(source, "bias", None)
        self.register_buffer("bias", None if bias is None else bias.data)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weights, (outputs, inputs), unpacked at each access."""
        return self.dense(self.scale.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dense weights, (outputs, inputs): (code - zero) * scale, as compressed-tensors computes them."""
        codes = unpack(self.packed, self.bits).flatten(1)[:, : self.in_features]
        values = codes.to(self.scale.dtype)
        if self.groups is None:
            values = values.view(self.out_features, self.scale.shape[1], -1)
            scale, zero = self.scale.unsqueeze(-1), None if self.zero is None else self.zero.unsqueeze(-1)
        else:
            scale = self.scale[:, self.groups]
            zero = None if self.zero is None else self.zero[:, self.groups]
        values.sub_(2 ** (self.bits - 1) if zero is None else zero.to(values.dtype)).mul_(scale)
        values = values.view(self.out_features, self.in_features)
        if self.kept is not None:
            values = values.index_copy(1, self.kept_columns, self.kept.to(values.dtype))
        return values.to(dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return states @ weightᵀ + bias."""
        if torch.is_grad_enabled():
            return _Product.apply(states, self, self.bias)
        return self.product(states)

    def product(self, states: torch.Tensor) -> torch.Tensor:
        """Return states @ weightᵀ + bias, without a backward pass."""
        weight, bias = self.dense(states.dtype), None if self.bias is None else self.bias.to(states.dtype)
        if torch.compiler.is_compiling() and states.numel() == self.in_features:
            # a sum, unlike a matrix product, is compiled into one kernel with the unpacking
            sums = (weight * states.flatten()).sum(-1, dtype=torch.float32).to(states.dtype)
            return (sums if bias is None else sums + bias).view(*states.shape[:-1], -1)
        return torch.nn.functional.linear(states, weight, bias)


class _Product(torch.autograd.Function):
    """states @ weightᵀ + bias; the layer is kept for the backward pass, and not its dense weights."""

    @staticmethod
    def forward(ctx, states, layer, bias):
        ctx.layer = layer
        return layer.product(states)

    @staticmethod
    def backward(ctx, gradient):
        of_bias = gradient.flatten(0, -2).sum(0, dtype=ctx.layer.bias.dtype) if ctx.needs_input_grad[2] else None
        return gradient @ ctx.layer.dense(gradient.dtype), None, of_bias


def _bits_of_unit(bits: int) -> int:
    """Return the bits of the fewest bytes that hold whole codes: one byte; three with 3 or 6 bits, five with 5 bits."""
    return math.lcm(bits, 8)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return unsigned codes, (rows, units, codes in a unit), from bytes, (rows, units, bytes in a unit), uint8.

    The lowest bits of the first byte come first, as in `pack_quantized` of compressed-tensors.
    """
    unit = packed[..., 0]
    if packed.shape[-1] > 1:
        unit = unit.to(torch.int32 if packed.shape[-1] == 3 else torch.int64)
        for number in range(1, packed.shape[-1]):
            unit = unit | packed[..., number].to(unit.dtype) << 8 * number
    shifts = torch.arange(0, _bits_of_unit(bits), bits, dtype=unit.dtype, device=unit.device)
    return unit.unsqueeze(-1) >> shifts & 2**bits - 1


def keep_packed(model: torch.nn.Module, tensor: str = "weight_packed", kind: type[PackedLinear] = PackedLinear) -> int:
    """Replace the layers that have a tensor of this name by layers of a kind that stays packed; return their number."""
    packed = {name: module for name, module in model.named_modules() if hasattr(module, tensor)}
    for name, module in packed.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, kind(module))
    if packed and hasattr(model, "ct_decompress_hook"):
        model.ct_decompress_hook.remove()
        del model.ct_decompress_hook
    return len(packed)


def add_kept_channels(model: torch.nn.Module, folder: Path) -> None:
    """Add the tensors that stand beside the codes in a checkpoint to a model's layers; transformers leaves them out."""
    for name, value in _kept_channels(folder):
        layer, _, part = name.rpartition(".")
        module = model.get_submodule(layer)
        value = value.to(module.weight_scale.device)
        module.register_buffer(part, value.to(module.weight_scale.dtype) if value.is_floating_point() else value)


def _kept_channels(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of the tensors that stand beside the codes in a checkpoint."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        names = [name for name in stored.header(path) if name.endswith(KEPT_CHANNELS)]
        if names:
            with safe_open(path, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in names)


def train_biases(model: torch.nn.Module) -> None:
    """Make the biases of packed layers parameters, so that they can be trained."""
    for layer in model.modules():
        if isinstance(layer, PackedLinear) and "bias" in layer._buffers and layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer._buffers.pop("bias"), requires_grad=False)


def dense_parameters(model: torch.nn.Module) -> int:
    """Return the number of weights and biases in the packed layers of a model."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    biases = sum(layer.out_features for layer in layers if layer._buffers.get("bias") is not None)
    return sum(layer.in_features * layer.out_features for layer in layers) + biases
