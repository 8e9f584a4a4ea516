"""What each job of a plan takes: predicted memory and disk, from the configuration or a checkpoint's provenance."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from quantune import architecture, hardware, memory
from quantune.artefacts import Artefact, recorded
from quantune.calibration import Calibrated
from quantune.chains import Variant
from quantune.config import Finetuning, Quantization
from quantune.errors import QuantuneError
from quantune.memory import BYTES, Estimate
from quantune.plan import Plan
from quantune.recipe import Recipe

LIBRARIES = 750_000_000
"""Bytes of main memory that Python, torch, transformers and peft take before a model is loaded; measured on a CPU."""
DRIVER = 2_000_000_000
"""Bytes of main memory that a job takes beside them when it computes on a GPU."""
COMPUTES = ("quantize", "train", "merge", "evaluate", "transcribe", "benchmark")
"""Stages that load a model, on a GPU where there is one."""


def estimate(plan: Plan, artefact: Artefact) -> Estimate | None:
    """Return the predicted peak of the tensors of the job that makes an artefact.

    None for stages that load no model, and where the shape of the model is not known or its recipe tells nothing.
    """
    if not computes(artefact):
        return None
    variant, evaluation = _subject(plan, artefact)
    config, after = plan.config.config_of(variant.model), in_effect(plan, variant)
    try:
        if artefact.stage == "benchmark":
            asked = plan.config.benchmark
            batch, length = max(asked.batch_sizes), asked.longest(plan.config.track(variant.model))
            return memory.inference(config, after, asked.dtype, batch, length, cache=True, logits=1)
        if artefact.stage == "transcribe":
            asked, length = plan.config.recordings[evaluation], config["max_target_positions"]
            return memory.inference(
                config, after, asked.dtype, asked.batch_size * asked.beams, length, cache=True, logits=1
            )
        if evaluation:
            return plan.config.evaluations[evaluation].memory(config, after)
        if variant.kind == "finetuning":
            return memory.training(config, in_effect(plan, variant.parent), after[-1])
        # two models are there: what is compared with what was made or, while it is made, dense weights and their grids
        steps = in_effect(plan, variant.parent) if variant.kind == "quantization" else after
        read = {"batch": 2, "length": 64} if variant.kind == "merge" else {"batch": 1, "length": memory.PROBE}
        made = memory.inference(config, steps, "float32", **read)
        dtype = stored_dtype(config) if variant.kind == "merge" else "float32"
        compared = Estimate(made.terms | {"reloaded": memory.weights(architecture.read(config), dtype, *steps)})
        if variant.kind == "quantization" and isinstance(after[-1], Calibrated):
            return max(compared, memory.calibration(config, after[-1], calibrated_in(config)), key=lambda it: it.total)
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
    weights = weight_bytes(plan, _subject(plan, artefact)[0].model)
    if hardware.gpus():
        return LIBRARIES + DRIVER + weights
    found = estimate(plan, artefact)
    return LIBRARIES + (found.total if found else 5 * weights)


def disk_bytes(plan: Plan, artefact: Artefact) -> int | None:
    """Return the size of an artefact: weights by their formula, data as large as the files it is read from."""
    kind, name, *_ = [*artefact.path.removeprefix(f"{plan.work}/").split("/"), ""]
    if kind in ("sources", "prepared"):
        return plan.dataset_bytes(name)
    if kind != "checkpoints":
        return None
    variant = plan.config.parse(name)
    config = plan.config.config_of(variant.model)
    total, weights = sum(plan.model_sizes(variant.model).values()), weight_bytes(plan, variant.model)
    if variant.kind == "model":
        return total
    try:
        shape, effective = architecture.read(config), in_effect(plan, variant)
        if variant.kind == "finetuning":
            made = memory.trainable(shape, effective[-1]) * BYTES["float32"]
        else:
            made = memory.weights(shape, stored_dtype(config), *effective)
    except (QuantuneError, NotImplementedError):
        return None
    return total - weights + made


def computes(artefact: Artefact) -> bool:
    """Return whether making an artefact loads a model."""
    return artefact.stage.partition("/")[0] in COMPUTES


def in_effect(plan: Plan, variant: Variant) -> list[Recipe]:
    """Return the recipes of the steps that are in effect in a variant: those after the last merge."""
    recipes = []
    for step, kind in zip(variant.steps, variant.kinds, strict=True):
        if kind == "merge":
            recipes = []
        else:
            recipes.append((plan.config.quantizations | plan.config.finetunings)[step.name])
    return recipes


def recipes_of(folder: str | Path) -> list[Recipe]:
    """Return the recipes in effect in a checkpoint on disk, from its provenance and that of what it was made from.

    With them `memory.inference` and `memory.training` tell what a checkpoint should take, to be shown beside what it
    was seen to take.

    Raises:
        QuantuneError: if the folder, or one it was made from, has no provenance.
    """
    found = recorded(folder)
    if found is None:
        raise QuantuneError(f"'{folder}' has no readable provenance; make it with snakemake")
    kinds = {"quantize": Quantization, "train": Finetuning}
    stage = found["stage"].partition("/")[0]
    if stage not in kinds:
        return []
    recipe = {key: value for key, value in found["recipe"].items() if key != "seed"}
    return [*recipes_of(found["parents"]["parent"][0]["path"]), TypeAdapter(kinds[stage]).validate_python(recipe)]


def training_bytes(parent: Path, recipe: Recipe) -> int | None:
    """Return the predicted peak of training on a checkpoint on disk; None where it cannot be told."""
    try:
        return memory.training(json.loads((parent / "config.json").read_text()), recipes_of(parent), recipe).total
    except (QuantuneError, NotImplementedError):
        return None


def calibrated_in(config: dict[str, Any]) -> str:
    """Return the dtype that a model is calibrated in here: on a GPU the stored one, as `layerwise.load` has it."""
    return stored_dtype(config) if hardware.gpus() else "float32"


def stored_dtype(config: dict[str, Any]) -> str:
    """Return the dtype of a model's weights on disk."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def weight_bytes(plan: Plan, model: str) -> int:
    """Return the bytes of a model's weight files."""
    return sum(size for name, size in plan.model_sizes(model).items() if name.endswith(".safetensors"))


def _subject(plan: Plan, artefact: Artefact) -> tuple[Variant, str]:
    """Return the variant that a checkpoint or an evaluation is of, and the evaluation's name or an empty text."""
    _, variant, *evaluation = artefact.path.removeprefix(f"{plan.work}/").split("/")
    return plan.config.parse(variant), "".join(evaluation)
