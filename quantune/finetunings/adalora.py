"""AdaLoRA: the ranks of updates follow their importance, within a budget (Zhang et al., 2023, arXiv:2303.10512)."""

from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.errors import QuantuneError
from quantune.finetunings.lora import LowRank
from quantune.models.architecture import Architecture


class AdaLoRA(LowRank):
    """Train low-rank updates in the form of a singular value decomposition; the least important values are pruned."""

    rank_key: ClassVar[str] = "initial_rank"

    method: Literal["adalora"]
    """AdaLoRA, with PEFT."""
    rank: int = Field(default=8, gt=0, le=2**16)
    """Mean rank of the updates at the end."""
    initial_rank: int = Field(default=12, gt=0, le=2**16)
    """Rank of every update at the beginning: 1.5 times the final one in the paper."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps before the budget begins to fall."""
    final_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the steps at the end with fixed ranks."""
    interval: int = Field(default=1, gt=0, le=1_000_000)
    """Steps between two prunings while the budget falls."""
    orthogonality: float = Field(default=0.1, ge=0, le=1e6)
    """Weight of the penalty that keeps both matrices orthogonal; the validation loss has no penalty."""

    @model_validator(mode="after")
    def _budget_falls(self):
        if self.rank > self.initial_rank:
            raise ValueError(f"'rank' {self.rank} is more than 'initial_rank' {self.initial_rank}; give at most that")
        if self.warmup_share + self.final_share >= 1:
            raise ValueError("'warmup_share' and 'final_share' add up to 1 or more; nothing is left for the pruning")
        return self

    @property
    def bottleneck(self) -> int:
        """The rank that an update has at most."""
        return self.initial_rank

    @property
    def mixed(self) -> bool:
        """Whether the model computes in mixed precision: whenever it computes in 16 bits."""
        return self.precision != "float32"

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with adapters initialized from the seed; only they require gradients.

        Raises:
            QuantuneError: if a target is not a linear layer of the model.
        """
        self.require_targets(model)
        import torch
        from peft import AdaLoraConfig, get_peft_model

        from quantune.models import adapters
        from quantune.models.packed_linear import PackedLinear

        torch.manual_seed(seed)
        config = AdaLoraConfig(
            task_type=adapters.task(model),
            target_r=self.rank,
            init_r=self.initial_rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            deltaT=self.interval,
            orth_reg_weight=self.orthogonality,
            total_step=2**31,  # until `hook` knows it
        )
        model = get_peft_model(model, config)
        for layer in model.modules():
            if isinstance(layer, PackedLinear):  # PEFT adds the update in place, which autograd forbids for its output
                layer.register_forward_hook(lambda *given: given[-1].clone())
        model.base_model.register_forward_pre_hook(lambda module, _: _penalize(config, module, self.orthogonality))
        return model

    def hook(self, model, steps: int):
        """Return the budget of these steps; raises QuantuneError if they are too few."""
        from quantune.finetunings.training.budget import Budget

        begin, end = int(self.warmup_share * steps), max(1, ceil(self.final_share * steps))
        if begin >= steps - end:
            raise QuantuneError(f"'adalora' cannot prune within {steps} steps; give more 'steps'")
        return Budget(model, steps, begin, end)

    def save(self, model, parent: Path, folder: Path) -> None:
        """Save the adapter; pruned values are stored as zeros.

        PEFT could leave them out (`rank_pattern`), but then it loads the others in the dtype of the base, rounded.
        """
        config = model.peft_config["default"]
        pattern, config.rank_pattern, config.orth_reg_weight = config.rank_pattern, None, self.orthogonality
        super().save(model, parent, folder)
        config.rank_pattern = pattern

    def facts(self, model) -> dict[str, Any]:
        """Return the rank of each layer: the singular values that are not 0."""
        values = {name: value for name, value in model.get_base_model().named_parameters() if ".lora_E." in name}
        return {"ranks": {name.split(".lora_E.")[0]: int((value != 0).sum()) for name, value in values.items()}}

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of both matrices beside each adapted layer, and of the values between them."""
        adapted = [(count, linear) for count, linear in shape.linears() if self.adapts(linear.name)]
        return self.initial_rank * sum(count * (linear.inputs + linear.outputs + 1) for count, linear in adapted)


def _penalize(config, module, weight: float) -> None:
    config.orth_reg_weight = weight if module.training else 0.0
