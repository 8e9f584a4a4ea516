"""LoRA: low-rank adapters beside frozen linear layers (Hu et al., 2021, arXiv:2106.09685), with PEFT. On a 4-bit
checkpoint this is QLoRA (Dettmers et al., 2023, arXiv:2305.14314).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.core.recipe import NonEmpty
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import Architecture


class LoRA(Finetuning):
    """Train a low-rank update of chosen linear layers."""

    neutral: ClassVar[frozenset[str]] = Finetuning.neutral | {"bias"}

    method: Literal["lora"]
    """Low-rank adaptation."""
    rank: int = Field(default=8, gt=0, le=2**16)
    """Rank of the update (`r`): parameters and capacity grow with it."""
    alpha: float = Field(default=16, gt=0, le=1e6)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Annotated[list[NonEmpty], Field(min_length=1)] | Literal["all-linear"] = ["q_proj", "v_proj"]
    """Names of the linear layers that get an adapter, or all-linear."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too: of all the model's layers, or of those with an adapter. They are saved with the
    adapter, and replace those of the base."""

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the target modules or the rank do not fit a model with this config.json, or None.

        An architecture whose shape is not known is checked by the job, before it trains.
        """
        try:
            shape = architecture.read(config)
        except (QuantuneError, ArithmeticError, TypeError, ValueError):
            return None
        linears = {linear.name: linear for linear in (*(linear for _, linear in shape.linears()), shape.head)}
        targets = list(linears) if self.target_modules == "all-linear" else self.target_modules
        names = [target.split(".")[-1] for target in targets]  # a target may name the modules around a layer too
        if problem := _unknown(names, list(linears)):
            return problem
        most = max(min(linears[name].inputs, linears[name].outputs) for name in names)
        too_high = f".rank: {self.rank} is more than the width of the layers; allowed: up to {most}"
        return too_high if self.rank > most else None

    def prepare(self, model, seed: int):
        """Return a `PeftModel` with adapters initialized from the seed; only they require gradients.

        Raises:
            QuantuneError: if a target is not a linear layer of the model.
        """
        if self.target_modules != "all-linear":
            linear = ("in_features", "nf")  # of linear layers, and of the transposed ones of GPT-2
            layers = [name for name, part in model.named_modules() if any(hasattr(part, key) for key in linear)]
            if problem := _unknown(self.target_modules, layers):
                raise QuantuneError(problem.removeprefix("."))

        import torch
        from peft import LoraConfig, get_peft_model

        from quantune.models import packed_linear

        if self.bias != "none":
            packed_linear.train_biases(model)
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type=None if model.config.is_encoder_decoder else "CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            bias=self.bias,
        )
        return get_peft_model(model, config)

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of two matrices beside each adapted layer, (rank, inputs) and (outputs, rank), and of
        the trained biases.
        """
        adapted = [(count, linear) for count, linear in shape.linears() if self.adapts(linear.name)]
        own = sum(count * linear.outputs for count, linear in adapted if linear.bias)
        biases = {"none": 0, "lora_only": own, "all": shape.biases()}[self.bias]
        return sum(count * self.rank * (linear.inputs + linear.outputs) for count, linear in adapted) + biases

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer with this name gets an adapter."""
        return self.target_modules == "all-linear" or layer in self.target_modules

    @property
    def mixed(self) -> bool:
        """Whether the model computes in mixed precision: in float16, or in 16 bits with trained biases."""
        return super().mixed or (self.precision != "float32" and self.bias != "none")

    @property
    def bottleneck(self) -> int:
        """The rank: values for each token between the two matrices."""
        return self.rank

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the adapter's input."""
        return self.dropout


def _unknown(targets: list[str], layers: list[str]) -> str | None:
    """Return the problem (".key: why") with the first target that is none of the linear layers, or None."""
    for target in targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            names = sorted({layer.split(".")[-1] for layer in layers})
            hint = f"allowed: all-linear, or a list of {listed(names)}{nearest(target, names)}"
            return f".target_modules: '{target}' is not a linear layer of the model; {hint}"
    return None
