"""Whether a model's logits are numbers, and if not, the likely reason."""

import torch
from transformers import LogitsProcessor

from quantune.core.errors import QuantuneError


class NotFiniteError(QuantuneError):
    """A model's logits are not numbers."""


class Watch(LogitsProcessor):
    """An observer of the logits of `generate`; it changes none, and does not wait for the device."""

    def __init__(self):
        self.bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Note whether a logit is NaN, and return the logits as they are."""
        bad = scores.isnan().any()
        self.bad = bad if self.bad is None else self.bad | bad
        return scores

    def require(self, model: torch.nn.Module) -> None:
        """Raise NotFiniteError if a logit was NaN."""
        if self.bad is not None and bool(self.bad):
            raise NotFiniteError(reason(model))


def reason(model: torch.nn.Module) -> str:
    """Return the likely reason why a model's logits are not finite, and a remedy."""
    floating = [(name, value) for name, value in model.named_parameters() if value.is_floating_point()]
    broken = next((name for name, value in floating if not bool(value.isfinite().all())), None)
    if broken:
        return f"the weights '{broken}' hold values that are not finite"
    if any(value.dtype == torch.float16 for _, value in floating):
        return "the values in its layers exceed the range of float16; evaluate it with 'dtype: bfloat16' or float32"
    return "its logits are not finite"
