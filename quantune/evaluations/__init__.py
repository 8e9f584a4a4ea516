"""Evaluations: every module in this folder is one kind, and is loaded automatically.

A module defines an `Evaluation` recipe. Its measurements are kept raw, item by item. Every number shown is derived from
the raw items by `quantune.evaluations.metrics.rates`, so that a change of protocol needs no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from quantune.core.recipe import Recipe, subclasses
from quantune.core.workload import Inference

if TYPE_CHECKING:
    from quantune.evaluations.metrics.metric import Measurement
    from quantune.models.loading import LoadedVariant


class Evaluation(Recipe):
    """How a variant is evaluated. Subclasses set the literal `kind` and implement `evaluate`."""

    track: ClassVar[Literal["text", "speech"]] = "text"

    def evaluate(self, variant: LoadedVariant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Evaluate a variant; write the raw items into `folder`; return the result.

        Args:
            variant: gives the model in the recipe's dtype; other evaluations use the same model.
            data: the prepared dataset, if the kind reads one.
            folder: an empty folder.
        """
        raise NotImplementedError

    def read(self, folder: Path, model: Path) -> Measurement | None:
        """Return the raw items that `evaluate` wrote, with their metric; None for a kind without numbers.

        Args:
            folder: the evaluation's folder.
            model: the checkpoint that the variant's chain begins with.

        Raises:
            OSError: if a file is missing.
        """
        return None

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload of `evaluate` for a model with this config.json, for estimates of memory."""
        raise NotImplementedError


def of_kind(recipe: dict[str, Any]) -> Evaluation:
    """Return the typed recipe of a section of the configuration."""
    kind = next(item for item in kinds() if item.model_fields["kind"].annotation.__args__[0] == recipe["kind"])
    return kind.model_validate(recipe)


def kinds() -> list[type[Evaluation]]:
    """Return every kind of evaluation."""
    return subclasses(__name__, Evaluation, "kind")
