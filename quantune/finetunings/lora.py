"""LoRA: low-rank adapters beside frozen linear layers (Hu et al., 2021, arXiv:2106.09685), with PEFT. On a 4-bit
checkpoint this is QLoRA (Dettmers et al., 2023, arXiv:2305.14314).
"""

from typing import Literal

from pydantic import Field

from quantune.finetunings import Finetuning
from quantune.models.architecture import Architecture


class LoRA(Finetuning):
    """Train a low-rank update of chosen linear layers."""

    method: Literal["lora"]
    """Low-rank adaptation."""
    rank: int = Field(default=8, gt=0)
    """Rank of the update (`r`): parameters and capacity grow with it."""
    alpha: float = Field(default=16, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | Literal["all-linear"] = ["q_proj", "v_proj"]
    """Names of the linear layers that get an adapter, or all-linear."""

    def prepare(self, model, seed: int):
        """Return a `PeftModel` with adapters initialized from the seed; only they require gradients."""
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(
            task_type=None if model.config.is_encoder_decoder else "CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
        )
        return get_peft_model(model, config)

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of two matrices beside each adapted layer: (rank, inputs) and (outputs, rank)."""
        sizes = (
            (count, linear.inputs + linear.outputs) for count, linear in shape.linears() if self.adapts(linear.name)
        )
        return sum(count * self.rank * size for count, size in sizes)

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer with this name gets an adapter."""
        return self.target_modules == "all-linear" or layer in self.target_modules

    @property
    def bottleneck(self) -> int:
        """The rank: values for each token between the two matrices."""
        return self.rank

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the adapter's input."""
        return self.dropout
