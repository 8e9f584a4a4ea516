"""Full names of a model's linear layers, as `named_modules` gives them, from its config.json alone, without torch.

The names are those of transformers 5.17 (`models/{opt,llama,mistral,qwen2,qwen3,whisper}/modeling_*.py`).
"""

from quantune.models.architecture import Architecture, Layers, Linear

KEPT_CHANNELS = (".weight_kept", ".weight_kept_columns")
"""Ends of the names of tensors that are stored beside the codes of a layer, and that transformers does not know."""


def linears(model: Architecture, head: bool = False) -> dict[str, Linear]:
    """Return full name -> linear layer of every layer that is quantized; with `head`, of the output embedding too."""
    inside = {
        f"{_stack(layers)}.layers.{index}.{_part(layers, linear)}{linear.name}": linear
        for layers in model.layers
        for index in range(layers.count)
        for linear in layers.linears
    }
    outside = {f"{_stack(model.decoder)}.{linear.name}": linear for linear in model.projections}
    return inside | outside | ({model.head.name: model.head} if head else {})


def shapes(model: Architecture, head: bool = False) -> dict[str, tuple[int, int]]:
    """Return full name -> (outputs, inputs) of these layers."""
    return {name: (linear.outputs, linear.inputs) for name, linear in linears(model, head).items()}


def _stack(layers: Layers) -> str:
    """Return the name of the module that holds a list of layers."""
    return "model" if layers.gated else f"model.{layers.part}"


def _part(layers: Layers, linear: Linear) -> str:
    """Return the part of a layer that a linear layer is in, with a dot; nothing for the feed-forward layers of OPT."""
    if linear.reads.startswith("feed-forward"):
        return "mlp." if layers.gated else ""
    crosses = linear.reads.startswith("cross") or linear.reads == "encoder output"
    return "encoder_attn." if crosses else "self_attn."
