"""The grammar of variants: a variant is a chain of steps applied to a model, and its name is its path.

opt-125m                              the model as downloaded
opt-125m+nf4+lora-quotes              QLoRA: quantize, then train an adapter
opt-125m+lora-quotes@3+merge+gptq-w4  fine-tune with seed 3, fold the adapter in, then quantize
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import bracex

from quantune.core.errors import ConfigError, listed, nearest
from quantune.core.recipe import LARGEST_SEED, NAME, SEED

MERGE = "merge"
STEP = re.compile(rf"(?P<name>{NAME})(@(?P<seed>{SEED}))?")


class Names(Protocol):
    """The sections of a configuration that name the steps and models."""

    models: dict
    quantizations: dict
    finetunings: dict


@dataclass(frozen=True)
class Step:
    """One step of a chain: `lora-quotes@3` is the step `lora-quotes` with seed 3."""

    name: str
    seed: int | None = None
    kind: Literal["quantization", "finetuning", "merge"] = "quantization"
    leaves: Literal["model", "adapter"] = "model"
    """Content of the checkpoint: a whole model, or an adapter that is loaded on top of its parent."""

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}@{self.seed}"


@dataclass(frozen=True)
class Variant:
    """A model and the steps applied to it."""

    model: str
    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.model, *map(str, self.steps)])

    @property
    def kind(self) -> str:
        """The kind of the last step, or "model"."""
        return self.steps[-1].kind if self.steps else "model"

    @property
    def parent(self) -> "Variant | None":
        """The variant without its last step; None for a model."""
        return Variant(self.model, self.steps[:-1]) if self.steps else None

    @property
    def ancestors(self) -> list["Variant"]:
        """The variants that this one is made from, the model first."""
        return [*self.parent.ancestors, self.parent] if self.parent else []

    @cached_property
    def quantized(self) -> bool:
        """Whether the weights are quantized; a merge and a fully fine-tuned model bring full precision back."""
        return any(step.kind == "quantization" for step in self.effective_steps)

    @property
    def is_adapter(self) -> bool:
        """Whether the checkpoint is an adapter, which is loaded on top of its parent."""
        return bool(self.steps) and self.steps[-1].leaves == "adapter"

    @property
    def effective_steps(self) -> tuple[Step, ...]:
        """The steps that the loaded model consists of: a quantization, an adapter on top, both or none."""
        last = max((index for index, step in enumerate(self.steps) if self._full(step)), default=-1)
        return self.steps[last + 1 :]

    @staticmethod
    def _full(step: Step) -> bool:
        """Return whether a step leaves a whole model at full precision."""
        return step.leaves == "model" and step.kind != "quantization"

    def checkpoints_to_load(self) -> list["Variant"]:
        """Return the variants whose checkpoints are loaded: this one; for an adapter its parent, then this one."""
        return [self.parent, self] if self.is_adapter else [self]

    def merge_base(self) -> "Variant":
        """Return the nearest ancestor that is a whole model, not quantized: `merge` adds the adapter to it."""
        return next(item for item in reversed(self.ancestors) if not item.quantized and not item.is_adapter)


def expand(patterns: list[str]) -> list[str]:
    """Expand braces as a shell would (`opt+{rtn-w4,nf4}`, `lora@{0..4}`) and drop repetitions; the order stays."""
    try:
        return list(dict.fromkeys(name for pattern in patterns for name in bracex.expand(pattern)))
    except bracex.ExpansionLimitException as error:
        raise ConfigError(f"the braces stand for too many variants ({error}); write fewer") from None


def parse(text: str, names: Names) -> Variant:
    """Return the variant with this name.

    Raises:
        ConfigError: if the chain cannot work; names the step, the reason, and a name to type instead.
    """
    head, *tail = text.split("+")
    if head not in names.models:
        raise ConfigError(
            f"variant '{text}': '{head}' is not a model; models: {listed(names.models)}{nearest(head, names.models)}"
        )
    variant = Variant(head)
    for part in tail:
        step = _step(part, text, names)
        if problem := _problem(variant, step, names):
            raise ConfigError(f"variant '{text}': {problem}")
        variant = Variant(variant.model, (*variant.steps, step))
    return variant


def _step(part: str, text: str, names: Names) -> Step:
    match = STEP.fullmatch(part)
    known = [*names.quantizations, *names.finetunings, MERGE]
    if not match:
        raise ConfigError(
            f"variant '{text}': '{part}' is not a step; a step is a name, or name@seed, such as 'lora@3'"
            f"{nearest(part, known)}"
        )
    name, seed = match["name"], int(match["seed"]) if match["seed"] else None
    if seed is not None and seed > LARGEST_SEED:
        raise ConfigError(f"variant '{text}': the seed of '{part}' is too large; allowed: 0 to {LARGEST_SEED}")
    if name in names.models:
        raise ConfigError(f"variant '{text}': '{name}' is a model; a model can only begin a chain")
    if name not in known:
        raise ConfigError(f"variant '{text}': '{name}' is not a step; steps: {listed(known)}{nearest(name, known)}")
    if name in names.finetunings:
        return Step(name, seed, "finetuning", names.finetunings[name].leaves)
    return Step(name, seed, "merge" if name == MERGE else "quantization")


def _problem(parent: Variant, step: Step, names: Names) -> str | None:
    """Return why `step` cannot follow `parent`, or None."""
    recipe = names.quantizations.get(step.name) or names.finetunings.get(step.name)
    if step.seed is not None and not (recipe and recipe.seeded):
        return f"'{step}' gives a seed to a step that uses none; write '{step.name}'"
    if step.kind == "merge":
        return _unmergeable(parent, names)
    verb = "quantize" if step.kind == "quantization" else "train on top of"
    if parent.is_adapter:
        whole = str(parent) if _unmergeable(parent, names) else f"{parent}+{MERGE}"
        advice = (
            f"merge it first: '{whole}+{step}'" if whole != str(parent) else f"'{parent.parent}+{step}' can be made"
        )
        return f"'{step}' cannot {verb} the adapter '{parent}'; {advice}"
    if parent.quantized and (step.kind == "quantization" or not recipe.trains_on_quantized):
        full = next(item for item in reversed(parent.ancestors) if not item.quantized and not item.is_adapter)
        return f"'{parent}' is already quantized; '{step}' needs full precision: '{full}+{step}'"
    return _unreadable(parent, step, names) if step.kind == "finetuning" else None


def _unreadable(parent: Variant, step: Step, names: Names) -> str | None:
    """Return why a fine-tuning cannot read the weights of `parent`, or those before its quantization, or None."""
    recipe = names.finetunings[step.name]
    quantizations = [names.quantizations[item.name] for item in parent.effective_steps if item.kind == "quantization"]
    if recipe.reads_dense and not all(other.readable for other in quantizations):
        return (
            f"'{step}' reads the dense weights of the base in each step, and PEFT cannot read those of '{parent}'; "
            "take another quantization"
        )
    if not recipe.reads_original:
        return None
    if not quantizations:
        first = next((name for name, other in names.quantizations.items() if not other.rescales), "nf4")
        return f"'{step}' begins with the error of a quantization; put one before it: '{parent}+{first}+{step}'"
    if any(other.rescales for other in quantizations):
        return (
            f"'{step}' begins with the error of a quantization, and '{parent}' scales the inputs of layers, so its "
            "weights cannot be compared with the original ones; take another quantization"
        )
    return None


def unfit_for_quantized(variant: Variant, names: Names, method: str | None) -> str | None:
    """Return why a step cannot follow a model that comes quantized, by this method, or None; None: full precision."""
    for step in variant.steps if method else ():
        recipe = names.finetunings.get(step.name)
        if step.kind == "finetuning" and recipe.trains_on_quantized and not recipe.reads_original:
            continue
        return (
            f"'{variant.model}' is already quantized ({method}, in its config.json), and '{step}' needs full-precision "
            f"weights; allowed: '{variant.model}' alone or with an adapter on top; for '{step}' give the original model"
        )
    return None


def _unmergeable(parent: Variant, names: Names) -> str | None:
    """Return why `merge` cannot follow `parent`, or None."""
    if parent.kind == "merge":
        return f"'{parent}' is already merged; one '+merge' is enough"
    if not parent.is_adapter:
        return f"'{parent}' has no adapter to merge; '+merge' follows a fine-tuning that leaves an adapter"
    if reason := names.finetunings[parent.steps[-1].name].unmergeable:
        return f"'{parent.steps[-1]}' {reason}; evaluate '{parent}' as it is"
    quantizations = [step for step in parent.effective_steps if step.kind == "quantization"]
    for step in quantizations:
        if names.quantizations[step.name].rescales:
            other = Variant(parent.model, tuple(kept for kept in parent.steps if kept != step))
            return (
                f"'{parent.steps[-1]}' was trained on '{step}', which scales the inputs of layers, so on the original "
                f"weights it would be another function; evaluate '{parent}' as it is, or make '{other}+{MERGE}'"
            )
    return None
