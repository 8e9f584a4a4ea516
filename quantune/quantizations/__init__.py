"""Quantization methods: every module in this folder is loaded automatically.

A method module defines one or more `Quantization` recipes. To add a method, add a module and its test.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from quantune.core.recipe import Recipe, subclasses
from quantune.core.units import BYTES
from quantune.core.workload import Calibration

LEFT_DENSE = {
    "gpt2": "their weights are in Conv1D modules instead of linear layers",
    "falcon": "their layers are FalconLinear modules instead of linear layers",
}
"""`model_type` of config.json -> why no method quantizes such models."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of config.json that a mixture of experts has."""


class Quantization(Recipe):
    """How a checkpoint is quantized. Subclasses set the literal `method` and implement the functions below."""

    readable: ClassVar[bool] = True
    """Whether PEFT can read the dense weights of a loaded layer in each step, as DoRA does."""
    unpacks: ClassVar[bool] = True
    """Whether a layer's dense weights exist while it computes."""
    rescales: ClassVar[bool] = False
    """Whether the method rescales inputs and outputs of layers, so that they differ from the parent's."""
    only_here: ClassVar[str | None] = None
    """Why other programs read another model from its checkpoints, with the remedy; None: they read the same."""
    settings: ClassVar[frozenset[str]] = frozenset({"if_destroyed"})
    numbers: ClassVar[tuple[str, ...]] = ("layers_quantized", "bits_per_weight")
    version: ClassVar[int] = 3

    if_destroyed: Literal["stop", "warn"] = "stop"
    """What happens when the quantized model is destroyed: its loss is not finite or worse than a unigram model's, or a
    layer is no better than zeros. stop: the job fails and names the layer; warn: the report shows a warning."""

    def usual_error(self) -> float:
        """Return the largest relative output error of a layer that needs no warning: about the largest one measured."""
        return 0.3

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize the checkpoint in `parent` and save it, packed, into the empty `folder`; return facts.

        Methods that calibrate have a field `dataset`, and get the prepared `data` and the `seed` of the draw.
        """
        raise NotImplementedError

    def check(self, parent: Path, folder: Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Check every quantized layer of a saved checkpoint: its tensors exist, fit in shape and dtype, are finite.

        Args:
            parent: the checkpoint that was quantized.
            folder: the saved one.
            facts: what `quantize` returned; needed where the job chose the bits.

        Returns:
            Layers quantized, and bits stored per quantized weight: codes, scales, zero points and tables.

        Raises:
            QuantuneError: if a tensor is wrong, with the name of its layer.
        """
        from quantune.models.checkpoints import Tensors, finite, linear_layers, require

        tensors, shapes, stored = Tensors(folder), linear_layers(parent, self.quantizes_head()), 0
        recipe = self.resolved(shapes, facts)
        layers = {name: (*shape, own) for name, shape in shapes.items() if (own := recipe.of_layer(name))}
        for name in shapes.keys() - layers:
            require(f"{name}.weight" in tensors, name, "'weight' is missing: the recipe leaves this layer dense")
        for name, (rows, columns, own) in layers.items():
            parts = own.layer_tensors(rows, columns)
            require("weight" in parts or f"{name}.weight" not in tensors, name, "still holds its full-precision weight")
            for part, (dtype, shape) in parts.items():
                key = f"{name}.{part}"
                require(key in tensors, name, f"'{part}' is missing")
                require(tensors.shape(key) == shape, name, f"'{part}' has shape {tensors.shape(key)}, not {shape}")
                stored_dtype = str(tensors[key].dtype).removeprefix("torch.")
                require(dtype in (None, stored_dtype), name, f"'{part}' is {stored_dtype}, not {dtype}")
            stored += own.stored_bits(rows, columns)
            for bad in finite(tensors, [f"{name}.{part}" for part in parts]):
                require(False, name, f"'{bad}' holds NaN or infinity")
        weights = sum(rows * columns for rows, columns, _ in layers.values())
        dense = {"layers_left_dense": sorted(shapes.keys() - layers)} if len(layers) < len(shapes) else {}
        return {"layers_quantized": len(layers), "bits_per_weight": round(stored / weights, 4)} | dense

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits that a quantized layer (outputs, inputs) takes: codes, scales, zero points and tables."""
        tensors = self.layer_tensors(rows, columns).values()
        return 8 * sum(prod(shape) * BYTES[dtype or "float16"] for dtype, shape in tensors)

    def probe(self, parent: Path, data: Path | None, seed: int) -> tuple[str, list[dict[str, Any]]]:
        """Return a name and the batches of inputs on which the model is compared with its parent."""
        from quantune.quantizations.arithmetic.quality import probe_inputs

        return probe_inputs(parent)

    def workload(self) -> Calibration | None:
        """Return the workload of calibration, for estimates of memory; None for methods without calibration."""
        return None

    def quantizes_head(self) -> bool:
        """Return whether the output embedding is quantized."""
        return False

    def of_layer(self, name: str) -> Self | None:
        """Return the recipe of one layer, by its full name; None: it stays dense."""
        return self

    def resolved(self, layers: Mapping[str, tuple[int, int]], facts: Mapping[str, Any] | None = None) -> Self:
        """Return the recipe with values in place of what it leaves to the model.

        Args:
            layers: full name -> (outputs, inputs) of the layers that can be quantized.
            facts: of the job that made the choice; None: what estimates assume.
        """
        return self

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Return suffix -> (dtype, shape) of the tensors that a quantized layer (outputs, inputs) has on disk.

        A dtype of None is that of the parent, and counts as 16 bits.
        """
        raise NotImplementedError

    def product_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes for each token that the product of a layer takes besides its input and output."""
        return 0

    def misfit(self, widths: set[int]) -> str | None:
        """Return why this recipe does not fit layers of these input widths (".key: why", or ": why"), or None."""
        return None

    def mismatch(self, layers: Mapping[str, tuple[int, int]], head: str | None = None) -> str | None:
        """Return why this recipe does not fit these layers (".key: why", or ": why"), or None.

        Args:
            layers: full name -> (outputs, inputs) of the layers that the recipe could quantize.
            head: name of the output embedding.
        """
        return self.misfit({columns for _, columns in layers.values()})

    def unservable(self, widths: set[int]) -> str | None:
        """Return why vLLM cannot serve the checkpoints as compressed-tensors, with the remedy, or None.

        `widths` are the input widths of the model's layers.
        """
        return "its layers are not packed by compressed-tensors; export 'safetensors', which transformers opens"

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why models with this config.json cannot be quantized with this recipe (": why"), or None.

        The job also checks the modules: `checkpoints.unquantizable`.
        """
        family = config.get("model_type")
        why = LEFT_DENSE.get(family)
        if any(config.get(key) for key in EXPERTS):
            why = "its experts are fused into one parameter"
        advice = "evaluate or fine-tune the model at full precision"
        return f": '{family}' models cannot be quantized: {why}, which would stay dense; {advice}" if why else None


def methods() -> list[type[Quantization]]:
    """Return every quantization recipe."""
    return subclasses(__name__, Quantization, "method")
