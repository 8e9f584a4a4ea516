"""The tensors of a checkpoint folder, read from its safetensors files without loading the model."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from quantune.core.errors import QuantuneError
from quantune.models.stored import GENERATION, TOKENIZER_FILES

NARROW = 32  # a matrix with fewer rows or columns is not the weight of a layer


@dataclass
class Tensors:
    """Lazy access by name to every tensor of a checkpoint folder."""

    folder: Path

    def __post_init__(self):
        self.files = [safe_open(path, "pt") for path in sorted(Path(self.folder).glob("*.safetensors"))]
        self.file_of = {name: file for file in self.files for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.file_of[name].get_tensor(name)

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self.file_of)

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape without reading its data."""
        return self.file_of[name].get_slice(name).get_shape()


def linear_layers(folder: Path, head: bool = False) -> dict[str, tuple[int, int]]:
    """Return name -> (outputs, inputs) of each linear layer to quantize in a full-precision checkpoint.

    These are all `nn.Linear` modules except the output embedding (`lm_head`), as in the GPTQ and AWQ papers; with
    `head`, it is one of them. The model is built on the meta device: no weight is read.

    Raises:
        QuantuneError: if the model has no such layer, or if weights of other modules would stay dense.
    """
    from quantune.models import loading

    with torch.device("meta"):
        model = loading.auto_class(folder).from_config(loading.config(folder), trust_remote_code=False)
    layers = {name: (module.out_features, module.in_features) for name, module in quantizable(model, head).items()}
    if reason := unquantizable(model):
        raise QuantuneError(f"the architecture '{model.config.model_type}' cannot be quantized: {reason}")
    if not layers:
        raise QuantuneError(f"the architecture '{model.config.model_type}' has no linear layers that can be quantized")
    return layers


def quantizable(model, head: bool = False) -> dict[str, torch.nn.Linear]:
    """Return name -> layer of each linear layer to quantize: every `nn.Linear` except the output embedding; with
    `head`, this one too.
    """
    left = None if head else model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not left
    }


def head_name(model) -> str | None:
    """Return the full name of the output embedding, or None."""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def unquantizable(model: torch.nn.Module) -> str | None:
    """Return why some weights of a model would silently stay dense, with the name of the first one, or None.

    Only `nn.Linear` modules are quantized, not their subclasses: transformers cannot load quantized subclasses.
    Embeddings, convolutions and matrices narrower than any layer (such as Mamba's state matrices) always stay dense.
    """
    kept = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear and module is not head:
            kind = type(module).__name__
            return f"its layers are {kind} modules, which are left dense where nn.Linear is replaced ('{name}')"
        if isinstance(module, kept):
            continue
        for part, value in module.named_parameters(recurse=False):
            if value.dim() < 2 or min(value.shape[-2:]) < NARROW:
                continue
            if type(module).__name__ == "Conv1D":
                return f"its weights are in Conv1D modules instead of linear layers, and would stay dense ('{name}')"
            if value.dim() > 2:
                return f"its experts are fused into one parameter, and would stay dense ('{name}.{part}')"
            return f"it has weights outside of linear layers, which would stay dense ('{name}.{part}')"
    return None


def finite(tensors: Tensors, names: list[str]) -> Iterator[str]:
    """Yield the names of floating-point tensors that hold a NaN or an infinity."""
    for name in names:
        tensor = tensors[name]
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            yield name


def require(condition: bool, layer: str, message: str) -> None:
    """Raise QuantuneError with the layer's name unless the condition holds."""
    if not condition:
        raise QuantuneError(f"structural check: layer '{layer}': {message}")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files and the generation settings from one checkpoint folder to another."""
    for name in (*TOKENIZER_FILES, GENERATION):
        if (Path(source) / name).is_file() and not (Path(folder) / name).exists():
            shutil.copyfile(Path(source) / name, Path(folder) / name)


def save_model(model, parent: Path, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Save a model that was made from the checkpoint `parent`, with the parent's tokenizer and generation settings.

    Saved are the weights given by name, or those of the model.

    The settings file is copied: transformers refuses to write some settings of models on the hub, such as a temperature
    without sampling.
    """
    from transformers import GenerationConfig

    settings, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder, state_dict=weights)
    model.generation_config = settings
    (Path(folder) / GENERATION).unlink(missing_ok=True)
    copy_tokenizer(parent, folder)


def save_trained(model, parent: Path, folder: Path) -> None:
    """Save the weights of a model that was trained from the checkpoint `parent`, in the dtype stored there.

    The model stays as it is, so that it can be trained further. Its config.json is the parent's: the shape and the
    dtype are the same, and settings of training, such as a cache that is not used, do not enter it.
    """
    from quantune.models import loading

    dtype, cast = loading.stored_dtype(parent), {}
    state = model.state_dict()
    for value in state.values():  # tensors that share memory must share it afterwards
        if value.data_ptr() not in cast:
            cast[value.data_ptr()] = value.to("cpu", dtype if value.is_floating_point() else value.dtype)
    kept = model.config.dtype, model.config.architectures
    save_model(model, parent, folder, {name: cast[value.data_ptr()] for name, value in state.items()})
    model.config.dtype, model.config.architectures = kept
    shutil.copyfile(Path(parent) / "config.json", Path(folder) / "config.json")


def untie(model) -> None:
    """Give the output embedding weights of its own, where it has those of the input embedding."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.data, requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
