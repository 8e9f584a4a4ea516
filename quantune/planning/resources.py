"""The resources of each job of a plan: predicted memory and disk, from the configuration and the models' files."""

from typing import Any

from quantune import exports
from quantune.artefacts.record import Artefact
from quantune.core import hardware
from quantune.core.errors import QuantuneError
from quantune.core.recipe import Recipe
from quantune.core.units import BYTES
from quantune.exports import Export
from quantune.models import architecture, stored
from quantune.planning import incoming, memory
from quantune.planning.chains import Variant
from quantune.planning.memory import Estimate
from quantune.planning.plan import Plan

DATA = ("dataset", "clips", "tokenize", "resample")
"""Stages that read and prepare data."""
PYTHON_BYTES, TOKENIZE_BYTES, CLIPS_BYTES = 400_000_000, 300_000_000, 1_000_000_000
WORKER_BYTES = 150_000_000  # of each process that tokenizes beside the first
LONGEST = 2**29  # bytes of the longest document; see `quantune.sources.text_files`
UNPACKED = 8  # assumed ratio of compression
COMPUTES = ("quantize", "train", "merge", "evaluate", "transcribe", "benchmark", "export")
"""Stages that load a model, on a GPU if the machine has one."""


def estimate(plan: Plan, artefact: Artefact) -> Estimate | None:
    """Return the predicted peak memory of the tensors of the job that makes an artefact.

    None if the stage loads no model, or if the model's architecture or the recipe's memory is not known.
    """
    if not loads_model(artefact):
        return None
    place = artefact.place
    variant = plan.config.parse(place.variant)
    key = (artefact.stage, place.last if place.folder != "checkpoints" else "", variant.model)
    key += tuple(step.name for step in variant.steps)  # the seeds of steps change no sizes
    if key not in plan.estimates:
        plan.estimates[key] = _estimate(plan, artefact, variant)
    return plan.estimates[key]


def _estimate(plan: Plan, artefact: Artefact, variant: Variant) -> Estimate | None:
    place = artefact.place
    config, came = incoming.dense(plan.config.config_of(variant.model))
    after = came + effective_recipes(plan, variant)
    try:
        architecture.read(config)  # raises for an unknown one
        if artefact.stage == "benchmark":
            return memory.inference(config, after, plan.config.benchmark.workload(plan.config.track(variant.model)))
        if artefact.stage == "transcribe":
            return memory.inference(config, after, plan.config.recordings[place.last].workload(config))
        if place.folder == "exports":
            return _exporting(exports.by_name()[place.last], config)
        if place.folder == "evaluations":
            return memory.inference(config, after, plan.config.evaluations[place.last].workload(config))
        if variant.kind == "finetuning":
            recipe = plan.config.finetunings[variant.steps[-1].name]
            return memory.training(config, came + effective_recipes(plan, variant.parent), recipe)
        if variant.kind == "quantization":
            return memory.quantizing(config, after[-1], calibration_dtype(config))
        return memory.comparison(config, None, 2, 64)  # of a merged model; a model is only copied
    except (QuantuneError, NotImplementedError):
        return None


def _exporting(form: Export, config: dict[str, Any]) -> Estimate:
    """Return the peak of an export: a forward pass of the dense model, or a few copies of the largest matrix."""
    if work := form.workload(stored_dtype(config)):
        return memory.inference(config, [], work)
    largest = architecture.read(config).head
    return Estimate({"largest tensor": 3 * BYTES["float32"] * largest.inputs * largest.outputs})


def terms(plan: Plan, artefact: Artefact) -> dict[str, int] | None:
    """Return the terms of `estimate` that are not zero, in bytes, as a job records them; None if it is None."""
    predicted = estimate(plan, artefact)
    return {name: value for name, value in predicted.terms.items() if value} if predicted else None


