"""What each job of a plan takes: predicted memory and disk, from the configuration or a checkpoint's provenance."""

from typing import Any

from quantune.artefacts.record import Artefact
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.core.recipe import Recipe
from quantune.core.units import BYTES
from quantune.core.workload import PROBE_TOKENS, Inference
from quantune.models import architecture
from quantune.planning import memory
from quantune.planning.chains import Variant
from quantune.planning.memory import Estimate
from quantune.planning.plan import Plan
from quantune.quantizations.calibration import Calibrated

COMPUTES = ("quantize", "train", "merge", "evaluate", "transcribe", "benchmark")
"""Stages that load a model, on a GPU where there is one."""


def estimate(plan: Plan, artefact: Artefact) -> Estimate | None:
    """Return the predicted peak of the tensors of the job that makes an artefact.

    None for stages that load no model, and where the shape of the model is not known or its recipe tells nothing.
    """
    if not computes(artefact):
        return None
    place = artefact.place
    variant = plan.config.parse(place.variant)
    config, after = plan.config.config_of(variant.model), in_effect(plan, variant)
    try:
        shape = architecture.read(config)
        if artefact.stage == "benchmark":
            return memory.inference(config, after, plan.config.benchmark.workload(plan.config.track(variant.model)))
        if artefact.stage == "transcribe":
            return memory.inference(config, after, plan.config.recordings[place.last].workload(config))
        if place.folder == "evaluations":
            return memory.inference(config, after, plan.config.evaluations[place.last].workload(config))
        if variant.kind == "finetuning":
            return memory.training(config, in_effect(plan, variant.parent), after[-1])
        # two models are there: what is compared with what was made or, while it is made, dense weights and their grids
        steps = in_effect(plan, variant.parent) if variant.kind == "quantization" else after
        batch, length = (2, 64) if variant.kind == "merge" else (1, PROBE_TOKENS)
        made = memory.inference(config, steps, Inference("float32", batch, length))
        dtype = stored_dtype(config) if variant.kind == "merge" else "float32"
        compared = Estimate(made.terms | {"reloaded": memory.weights(shape, dtype, *steps)})
        if variant.kind == "quantization" and isinstance(after[-1], Calibrated):
            streamed = memory.calibration(config, after[-1].workload(), calibrated_in(config))
            return max(compared, streamed, key=lambda estimate: estimate.total)
        return compared
    except (QuantuneError, NotImplementedError):
        return None


def terms(plan: Plan, artefact: Artefact) -> dict[str, int] | None:
    """Return what is predicted to be there at the peak -> bytes, as a job records it; None where `estimate` is None."""
    found = estimate(plan, artefact)
    return {name: value for name, value in found.terms.items() if value} if found else None


def host_bytes(plan: Plan, artefact: Artefact) -> int | None:
    """Return the main memory that a job which loads a model takes, libraries included.

    With a GPU that is one copy of the weights on their way there. Where the model's shape is not known, five times the
    weights. None for stages that load no model.
    """
    if not computes(artefact):
        return None
    weights = weight_bytes(plan, plan.config.parse(artefact.place.variant).model)
    if hardware.gpus():
        return hardware.LIBRARIES + hardware.DRIVER + weights
    found = estimate(plan, artefact)
    return hardware.LIBRARIES + (found.total if found else 5 * weights)


def disk_bytes(plan: Plan, artefact: Artefact) -> int | None:
    """Return the size of an artefact: weights by their formula, data as large as the files it is read from."""
    place = artefact.place
    if place.folder in ("sources", "prepared"):
        return plan.dataset_bytes(place.names[0])
    if place.folder != "checkpoints":
        return None
    variant = plan.config.parse(place.variant)
    config = plan.config.config_of(variant.model)
    total, weights = sum(plan.model_sizes(variant.model).values()), weight_bytes(plan, variant.model)
    if variant.kind == "model":
        return total
    try:
        shape, effective = architecture.read(config), in_effect(plan, variant)
        if variant.is_adapter:
            made = effective[-1].trained(shape) * BYTES["float32"]
        else:
            made = memory.weights(shape, stored_dtype(config), *effective)
    except (QuantuneError, NotImplementedError):
        return None
    return total - weights + made


def computes(artefact: Artefact) -> bool:
    """Return whether making an artefact loads a model."""
    return artefact.stage.partition("/")[0] in COMPUTES


def in_effect(plan: Plan, variant: Variant) -> list[Recipe]:
    """Return the recipes of the steps that shape what is loaded of a variant."""
    recipes = plan.config.quantizations | plan.config.finetunings
    return [recipes[step.name] for step in variant.in_effect]


def calibrated_in(config: dict[str, Any]) -> str:
    """Return the dtype that a model is calibrated in here: on a GPU the stored one, as `layerwise.load` has it."""
    return stored_dtype(config) if hardware.gpus() else "float32"


def stored_dtype(config: dict[str, Any]) -> str:
    """Return the dtype of a model's weights on disk."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def weight_bytes(plan: Plan, model: str) -> int:
    """Return the bytes of a model's weight files."""
    return sum(size for name, size in plan.model_sizes(model).items() if name.endswith(".safetensors"))
