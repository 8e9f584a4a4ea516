"""Formats of exports: every module in this folder is loaded automatically.

An export is a folder that other programs open: the weights of a variant in a format of theirs, with a model card. A
module defines one or more `Export` recipes. To add a format, add a module and its test.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from quantune.core.recipe import Recipe, subclasses
from quantune.core.workload import Inference


@dataclass(frozen=True)
class Exported:
    """A whole model that is to be exported, as planning knows it."""

    config: dict[str, Any]
    """config.json of the model that its chain begins with; the steps of a chain keep the shape."""
    quantization: str | None = None
    """Name of the quantization in effect; None at full precision."""
    unservable: str | None = None
    """Why vLLM cannot load its quantized layers (`Quantization.unservable`); None if it can, or at full precision."""
    only_here: str | None = None
    """Why other programs read another model from its files (`Quantization.only_here`); None: they read the same."""


class Export(Recipe):
    """A format. Subclasses set the literal `format` and implement the functions below."""

    relation: ClassVar[Literal["finetune", "quantized"] | None] = None
    """How the file of this format relates to the variant, in the words of the hub; None: it has the same weights."""

    library: ClassVar[str | None] = None
    """Library that opens it, in the words of the hub."""
    tags: ClassVar[tuple[str, ...]] = ()
    """Tags of its model card."""
    bits: ClassVar[float | None] = None
    """Bits per weight; None: those of the checkpoint."""

    def unsuitable(self, exported: Exported) -> str | None:
        """Return why a model cannot be exported in this format, with the remedy ("it is ...; export ..."), or None."""
        return None

    def write(self, checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
        """Write the checkpoint of a whole model into the empty `folder`, and check it; return facts.

        `name` is the variant's; names of files are made from it.
        """
        raise NotImplementedError

    def usage(self, name: str, speech: bool) -> str:
        """Return the section of the model card that says how the export is opened, in Markdown."""
        raise NotImplementedError

    def workload(self, dtype: str) -> Inference | None:
        """Return the workload of the check of a model with this stored dtype; None: tensors are read one by one."""
        return None


def formats() -> list[type[Export]]:
    """Return every format."""
    return subclasses(__name__, Export, "format")


def by_name() -> dict[str, Export]:
    """Return name -> format; a format has no settings but its name."""
    names = {kind.model_fields["format"].annotation.__args__[0]: kind for kind in formats()}
    return {name: kind(format=name) for name, kind in sorted(names.items())}
