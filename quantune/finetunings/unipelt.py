"""UniPELT: LoRA, a prefix and bottleneck adapters in one model, each with a gate that is learned (Mao et al., 2022,
arXiv:2110.07577). `quantune.models.unipelt` says what differs from the paper.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.errors import QuantuneError, listed
from quantune.core.recipe import LONGEST
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import ATTENTION_END, FEED_FORWARD_END, SPEECH, Architecture

LORA = ("q_proj", "v_proj")
"""Layers that have LoRA; one of `ATTENTION_END` has the prefix, one of `FEED_FORWARD_END` the adapter."""


class UniPELT(Finetuning):
    """Train LoRA, a prefix and bottleneck adapters with gates."""

    unmergeable: ClassVar[str | None] = "has gates that depend on the text and cannot be merged"

    method: Literal["unipelt"]
    """LoRA, a prefix and bottleneck adapters, with gates."""
    rank: int = Field(default=8, gt=0, le=2**16)
    """Rank of LoRA beside q_proj and v_proj."""
    alpha: float = Field(default=16, gt=0, le=1e6)
    """LoRA's update is scaled by alpha / rank."""
    virtual_tokens: int = Field(default=10, gt=0, le=LONGEST)
    """Number of keys and values of the prefix in every layer. They take no positions."""
    size: int = Field(default=48, gt=0, le=2**16)
    """Values between the two linear layers of an adapter."""

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json cannot have the three parts, or None: speech models cannot."""
        if config.get("model_type") in SPEECH:
            return ".method: 'unipelt' is for text models; for speech take 'lora', 'bottleneck', 'full' or 'freeze'"
        shape = architecture.known(config)
        fits = shape is None or _fits({linear.name for _, linear in shape.linears()})
        return None if fits else f".method: {_unknown()}"

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with parts initialized from the seed; only they require gradients.

        Raises:
            QuantuneError: if the model lacks a layer that a part needs.
        """
        names = {name.split(".")[-1] for name, _ in model.named_modules()}
        if not _fits(names):
            raise QuantuneError(f"method: {_unknown()}")
        import torch
        from peft import get_peft_model

        from quantune.models import adapters
        from quantune.models.unipelt import UniPELTConfig

        torch.manual_seed(seed)
        config = UniPELTConfig(
            task_type=adapters.task(model),
            target_modules=[name for name in (*LORA, *ATTENTION_END, *FEED_FORWARD_END) if name in names],
            rank=self.rank,
            alpha=self.alpha,
            virtual_tokens=self.virtual_tokens,
            size=self.size,
        )
        return get_peft_model(model, config)

    def hook(self, model, steps: int):
        """Return the sums of the gates, which are part of the saved state."""
        return Gates(model)

    def facts(self, model) -> dict[str, Any]:
        """Return the mean of each gate over the tokens of the training, those of padding included."""
        return {"gates": Gates(model).means()}

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of the three parts and of their gates."""
        total = 0
        for count, linear in shape.linears():
            if linear.name in LORA:
                total += count * (self.rank * (linear.inputs + linear.outputs) + linear.inputs + 1)
            elif linear.name in ATTENTION_END:
                total += count * (2 * self.virtual_tokens * linear.inputs + linear.outputs + 1)
            elif linear.name in FEED_FORWARD_END:
                total += count * (2 * self.size * linear.outputs + self.size + 2 * linear.outputs + 1)
        return total

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer has a part beside it."""
        return layer in (*LORA, *ATTENTION_END, *FEED_FORWARD_END)

    @property
    def bottleneck(self) -> int:
        """Values for each token between two matrices of the largest part."""
        return max(self.rank, self.size, self.virtual_tokens)


class Gates:
    """Sums and numbers of the gates that a model has computed in training."""

    def __init__(self, model):
        """Take a `PeftModel` of UniPELT."""
        parts = model.get_base_model().named_modules()
        self.sums = {name: part.gates for name, part in parts if "gates" in getattr(part, "_buffers", {})}

    def step(self, number: int) -> None:
        """Do nothing: the layers count in each forward pass."""

    def means(self) -> dict[str, float]:
        """Return the mean of each gate, by the name of its linear layer."""
        return {name: float(value[0] / value[1]) for name, value in self.sums.items() if value[1]}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {name: value.clone() for name, value in self.sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these sums."""
        for name, value in state.items():
            self.sums[name].copy_(value)


def _fits(names: set[str]) -> bool:
    """Return whether layers with these names can have all three parts."""
    return {*LORA} <= names and bool(names & {*ATTENTION_END}) and bool(names & {*FEED_FORWARD_END})


def _unknown() -> str:
    """Return what the model lacks."""
    needs = f"{listed(LORA)}, one of {listed(ATTENTION_END)} and one of {listed(FEED_FORWARD_END)}"
    return f"the model has not all layers that 'unipelt' needs ({needs}); take 'lora' or 'bottleneck'"
