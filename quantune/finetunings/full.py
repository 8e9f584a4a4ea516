"""Training of the model's own weights: all of them (full fine-tuning), or chosen layers, norms or biases (freeze).

Trained weights are float32 while they train, whatever the precision of the computation (mixed precision, Micikevicius
et al., 2018, arXiv:1710.03740). The whole model is saved in the dtype in which its base is stored. Biases alone are
BitFit (Ben Zaken et al., 2021, arXiv:2106.10199).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.errors import QuantuneError, listed
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import Architecture, Layers

Layer = Annotated[int, Field(ge=0, le=10_000)]


class OwnWeights(Finetuning):
    """Train weights of the model itself; the result is a whole model."""

    leaves: ClassVar[Literal["adapter", "model"]] = "model"
    trains_on_quantized: ClassVar[bool] = False

    @property
    def mixed(self) -> bool:
        """Whether the model computes in mixed precision: whenever it computes in 16 bits."""
        return self.precision != "float32"

    def save(self, model, parent: Path, folder: Path) -> None:
        """Save the whole model that was trained from the checkpoint in `parent`, in the dtype of its weights there."""
        from quantune.models import checkpoints

        checkpoints.save_trained(model, parent, folder)


class Full(OwnWeights):
    """Train all weights of the model."""

    trains_head: ClassVar[bool] = True

    method: Literal["full"]
    """Full fine-tuning."""

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return the model; all its parameters require gradients, but constants such as sinusoidal positions."""
        return model.requires_grad_(True)

    def trained(self, shape: Architecture) -> int:
        """Return the number of all parameters."""
        return sum(shape.parameters().values())

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer keeps its input for the gradient of its weights: each does."""
        return True


class Freeze(OwnWeights):
    """Train chosen layers, or only norms or biases, and freeze all other weights."""

    method: Literal["freeze"]
    """Chosen layers, norms only or biases only."""
    layers: Annotated[int, Field(gt=0, le=10_000)] | Annotated[list[Layer], Field(min_length=1)] | Literal["all"] = 2
    """The layers that are trained: a number, of the last ones; a list of layers, the first is 0; or all. A speech model
    has them in its encoder and in its decoder. all: norms and biases outside the layers are trained, too."""
    parts: Literal["all", "norms", "biases"] = "all"
    """What is trained of them: all weights, only those of norms, or only biases."""

    @model_validator(mode="after")
    def _freezes(self):
        if self.layers == "all" and self.parts == "all":
            raise ValueError("'layers: all' with 'parts: all' freezes nothing but embeddings; take 'method: full'")
        return self

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the layers do not fit a model with this config.json, or None."""
        if (shape := architecture.known(config)) is None:
            return None
        for layers in shape.layers:
            if problem := self._missing(layers.count):
                return f".layers: {problem}"
        if not self.trained(shape):
            return f".parts: the layers of the model have no {self.parts}; allowed: {listed(['all', 'norms'])}"
        return None

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return the model; only the chosen parameters require gradients.

        Raises:
            QuantuneError: if the model has no such layer, or they have no such parameters.
        """
        from quantune.models import offloading

        model.requires_grad_(False)
        stacks = [stack for _, stack in offloading.stacks(model)]
        for stack in stacks:
            if problem := self._missing(len(stack)):
                raise QuantuneError(f"layers: {problem}")
        parts = [model] if self.layers == "all" else [stack[number] for stack in stacks for number in self._of(stack)]
        for module in (module for part in parts for module in part.modules()):
            for name, value in module.named_parameters(recurse=False):
                if self.parts == "all" or (name == "bias" if self.parts == "biases" else _norm(module)):
                    value.requires_grad_(True)
        if not any(value.requires_grad for value in model.parameters()):
            raise QuantuneError(f"parts: the layers of the model have no {self.parts}")
        return model

    def trained(self, shape: Architecture) -> int:
        """Return the number of chosen parameters."""
        if self.layers == "all":
            return shape.parameters()["norms"] if self.parts == "norms" else shape.biases()
        return sum(len(self._of(range(layers.count))) * self._in_layer(layers) for layers in shape.layers)

    def adapts(self, layer: str) -> bool:
        """Return whether linear layers keep their inputs for the gradients of their weights."""
        return self.parts == "all"

    def _in_layer(self, layers: Layers) -> int:
        """Return the number of chosen parameters of one layer."""
        biases = sum(linear.outputs for linear in layers.linears if linear.bias)
        if self.parts == "norms":
            return layers.norm_parameters
        if self.parts == "biases":
            return biases + (0 if layers.rms else layers.norm_parameters // 2)
        return layers.norm_parameters + biases + sum(linear.inputs * linear.outputs for linear in layers.linears)

    def _of(self, stack) -> list[int]:
        """Return the numbers of the chosen layers of a stack."""
        if type(self.layers) is list:
            return sorted(set(self.layers))
        return list(range(len(stack)))[0 if self.layers == "all" else -self.layers :]

    def _missing(self, count: int) -> str | None:
        """Return why a stack of so many layers does not have the chosen ones, or None."""
        if type(self.layers) is int and self.layers > count:
            return f"{self.layers} is too many, the model has {count}; allowed: up to {count}"
        if type(self.layers) is list and max(self.layers) >= count:
            return f"the model has no layer {max(self.layers)}; allowed: 0 to {count - 1}"
        return None


def _norm(module) -> bool:
    """Return whether a module is a norm."""
    return "norm" in type(module).__name__.lower()
