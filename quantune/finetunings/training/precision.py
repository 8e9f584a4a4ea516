"""Half-precision training: the model computes in its own dtype, and trained weights are float32."""

import torch


class _Master(torch.nn.Linear):
    """A linear layer with float32 weights that computes in the dtype of its input."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(states.dtype)
        return torch.nn.functional.linear(states, self.weight.to(states.dtype), bias)


def keep_masters(model: torch.nn.Module) -> None:
    """Let trained linear layers cast their float32 weights to the dtype of their input.

    PEFT casts the input instead, and computes in float32: that takes more memory and uses no tensor cores.
    """
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
        if type(module) is torch.nn.Linear and module.weight.requires_grad:
            module.__class__ = _Master


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each layer of the model's stacks with torch.compile, at its first call."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
