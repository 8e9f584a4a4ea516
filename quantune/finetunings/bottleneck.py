"""Bottleneck adapters: small networks behind the parts of each layer, in the placements of Houlsby et al. (2019,
arXiv:1902.00751) and Pfeiffer et al. (2020, arXiv:2005.00247).
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.errors import QuantuneError, listed
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import ATTENTION_END, FEED_FORWARD_END, Architecture


class Bottleneck(Finetuning):
    """Train small networks behind the parts of each layer."""

    unmergeable: ClassVar[str | None] = "adds layers that are not linear and cannot be merged"

    method: Literal["bottleneck"]
    """Bottleneck adapters."""
    size: int = Field(default=64, gt=0, le=2**16)
    """Values between the two linear layers of an adapter."""
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    """houlsby: behind attention and feed-forward part; pfeiffer: behind the feed-forward part only."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the layers that may have an adapter behind them."""
        return FEED_FORWARD_END if self.placement == "pfeiffer" else (*ATTENTION_END, *FEED_FORWARD_END)

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json has none of the layers, or None."""
        shape = architecture.known(config)
        fits = shape is None or any(linear.name in self.targets for _, linear in shape.linears())
        return None if fits else f".placement: {self._unknown()}"

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with adapters initialized from the seed; only they require gradients.

        Raises:
            QuantuneError: if the model has none of the layers.
        """
        names = {name.split(".")[-1] for name, _ in model.named_modules()}
        if not names & {*self.targets}:
            raise QuantuneError(f"placement: {self._unknown()}")
        import torch
        from peft import get_peft_model

        from quantune.models import adapters
        from quantune.models.bottleneck import BottleneckConfig

        torch.manual_seed(seed)
        present = [name for name in self.targets if name in names]
        keys = {"task_type": adapters.task(model), "target_modules": present, "size": self.size}
        return get_peft_model(model, BottleneckConfig(**keys))

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of two linear layers with biases behind each target."""
        widths = [(count, linear.outputs) for count, linear in shape.linears() if linear.name in self.targets]
        return sum(count * (2 * self.size * width + self.size + width) for count, width in widths)

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer has an adapter behind it."""
        return layer in self.targets

    @property
    def bottleneck(self) -> int:
        """Values for each token between the two layers of an adapter."""
        return self.size

    def _unknown(self) -> str:
        return f"the model has none of the layers {listed(self.targets)}; take 'lora'"
