"""int8 weights and inputs (W8A8), calibrated: static scales of inputs, and SmoothQuant.

SmoothQuant (Xiao et al., 2022, arXiv:2211.10438) divides the input channels of layers by scales, and multiplies the
weights by them: channels with outliers then fit into int8. The scales are folded into the norm before the layers, so
the full-precision function does not change.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.workload import Calibration
from quantune.models import architecture
from quantune.quantizations.awq import FAMILIES, Mapping, known_mappings, unknown_mappings
from quantune.quantizations.calibration import Sampled, draw
from quantune.quantizations.coded import EightBits


class CalibratedEightBits(Sampled, EightBits):
    """Codes of 8 bits for weights and inputs, with the range of inputs from calibration data."""

    seeded: ClassVar[bool] = True

    def usual_error(self) -> float:
        """Return the limit of the usual error."""
        return 0.1

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the model does not fit, or None: layers outside the decoder layers are not calibrated."""
        shape = architecture.known(config) if self.inputs == "static" else None
        if (problem := super().unsuitable(config)) or shape is None or not shape.projections:
            return problem
        return (
            f": the inputs of '{shape.projections[0].name}', outside of the decoder layers, are not calibrated, and "
            "static scales need it; take the method smoothquant with 'activations: dynamic', or int8-dynamic"
        )

    def quantize(self, parent: Path, folder: Path, data: Path | None = None, seed: int = 0) -> dict[str, Any]:
        """Quantize layer by layer; the facts hold the relative output error of each linear layer."""
        import torch

        from quantune.models import loading, offloading
        from quantune.quantizations.arithmetic import layerwise, smoothing
        from quantune.quantizations.formats import eight_bits

        batches, facts = draw(self, data, seed, parent)
        model = layerwise.load(parent)
        scales, ranges, errors, stored = {}, {}, {}, loading.stored_dtype(parent)
        code, static = getattr(torch, self.code), self.inputs == "static"

        def transform(name, layer, inputs):
            scales.update(self.rescale(model, name, layer, inputs))

        def visit(name, layer, inputs):
            for group in inputs:
                scale = scales.get(next(iter(group.layers)), 1.0)
                rows, largest = group.rows / scale, (group.largest / scale).max()
                for part, linear in group.layers.items():
                    ranges[part] = largest
                    errors[part] = smoothing.output_error(rows, linear.weight.data, code, largest if static else None)

        def pack(name, layer):
            for part in [part for part in ranges if part.startswith(f"{name}.")]:
                scales.pop(part, None)
                eight_bits.pack(layer.get_submodule(part.removeprefix(f"{name}.")), self, stored, ranges.pop(part))
            offloading.move(layer.modules(), "cpu", stored)

        hooks = {"transform": transform if self.rescales else None, "collecting": smoothing.Ranges}
        layerwise.stream(model, batches, visit, False, pack, **hooks)
        eight_bits.save(model, self, parent, folder)
        return {"calibration": facts, "output_errors": errors}

    def rescale(self, model, name: str, layer, inputs: list) -> dict[str, Any]:
        """Rescale a decoder layer in place before rounding, without changing its function; for methods that `rescales`.

        Returns:
            Full name of a linear layer -> the factors of its input channels, (columns,).
        """
        raise NotImplementedError

    def workload(self) -> Calibration:
        """Return the workload of calibration, for estimates of memory."""
        return Calibration(self.samples, self.length, None, False, self.solver_bytes, gram=False)

    def solver_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of three float32 matrices of the weights' shape, while they are rounded."""
        return 3 * 4 * rows * columns


class Int8Static(CalibratedEightBits):
    """int8 weights and inputs, with one scale for all tokens."""

    method: Literal["int8-static"]
    """int8 for weights and inputs of layers (W8A8); one scale for all tokens, from calibration."""

    @property
    def inputs(self) -> Literal["static"]:
        """How the inputs of layers are rounded."""
        return "static"


class SmoothQuant(CalibratedEightBits):
    """int8 weights and inputs, after outliers have been moved from inputs to weights."""

    rescales: ClassVar[bool] = True

    method: Literal["smoothquant"]
    """int8 for weights and inputs of layers (W8A8), after channels with outliers have been scaled down: SmoothQuant."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the difficulty that moves from the inputs to the weights: 0.5 in the paper for OPT, 0.8 and more where
    few channels are much larger than the others, as in Llama-like models."""
    activations: Literal["dynamic", "static"] = "dynamic"
    """Inputs of layers. dynamic: a scale for each token; static: one scale for all tokens, from calibration."""
    mappings: list[Mapping] | None = None
    """Where scales can move; needed for architectures without known mappings. null: by the architecture, into norms
    only, as in the paper."""

    @property
    def inputs(self) -> Literal["dynamic", "static"]:
        """How the inputs of layers are rounded."""
        return self.activations

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the architecture does not fit, or None; one without known mappings needs them in the recipe."""
        family = config.get("model_type")
        unknown = f": {unknown_mappings(family)}" if self.mappings is None and family not in FAMILIES else None
        return super().unsuitable(config) or unknown

    def rescale(self, model, name: str, layer, inputs: list) -> dict[str, Any]:
        """Move the scales of each mapping into the operation before its layers."""
        from quantune.quantizations.arithmetic import awq, smoothing

        present = {part: module for part, module in layer.named_modules() if hasattr(module, "weight")}
        known = [item for item in known_mappings(model.config) if item.before in present] if not self.mappings else []
        mappings = self.mappings or [item for item in known if present[item.before].weight.dim() == 1]
        return awq.fold(
            name,
            layer,
            inputs,
            mappings,
            lambda weights, group: smoothing.smoothing_scale([*weights.values()], group.largest, self.alpha),
        )
