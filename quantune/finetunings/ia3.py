"""(IA)³: learned factors of keys, values and feed-forward activations (Liu et al., 2022, arXiv:2205.05638)."""

from pathlib import Path
from typing import Any, Literal

from quantune.core.errors import QuantuneError, listed
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import Architecture

SCALED = ("k_proj", "v_proj")
"""Layers whose outputs are scaled."""
FED = ("fc2", "down_proj")
"""Layers whose inputs, the feed-forward activations, are scaled."""


class IA3(Finetuning):
    """Train a factor for each key, each value and each feed-forward activation of every layer."""

    method: Literal["ia3"]
    """(IA)³, with PEFT."""

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json has none of the layers, or None."""
        try:
            names = {linear.name for _, linear in architecture.read(config).linears()}
        except (QuantuneError, ArithmeticError, TypeError, ValueError):
            return None
        return None if names & {*SCALED, *FED} else f".method: {_unknown()}"

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with factors of 1; only they require gradients.

        Raises:
            QuantuneError: if the model has none of the layers.
        """
        from peft import IA3Config, get_peft_model

        names = {name.split(".")[-1] for name, _ in model.named_modules()}
        fed = [name for name in FED if name in names]
        if not (targets := [*(name for name in SCALED if name in names), *fed]):
            raise QuantuneError(f"method: {_unknown()}")
        task = None if model.config.is_encoder_decoder else "CAUSAL_LM"
        return get_peft_model(model, IA3Config(task_type=task, target_modules=targets, feedforward_modules=fed))

    def trained(self, shape: Architecture) -> int:
        """Return the number of factors."""
        sizes = {**dict.fromkeys(SCALED, "outputs"), **dict.fromkeys(FED, "inputs")}
        return sum(
            count * getattr(linear, sizes[linear.name]) for count, linear in shape.linears() if linear.name in sizes
        )

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer keeps its output or its input for the gradient of factors."""
        return layer in (*SCALED, *FED)


def _unknown() -> str:
    return f"'ia3' scales {listed([*SCALED, *FED])}, and the model has none of these layers; take 'lora'"
