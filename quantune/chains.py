"""The grammar of variants: a variant is a chain of steps applied to a model, and its name is its path.

opt-125m                              the model as downloaded
opt-125m+nf4+lora-quotes              QLoRA: quantize, then train an adapter
opt-125m+lora-quotes@3+merge+gptq-w4  fine-tune with seed 3, fold the adapter in, then quantize
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import bracex

from quantune.errors import ConfigError, listed, nearest
from quantune.recipe import NAME, SEED

MERGE = "merge"
STEP = re.compile(rf"(?P<name>{NAME})(@(?P<seed>{SEED}))?")


class Names(Protocol):
    """What the grammar needs to know of a configuration."""

    models: dict
    quantizations: dict
    finetunings: dict


@dataclass(frozen=True)
class Step:
    """One step of a chain: `lora-quotes@3` is the step `lora-quotes` with seed 3."""

    name: str
    seed: int | None = None

    def __str__(self) -> str:
        return self.name if self.seed is None else f"{self.name}@{self.seed}"


@dataclass(frozen=True)
class Variant:
    """A model and the steps applied to it, each with its kind: quantization, finetuning or merge."""

    model: str
    steps: tuple[Step, ...] = ()
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "+".join([self.model, *map(str, self.steps)])

    @property
    def kind(self) -> str:
        """The kind of the last step, or "model"."""
        return self.kinds[-1] if self.kinds else "model"

    @property
    def parent(self) -> "Variant | None":
        """The variant without its last step; None for a model."""
        return Variant(self.model, self.steps[:-1], self.kinds[:-1]) if self.steps else None

    @property
    def ancestors(self) -> list["Variant"]:
        """The variants this one was made from, the model first."""
        return [*self.parent.ancestors, self.parent] if self.parent else []

    @cached_property
    def quantized(self) -> bool:
        """Whether the weights are quantized; merging an adapter brings full precision back."""
        last = {kind: index for index, kind in enumerate(self.kinds)}
        return last.get("quantization", -1) > last.get("merge", -1)

    @property
    def is_adapter(self) -> bool:
        """Whether what lies on disk is an adapter, to be loaded on top of its parent."""
        return self.kind == "finetuning"

    def loads(self) -> list["Variant"]:
        """Return what must be on disk to load this variant: the base and, if it is an adapter, the adapter after it."""
        return [self.parent, self] if self.is_adapter else [self]

    def merge_base(self) -> "Variant":
        """Return the nearest unquantized ancestor that is a whole model: what `merge` adds the adapter to."""
        return next(item for item in reversed(self.ancestors) if not item.quantized and not item.is_adapter)


def expand(patterns: list[str]) -> list[str]:
    """Expand braces as a shell would (`opt+{rtn-w4,nf4}`, `lora@{0..4}`) and drop repetitions, keeping the order."""
    try:
        return list(dict.fromkeys(name for pattern in patterns for name in bracex.expand(pattern)))
    except bracex.ExpansionLimitException as error:
        raise ConfigError(f"the braces stand for too many variants ({error}); write fewer") from None


def parse(text: str, names: Names) -> Variant:
    """Read a variant's name and check that its chain can work.

    Raises:
        ConfigError: naming the step, what is wrong with it, and what to type instead.
    """
    head, *tail = text.split("+")
    if head not in names.models:
        raise ConfigError(
            f"variant '{text}': '{head}' is not a model; models: {listed(names.models)}{nearest(head, names.models)}"
        )
    variant = Variant(head)
    for part in tail:
        step, kind = _step(part, text, names)
        if problem := _problem(variant, step, kind, names):
            raise ConfigError(f"variant '{text}': {problem}")
        variant = Variant(variant.model, (*variant.steps, step), (*variant.kinds, kind))
    return variant


def _step(part: str, text: str, names: Names) -> tuple[Step, str]:
    match = STEP.fullmatch(part)
    known = {**dict.fromkeys(names.quantizations, "quantization"), **dict.fromkeys(names.finetunings, "finetuning")}
    known[MERGE] = "merge"
    if not match:
        raise ConfigError(
            f"variant '{text}': '{part}' is not a step; a step is a name, or name@seed, such as 'lora@3'"
            f"{nearest(part, known)}"
        )
    step = Step(match["name"], int(match["seed"]) if match["seed"] else None)
    if step.name in names.models:
        raise ConfigError(f"variant '{text}': '{step.name}' is a model; a model can only begin a chain")
    if step.name not in known:
        raise ConfigError(
            f"variant '{text}': '{step.name}' is not a step; steps: {listed(known)}{nearest(step.name, known)}"
        )
    return step, known[step.name]


def _problem(parent: Variant, step: Step, kind: str, names: Names) -> str | None:
    """Return why `step` cannot follow `parent`, or None."""
    if step.seed is not None:
        entry = names.quantizations.get(step.name) or names.finetunings.get(step.name)
        if entry is None or not entry.seeded:
            return f"'{step}' gives a seed to a step that uses none; write '{step.name}'"
    if kind == "merge":
        if parent.kind == "merge":
            return f"'{parent}' is already merged; one '+merge' is enough"
        if not parent.is_adapter:
            return f"there is nothing to merge in '{parent}'; '+merge' follows a fine-tuning"
    elif kind == "quantization":
        if parent.is_adapter:
            return f"'{step}' cannot quantize the adapter '{parent}'; merge it first: '{parent}+merge+{step}'"
        if parent.quantized:
            return f"'{parent}' is already quantized; '{step}' needs full precision: '{parent.ancestors[-1]}+{step}'"
    elif parent.is_adapter:
        return f"'{step}' cannot train on top of the adapter '{parent}'; merge it first: '{parent}+merge+{step}'"
    return None
