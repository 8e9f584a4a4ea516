"""Linear layers that stay packed: dense weights exist only while a layer computes, forward and backward.

transformers unpacks compressed-tensors checkpoints for good at the first forward pass. Fine-tuning an adapter on top
needs no dense weights to be kept: they are unpacked again for the backward pass, as QLoRA does for NF4 (Dettmers et
al., 2023, arXiv:2305.14314, section 3). Memory is that of the packed weights and one dense layer, for the time of
unpacking each layer twice.
"""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32


class PackedLinear(torch.nn.Linear):
    """A frozen linear layer with packed weights; takes the place of `nn.Linear`, for PEFT too."""

    def __init__(self, source: torch.nn.Module):
        """Take over the tensors of a compressed-tensors layer: weight_packed, weight_scale, weight_zero_point, bias."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        scheme = source.quantization_scheme.weights
        self.bits = scheme.num_bits
        self.register_buffer("packed", source.weight_packed.data)
        self.register_buffer("scale", source.weight_scale.data)
        zero = None
        if not scheme.symmetric:
            zero = unpack_from_int32(source.weight_zero_point.data, self.bits, self.scale.shape, packed_dim=0)
        self.register_buffer("zero", zero)
        bias = getattr(source, "bias", None)
        self.register_buffer("bias", None if bias is None else bias.data)

    @property
    def weight(self) -> torch.Tensor:
        """The dense weights, (outputs, inputs), unpacked now."""
        return self.dense(self.scale.dtype)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dense weights, (outputs, inputs): (code - zero) * scale, as compressed-tensors computes them."""
        codes = unpack_from_int32(self.packed, self.bits, torch.Size((self.out_features, self.in_features)))
        values = codes.to(self.scale.dtype).view(self.out_features, self.scale.shape[1], -1)
        if self.zero is not None:
            values = values - self.zero.to(self.scale.dtype).unsqueeze(-1)
        return (values * self.scale.unsqueeze(-1)).view(self.out_features, self.in_features).to(dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return states @ weightᵀ + bias."""
        return _Product.apply(states, self)


class _Product(torch.autograd.Function):
    """states @ weightᵀ + bias that remembers the layer, and not its dense weights."""

    @staticmethod
    def forward(ctx, states, layer):
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(states.dtype)
        return torch.nn.functional.linear(states, layer.dense(states.dtype), bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.dense(gradient.dtype), None


def keep_packed(model: torch.nn.Module) -> int:
    """Replace the packed layers of a model loaded from a compressed-tensors checkpoint; return how many there were."""
    packed = {name: module for name, module in model.named_modules() if hasattr(module, "weight_packed")}
    for name, module in packed.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, PackedLinear(module))
    if packed and hasattr(model, "ct_decompress_hook"):
        model.ct_decompress_hook.remove()
        del model.ct_decompress_hook
    return len(packed)


def dense_parameters(model: torch.nn.Module) -> int:
    """Return how many weights the packed layers of a model stand for."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    biases = sum(layer.out_features for layer in layers if layer.bias is not None)
    return sum(layer.in_features * layer.out_features for layer in layers) + biases
