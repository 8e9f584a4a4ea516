"""Run a model whose layers stay in main memory: each is on the device only while it computes.

The weights of `loading.streamed` are mapped from their files, so main memory holds what is read at a time. The peak of
device memory is that of one layer, the embeddings and the activations, whatever the number of layers.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from math import prod
from pathlib import Path

import torch

from quantune.models import stored


def stacks(model: torch.nn.Module) -> list[tuple[str, torch.nn.ModuleList]]:
    """Return name and list of the layers of a model's decoder, or of its encoder and then its decoder.

    A part that has no list with as many modules as the configuration has layers is left out.
    """
    parts = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model.get_decoder()]
    names = {module: name for name, module in model.named_modules()}
    return [(names[layers], layers) for layers in map(_layers, parts) if layers is not None]


def _layers(part: torch.nn.Module) -> torch.nn.ModuleList | None:
    """Return the outermost list with as many modules as the configuration has layers, or None."""
    keys = ("num_hidden_layers", "encoder_layers", "decoder_layers")
    counts = {getattr(part.config, key, None) for key in keys}
    lists = (module for module in part.modules() if isinstance(module, torch.nn.ModuleList))
    return next((item for item in lists if len(item) and len(item) in counts), None)


def move(
    modules: Iterable[torch.nn.Module], device: torch.device | str, dtype: torch.dtype
) -> list[tuple[dict, str, torch.Tensor]]:
    """Put the tensors of modules on a device, the floating-point ones that are saved in a dtype; tied ones stay tied.

    Buffers that are not saved keep their dtype: a reloaded model computes them anew, such as the frequencies of rotary
    embeddings, so a rounded one would make another model. 8-bit floats are codes and keep theirs, and so do adapters
    (modules with `keeps_dtype`).

    Returns:
        The tensors of before: the module's own dictionary, name, tensor.
    """
    before, moved = [], {}
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None:
                    kept = name in module._non_persistent_buffers_set or hasattr(module, "keeps_dtype")
                    before.append((tensors, name, value))
                    if id(value) not in moved:
                        moved[id(value)] = _placed(value, device, None if kept or not _castable(value) else dtype)
                    tensors[name] = moved[id(value)]
    return before


def _castable(value: torch.Tensor) -> bool:
    """Return whether a tensor may be cast: it is floating-point, and no 8-bit code."""
    return value.is_floating_point() and value.element_size() > 1


def _placed(value: torch.Tensor, device: torch.device | str, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a tensor or parameter on a device, in a dtype if one is given."""
    if hasattr(value, "quant_state"):  # bitsandbytes would move the scales of the original too
        value = copy(value)
        value.quant_state = deepcopy(value.quant_state)
    if type(value) is not torch.nn.Parameter:
        return value.to(device) if dtype is None else _cast(value, device, dtype)
    return torch.nn.Parameter(_cast(value.data, device, dtype or value.dtype), requires_grad=value.requires_grad)


def _cast(value: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor on a device in a dtype; the GPU casts, where `to(device, dtype)` would let the CPU cast."""
    return value.to(dtype).to(device) if str(device) == "cpu" else value.to(device).to(dtype)


@contextmanager
def resident(module: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Keep a module on the device, in a dtype, inside the context; changes of its tensors are lost afterwards."""
    before = move(module.modules(), device, dtype)
    try:
        yield
    finally:
        for tensors, name, value in before:
            tensors[name] = value
        for part in module.modules():
            if hasattr(getattr(part, "state", None), "CB"):  # bitsandbytes' int8 layers keep the codes that they used
                part.state.CB = part.state.SCB = None


def stream(model: torch.nn.Module, device: torch.device, dtype: torch.dtype, on_device: int = 0) -> torch.nn.Module:
    """Prepare a model in main memory: all but its layers goes to the device, and each layer when it computes.

    Args:
        model: the model, changed in place.
        device: of the computation.
        dtype: of the computation, and of the weights while they are on the device.
        on_device: bytes of layers, from the first one on, that stay on the device.
    """
    layers = [layer for _, stack in stacks(model) for layer in stack]
    inside = {part for layer in layers for part in layer.modules()}
    move((part for part in model.modules() if part not in inside), device, dtype)
    for layer in layers:
        vars(layer).pop("forward", None)
        on_device -= size(layer, dtype)
        if on_device >= 0:
            move(layer.modules(), device, dtype)
        else:
            layer.forward = partial(_visiting, layer, device, dtype)
    return model


def _visiting(layer: torch.nn.Module, device: torch.device, dtype: torch.dtype, *args, **kwargs):
    """Run a layer's forward function while the layer is on the device."""
    with resident(layer, device, dtype):
        return type(layer).forward(layer, *args, **kwargs)


def is_away(layer: torch.nn.Module) -> bool:
    """Return whether a module is a layer of a streamed model that stays in main memory."""
    return getattr(vars(layer).get("forward"), "func", None) is _visiting


def size(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of a module's tensors, floating-point ones in a dtype."""
    tensors = {id(value): value for value in [*module.parameters(), *module.buffers()]}.values()
    return sum(value.numel() * (dtype if _castable(value) else value).itemsize for value in tensors)


def free_bytes(place: torch.device) -> int:
    """Return the bytes that this process may still allocate on a GPU."""
    gc.collect()
    torch.cuda.empty_cache()  # memory of a model before this one counts as taken until it is given back
    free, total = torch.cuda.mem_get_info(place)
    return min(free, int(torch.cuda.get_per_process_memory_fraction(torch.cuda.current_device()) * total))


def stored_size(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of the weights in a folder, floating-point ones in a dtype."""
    tensors = [tensor for path in Path(folder).glob("*.safetensors") for tensor in stored.header(path).values()]
    return sum(
        prod(tensor.shape) * dtype.itemsize
        if "float" in stored.DTYPES.get(tensor.dtype, "")
        else tensor.end - tensor.begin
        for tensor in tensors
    )
