"""What is in a checkpoint folder, read from its safetensors files without loading the model."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from quantune.core.errors import QuantuneError
from quantune.models.loading import TOKENIZER_FILES

NARROW = 32  # rows or columns below which a matrix is no layer's


@dataclass
class Tensors:
    """Lazy access by name to every tensor of a checkpoint folder."""

    folder: Path

    def __post_init__(self):
        self.files = [safe_open(path, "pt") for path in sorted(Path(self.folder).glob("*.safetensors"))]
        self.where = {name: file for file in self.files for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)

    def __contains__(self, name: str) -> bool:
        return name in self.where

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.where[name].get_tensor(name)

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return sorted(self.where)

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape without reading its data."""
        return self.where[name].get_slice(name).get_shape()


def linear_layers(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name -> (outputs, inputs) of each linear layer of a full-precision checkpoint that is quantized.

    All `nn.Linear` modules are, save the output embedding (`lm_head`), as in the GPTQ and AWQ papers. The model is
    built on the meta device: no weight is read.

    Raises:
        QuantuneError: if there is none, or weights of other modules would stay as they are.
    """
    from transformers import AutoConfig

    from quantune.models import loading

    with torch.device("meta"):
        model = loading.auto_class(folder).from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    layers = {name: (module.out_features, module.in_features) for name, module in quantizable(model).items()}
    if reason := unquantizable(model):
        raise QuantuneError(f"the architecture '{model.config.model_type}' cannot be quantized: {reason}")
    if not layers:
        raise QuantuneError(f"the architecture '{model.config.model_type}' has no linear layers that can be quantized")
    return layers


def quantizable(model) -> dict[str, torch.nn.Linear]:
    """Return name -> linear layer of all that is quantized: every `nn.Linear` but the output embedding."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def unquantizable(model: torch.nn.Module) -> str | None:
    """Return why weights of a model would stay at full precision in silence, naming the first of them, or None.

    What is quantized are `nn.Linear` modules, and no subclasses of it: transformers cannot load those quantized.
    Embeddings, convolutions and matrices that are narrower than any layer is (such as the state matrices of Mamba) stay
    as they are with every method.
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
    """Raise QuantuneError naming the layer unless the condition holds."""
    if not condition:
        raise QuantuneError(f"structural check: layer '{layer}': {message}")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files and the generation settings from one checkpoint folder to another."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (Path(source) / name).is_file() and not (Path(folder) / name).exists():
            shutil.copyfile(Path(source) / name, Path(folder) / name)


def save_model(model, parent: Path, folder: Path) -> None:
    """Save a model that was made from a checkpoint, with that checkpoint's tokenizer and generation settings.

    The settings are copied as they are: transformers refuses to write some that models on the hub come with, such as a
    temperature without sampling.
    """
    from transformers import GenerationConfig

    settings, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder)
    model.generation_config = settings
    (Path(folder) / "generation_config.json").unlink(missing_ok=True)
    copy_tokenizer(parent, folder)


def round_saved(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give every floating-point tensor that is saved a dtype, and leave the buffers that are not saved as they are.

    `model.to(dtype)` would round those too (the frequencies of rotary embeddings, for one), and a model that is read
    back, whose buffers are computed anew, would not be the same model.
    """
    for module in model.modules():
        saved = dict(module.named_parameters(recurse=False))
        saved |= {
            name: value
            for name, value in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        for value in saved.values():
            if value.is_floating_point():
                value.data = value.data.to(dtype)
