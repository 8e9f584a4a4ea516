"""The budget of AdaLoRA: after each optimizer step PEFT measures the importance of singular values, and prunes them."""

from typing import Any

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Of PEFT's `RankAllocator`: sensitivity of each weight, its moving average, and that of its variation."""


class Budget:
    """The schedule of the budget, and the averages that the next pruning depends on."""

    def __init__(self, model, steps: int, begin: int, end: int):
        """Take a `PeftModel` with AdaLoRA.

        Args:
            model: the model.
            steps: optimizer steps of the training.
            begin: steps before the budget begins to fall.
            end: steps with fixed ranks at the end.
        """
        self.tuner, self.config = model.base_model, model.peft_config["default"]
        self.config.total_step, self.config.tinit, self.config.tfinal = steps, begin, end

    def step(self, step: int) -> None:
        """Update averages and ranks after a step, counted from 0; gradients must still be there."""
        self.tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        averages = {name: dict(getattr(self.tuner.rankallocator, name)) for name in AVERAGES}
        return {"averages": averages, "pattern": self.config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        weights = dict(self.tuner.model.named_parameters())
        for name, values in state["averages"].items():
            placed = {key: value.to(weights[key].device) for key, value in values.items()}
            setattr(self.tuner.rankallocator, name, placed)
        self.config.rank_pattern = state["pattern"]
