"""LoRA's layers in 16 bits with fewer passes over memory: x Wᵀ + s (x Aᵀ) Bᵀ without a tensor for the second term.

PEFT scales the update of each layer and adds it in operations of their own, forward and backward. Each reads and writes
the layer's output, which takes about a seventh of a training step. Here matrix products add to the output.
"""

from types import MethodType

import torch
from peft.tuners import lora

KINDS = {"Linear", "Linear4bit", "Linear8bitLt"}
"""PEFT's LoRA layers of dense weights (ours that stay packed among them) and of bitsandbytes."""


def fuse(model: torch.nn.Module) -> None:
    """Let LoRA's layers compute in fewer passes. Layers of other kinds, and variants such as DoRA, stay PEFT's."""
    for module in model.modules():
        if isinstance(module, lora.LoraLayer) and _plain(module):
            module.forward = MethodType(_forward, module)


def _plain(layer: lora.LoraLayer) -> bool:
    """Return whether a layer is W x + s B A x, with W frozen."""
    names, base = layer.active_adapters, layer.base_layer
    own = type(layer).__module__.startswith(lora.__name__) and type(layer).__name__ in KINDS
    if not own or len(names) != 1 or names[0] in layer.lora_variant or layer.lora_bias[names[0]]:
        return False
    return not getattr(layer, "fan_in_fan_out", False) and not any(value.requires_grad for value in base.parameters())


def _forward(layer: lora.LoraLayer, states: torch.Tensor) -> torch.Tensor:
    """Return the layer's output; states have shape (..., inputs), in 16 bits."""
    base, (name,) = layer.base_layer, layer.active_adapters
    down, up = (matrices[name].weight.to(states.dtype) for matrices in (layer.lora_A, layer.lora_B))
    dropout, scale = layer.lora_dropout[name], layer.scaling[name]
    dropped = layer.training and getattr(dropout, "p", 0) > 0
    if type(base) is torch.nn.Linear and not dropped:
        return _Adapted.apply(states, base.weight, base.bias, down, up, scale)
    out, inner = base(states), torch.nn.functional.linear(dropout(states), down)
    return torch.addmm(out.flatten(0, -2), inner.flatten(0, -2), up.T, alpha=scale).view_as(out)


class _Adapted(torch.autograd.Function):
    """x Wᵀ + b + s (x Aᵀ) Bᵀ with frozen W, shape (outputs, inputs); A has (rank, inputs) and B (outputs, rank)."""

    @staticmethod
    def forward(ctx, states, weight, bias, down, up, scale):
        rows = states.reshape(-1, states.shape[-1])
        inner = rows @ down.T
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale, ctx.shape = scale, states.shape
        out = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, up.T, alpha=scale)
        return out.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx, slope):
        rows, weight, down, up, inner = ctx.saved_tensors
        slope, of_states = slope.reshape(-1, slope.shape[-1]), None
        of_inner = (slope @ up).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            of_states = (slope @ weight).addmm_(of_inner, down).view(ctx.shape)
        return of_states, None, None, of_inner.T @ rows, (slope.T @ inner).mul_(ctx.scale), None