def host_bytes(plan: Plan, artefact: Artefact) -> int | None:
    """Return the bytes of main memory of a job that loads a model or handles data, with libraries; None for others.

    With a GPU, main memory holds one copy of the weights while they are loaded. Without one, it holds the tensors of
    `estimate` or, if that is None, an assumed five times the weights. Jobs that quantize or merge also
    hold what they make.
    """
    if artefact.stage in DATA:
        return data_bytes(plan, artefact)
    if not loads_model(artefact):
        return None
    weights = weight_bytes(plan, plan.config.parse(artefact.place.variant).model)
    made = disk_bytes(plan, artefact) or 0 if artefact.stage.startswith(("quantize", "merge", "export")) else 0
    if hardware.gpus():
        return hardware.LIBRARY_BYTES + hardware.DRIVER_BYTES + (made or weights)
    predicted = estimate(plan, artefact)
    return hardware.LIBRARY_BYTES + (predicted.total + made if predicted else 5 * weights)


def data_bytes(plan: Plan, artefact: Artefact) -> int:
    """Return the bytes of main memory of a job that reads or prepares data, with libraries.

    Files are read part by part, so the job needs room for the longest document or clips, not for all. A file may be
    one document; a compressed one is assumed to hold `UNPACKED` times its size. `LONGEST` bounds both.
    """
    name, stage = artefact.place.names[0], artefact.stage
    sizes = plan.dataset_sizes(name)
    largest = max((size * (UNPACKED if packed else 1) for size, packed in sizes), default=None)
    longest = LONGEST if largest is None else min(largest, LONGEST)
    if stage == "dataset":
        compared = sum(size for size, _ in sizes) if artefact.recipe["remove_leaks"] == "near" else 0
        return PYTHON_BYTES + 4 * longest + 2 * compared
    if stage == "tokenize":
        workers = (plan.config.threads - 1) * WORKER_BYTES
        return hardware.LIBRARY_BYTES + TOKENIZE_BYTES + workers + 2 * longest
    return hardware.LIBRARY_BYTES + CLIPS_BYTES + (2 * longest if stage == "clips" else 0)


def disk_bytes(plan: Plan, artefact: Artefact) -> int | None:
    """Return the predicted bytes of an artefact, or None; data are assumed to be as large as their source files."""
    place = artefact.place
    if place.folder in ("sources", "prepared"):
        return plan.dataset_bytes(place.names[0])
    if place.folder == "exports":
        bits = exports.by_name()[place.last].bits
        shape = architecture.known(plan.config.config_of(plan.config.parse(place.variant).model))
        if bits is None or shape is None:
            return disk_bytes(plan, artefact.parents["checkpoint"])
        return int(sum(shape.parameters().values()) * bits / 8)
    if place.folder != "checkpoints":
        return None
    variant = plan.config.parse(place.variant)
    config, came = incoming.dense(plan.config.config_of(variant.model))
    total, weights = sum(plan.model_sizes(variant.model).values()), weight_bytes(plan, variant.model)
    if variant.kind == "model":
        return total
    try:
        shape, effective = architecture.read(config), came + effective_recipes(plan, variant)
        if variant.is_adapter:
            made = effective[-1].stored(shape) * BYTES["float32"] * (1 + effective[-1].keep_checkpoints)
        else:
            made = memory.weights(shape, stored_dtype(config), *effective)
            if variant.kind == "finetuning":
                made *= 1 + plan.config.finetunings[variant.steps[-1].name].keep_checkpoints
    except (QuantuneError, NotImplementedError):
        return None
    return total - weights + made


def loads_model(artefact: Artefact) -> bool:
    """Return whether making an artefact loads a model."""
    return computes(artefact.stage)


def computes(stage: str) -> bool:
    """Return whether a stage loads a model."""
    return stage.partition("/")[0] in COMPUTES


def effective_recipes(plan: Plan, variant: Variant) -> list[Recipe]:
    """Return the recipes of a variant's effective steps."""
    recipes = plan.config.quantizations | plan.config.finetunings
    return [recipes[step.name] for step in variant.effective_steps]


def calibration_dtype(config: dict[str, Any]) -> str:
    """Return the dtype of a model during calibration: on a GPU the stored one, as in `layerwise.load`."""
    return stored_dtype(config) if hardware.gpus() else "float32"


def stored_dtype(config: dict[str, Any]) -> str:
    """Return the dtype of a model's weights on disk."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def weight_bytes(plan: Plan, model: str) -> int:
    """Return the bytes of a model's weight files."""
    return sum(size for name, size in plan.model_sizes(model).items() if name.endswith(stored.WEIGHTS))
