"""Quantization methods: every module in this folder is one, found by being here.

A method module defines one or more `Quantization` recipes. To add a method, add a module and its test.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from quantune.recipe import Recipe, subclasses

LEFT_DENSE = {
    "gpt2": "their weights are in Conv1D modules instead of linear layers",
    "falcon": "their layers are FalconLinear modules instead of linear layers",
}
"""`model_type` of config.json -> why no method quantizes such models."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of config.json that a mixture of experts has."""


class Quantization(Recipe):
    """How a checkpoint is quantized. Subclasses set the literal `method` and implement the functions below."""

    keeps_inputs: ClassVar[bool] = False
    """Whether, when an adapter is trained on top, quantized layers keep their inputs for the backward pass."""

    rescales: ClassVar[bool] = False
    """Whether layers of the result read and give rescaled values, unlike those of the parent."""
    settings: ClassVar[frozenset[str]] = frozenset({"if_destroyed"})
    version: ClassVar[int] = 2

    if_destroyed: Literal["stop", "warn"] = "stop"
    """What happens when the quantized model is not finite, worse than a unigram model, or has a layer that is no better
    than zeros: the job fails and names the layer, or the report shows the model with a warning."""

    def usual_error(self) -> float:
        """Return the largest relative output error of a layer that needs no warning: about the worst one measured."""
        return 0.3

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize the checkpoint in `parent` and save it, packed, into the empty `folder`; return facts.

        Methods that calibrate have a field `dataset`, and get the prepared `data` and the `seed` of the draw.
        """
        raise NotImplementedError

    def check(self, parent: Path, folder: Path) -> dict[str, Any]:
        """Check what is in `folder` tensor by tensor; return facts for the provenance, raise QuantuneError."""
        raise NotImplementedError

    def layer_tensors(self, rows: int, columns: int) -> dict[str, tuple[str | None, list[int]]]:
        """Return suffix -> (dtype, shape) of the tensors that a quantized layer (outputs, inputs) has on disk.

        A dtype of None is that of the parent.
        """
        raise NotImplementedError

    def misfit(self, widths: set[int]) -> str | None:
        """Return why this recipe does not fit layers of these input widths (".key: why", or ": why"), or None."""
        return None

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why models with this config.json cannot be quantized with this recipe (": why"), or None.

        The job looks again, at the modules themselves: `checkpoints.unquantizable`.
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
