"""(IA)³: learned factors of keys, values and feed-forward activations (Liu et al., 2022, arXiv:2205.05638)."""

from pathlib import Path
from typing import Any, Literal

from quantune.core.errors import QuantuneError, listed
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import FEED_FORWARD_END, Architecture

SCALED = ("k_proj", "v_proj")
"""Layers whose outputs are scaled; of `FEED_FORWARD_END` the inputs are, the feed-forward activations."""


class IA3(Finetuning):
    """Train a factor for each key, each value and each feed-forward activation of every layer."""

    method: Literal["ia3"]
    """(IA)³, with PEFT."""

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json has none of the layers, or None."""
        shape = architecture.known(config)
        fits = shape is None or any(linear.name in (*SCALED, *FEED_FORWARD_END) for _, linear in shape.linears())
        return None if fits else f".method: {_unknown()}"

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with factors of 1; only they require gradients.

        Raises:
            QuantuneError: if the model has none of the layers.
        """
        from peft import IA3Config, get_peft_model

        from quantune.models import adapters

        names = {name.split(".")[-1] for name, _ in model.named_modules()}
        fed = [name for name in FEED_FORWARD_END if name in names]
        if not (targets := [*(name for name in SCALED if name in names), *fed]):
            raise QuantuneError(f"method: {_unknown()}")
        keys = {"task_type": adapters.task(model), "target_modules": targets, "feedforward_modules": fed}
        return get_peft_model(model, IA3Config(**keys))

    def trained(self, shape: Architecture) -> int:
        """Return the number of factors."""
        sizes = {**dict.fromkeys(SCALED, "outputs"), **dict.fromkeys(FEED_FORWARD_END, "inputs")}
        return sum(
            count * getattr(linear, sizes[linear.name]) for count, linear in shape.linears() if linear.name in sizes
        )

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer keeps its output or its input for the gradient of factors."""
        return layer in (*SCALED, *FEED_FORWARD_END)


def _unknown() -> str:
    return f"'ia3' scales {listed([*SCALED, *FEED_FORWARD_END])}, and the model has none of these layers; take 'lora'"
