"""Half-precision training: the model computes in 16 bits, and trained weights are float32.

In bfloat16 the whole model computes in its own dtype, unless biases are trained. float16 has a smaller range, so
training in it is mixed precision (Micikevicius et al., 2018, arXiv:1710.03740): matrix products in float16; norms,
softmax and loss in float32 (torch.autocast); the loss is multiplied by a scale, and a step whose gradients overflow is
skipped and halves the scale (torch.amp.GradScaler).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from quantune.core.errors import QuantuneError
from quantune.finetunings import Finetuning
from quantune.finetunings.training import low_rank

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
SMALLEST = 2.0**-13  # scale of the loss below which no gradient is small enough for float16


class _Master(torch.nn.Linear):
    """A linear layer with float32 weights that computes in the dtype of its input."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(states.dtype)
        return torch.nn.functional.linear(states, self.weight.to(states.dtype), bias)


def loaded_dtype(recipe: Finetuning, quantized: bool) -> str:
    """Return the dtype in which a checkpoint is loaded for training: of all its weights that are not packed."""
    own = recipe.leaves == "model"  # weights that are saved again must not be rounded
    return "float32" if recipe.mixed and (quantized or own) else recipe.precision


def prepare(model: torch.nn.Module, recipe: Finetuning) -> None:
    """Let trained weights, and in mixed precision all norms, be float32 in a model that computes in 16 bits.

    Layers of LLM.int8() keep no input for the backward pass, in every precision.
    """
    if recipe.precision != "float32":
        keep_masters(model)
        if not recipe.mixed and not recipe.compile:
            low_rank.fuse(model)
    for module in model.modules():
        if recipe.mixed and "norm" in type(module).__name__.lower():
            module.float()
        weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
        trained = bias is not None and bias.requires_grad
        if recipe.mixed and trained:
            bias.data = bias.data.float()
        int8 = hasattr(weight, "SCB")
        if int8 or (recipe.mixed and hasattr(weight, "quant_state")):
            in_float32 = trained or (int8 and weight.device.type == "cpu")
            module.__class__ = _frozen(type(module), in_float32, int8 and not trained)


def _frozen(kind: type[torch.nn.Module], in_float32: bool, int8: bool) -> type[torch.nn.Module]:
    """Return a layer of bitsandbytes that keeps no input for the backward pass, and casts as other layers do.

    In mixed precision bitsandbytes returns the dtype of its input, which is float32 after a norm; here it returns 16
    bits. `in_float32`: it computes from float32 then, because it would cast a trained bias to the dtype of its input,
    and its sums of int8 products overflow on a CPU under autocast.
    """

    def compute(layer: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
        return _Int8.apply(states, layer, kind) if int8 else kind.forward(layer, states)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        device = states.device.type
        if not torch.is_autocast_enabled(device):
            return compute(self, states)
        dtype = torch.get_autocast_dtype(device)
        if not in_float32:
            return compute(self, states.to(dtype))
        with torch.autocast(device, enabled=False):
            return compute(self, states.float()).to(dtype)

    return type(kind.__name__, (kind,), {"forward": forward})


class _Int8(torch.autograd.Function):
    """A frozen layer of LLM.int8(). bitsandbytes keeps the layer's input, past gradient checkpointing, and never reads
    it: only a trained weight would need it.
    """

    @staticmethod
    def forward(ctx, states, layer, kind):
        ctx.layer = layer
        return kind.forward(layer, states)

    @staticmethod
    def backward(ctx, slope):
        state = ctx.layer.state
        weight = state.CB.to(slope.dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1 / 127))
        return slope @ weight, None, None


def computing(model: torch.nn.Module, recipe: Finetuning) -> AbstractContextManager:
    """Return the context of a forward pass."""
    dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(model.device.type, dtype, enabled=recipe.mixed)


@contextmanager
def attending(recipe: Finetuning) -> Iterator[None]:
    """Let attention be computed by the recipe's implementation.

    Raises:
        QuantuneError: if it cannot compute this model's attention on this device.
    """
    if recipe.attention == "auto":
        yield
        return
    try:
        with sdpa_kernel(BACKENDS[recipe.attention]):
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("No available kernel", "No viable backend")):
            raise
        raise QuantuneError(
            f"'attention: {recipe.attention}' cannot compute the attention of this model on this device (the log gives"
            " PyTorch's reasons); take 'attention: auto'"
        ) from None


def scaler(model: torch.nn.Module, recipe: Finetuning) -> torch.amp.GradScaler:
    """Return the scaler of the loss; it changes nothing unless the recipe computes in float16."""
    return torch.amp.GradScaler(model.device.type, enabled=recipe.precision == "float16")


def step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Take an optimizer step; return False if it was skipped because a gradient was not finite.

    Raises:
        QuantuneError: if gradients overflow whatever the scale of the loss.
    """
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    if scaler.get_scale() >= before:
        return True
    if scaler.get_scale() < SMALLEST:
        raise QuantuneError("the gradients overflow float16; lower 'learning_rate', or take 'precision: bfloat16'")
    return False


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
