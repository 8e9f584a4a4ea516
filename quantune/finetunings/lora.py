"""LoRA: low-rank adapters beside frozen linear layers (Hu et al., 2021, arXiv:2106.09685), with PEFT. On a 4-bit
checkpoint this is QLoRA (Dettmers et al., 2023, arXiv:2305.14314).

Variants are keys: rank-stabilized scaling (Kalajdzievski, 2023, arXiv:2312.03732), DoRA (Liu et al., 2024,
arXiv:2402.09353), the initializations of PiSSA (Meng et al., 2024, arXiv:2404.02948) and LoftQ (Li et al., 2023,
arXiv:2310.08659), and a higher learning rate of B (LoRA+, Hayou et al., 2024, arXiv:2402.12354).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.core.recipe import NonEmpty
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import Architecture


class LowRank(Finetuning):
    """Train low-rank updates beside chosen linear layers."""

    rank_key: ClassVar[str] = "rank"
    """Key of the largest rank."""

    alpha: float = Field(default=16, gt=0, le=1e6)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Annotated[list[NonEmpty], Field(min_length=1)] | Literal["all-linear"] = ["q_proj", "v_proj"]
    """Names of the linear layers that get an adapter, or all-linear."""

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why the target modules or the rank do not fit a model with this config.json, or None.

        An architecture whose shape is not known is checked by the job, before it trains.
        """
        if (shape := architecture.known(config)) is None:
            return None
        linears = {linear.name: linear for linear in (*(linear for _, linear in shape.linears()), shape.head)}
        targets = list(linears) if self.target_modules == "all-linear" else self.target_modules
        names = [target.split(".")[-1] for target in targets]  # a target may name the modules around a layer too
        if problem := _unknown(names, list(linears)):
            return problem
        most = max(min(linears[name].inputs, linears[name].outputs) for name in names)
        too_high = f".{self.rank_key}: {self.bottleneck} is more than the width of the layers; allowed: up to {most}"
        return too_high if self.bottleneck > most else None

    def require_targets(self, model) -> None:
        """Raise QuantuneError if a target is not a linear layer of the model."""
        if self.target_modules != "all-linear":
            linear = ("in_features", "nf")  # of linear layers, and of the transposed ones of GPT-2
            layers = [name for name, part in model.named_modules() if any(hasattr(part, key) for key in linear)]
            if problem := _unknown(self.target_modules, layers):
                raise QuantuneError(problem.removeprefix("."))

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer with this name gets an adapter."""
        return self.target_modules == "all-linear" or layer in self.target_modules

    @property
    def adapter_dropout(self) -> float:
        """Dropout on the adapter's input."""
        return self.dropout


class LoRA(LowRank):
    """Train a low-rank update of chosen linear layers."""

    neutral: ClassVar[frozenset[str]] = Finetuning.neutral | {
        *("bias", "rank_stabilized", "dora", "initialization", "learning_rate_ratio")
    }

    method: Literal["lora"]
    """Low-rank adaptation."""
    rank: int = Field(default=8, gt=0, le=2**16)
    """Rank of the update (`r`): parameters and capacity grow with it."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too: of all the model's layers, or of those with an adapter. They are saved with the
    adapter, and replace those of the base."""

    rank_stabilized: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rsLoRA), so that high ranks learn as fast as low ones."""
    dora: bool = False
    """DoRA: also train the length of each row of the updated matrix."""
    initialization: Literal["default", "pissa", "loftq"] = "default"
    """Where the adapter begins. default: at no change. pissa: with the largest singular values of the weights, which
    are taken out of the base while it trains; the saved adapter has twice the rank, and opens on the unchanged base.
    loftq: with the best approximation of the error of the base's quantization, one step of LoftQ; the base stays."""
    learning_rate_ratio: float = Field(default=1.0, ge=1, le=1e4)
    """LoRA+: the learning rate of the matrix B is this times that of A, `learning_rate`; the paper advises 16."""

    @model_validator(mode="after")
    def _one_beginning(self):
        if self.dora and self.initialization != "default":
            raise ValueError(f"'dora: true' needs 'initialization: default', and found '{self.initialization}'")
        return self

    @property
    def trains_on_quantized(self) -> bool:
        """Whether the base may be quantized: PiSSA changes its weights."""
        return self.initialization != "pissa"

    @property
    def reads_original(self) -> bool:
        """Whether the adapter begins with the error of the base's quantization."""
        return self.initialization == "loftq"

    @property
    def reads_dense(self) -> bool:
        """Whether each step reads the dense weights of the base: DoRA needs their lengths."""
        return self.dora

    @property
    def unmergeable(self) -> str | None:
        """Why the adapter cannot be merged into the original weights."""
        reason = "also holds the error of the quantization, which the original weights do not have"
        return reason if self.reads_original else None

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with adapters initialized from the seed; only they require gradients.

        Raises:
            QuantuneError: if a target is not a linear layer of the model.
        """
        self.require_targets(model)
        import torch
        from peft import LoraConfig, get_peft_model

        from quantune.finetunings.training import loftq
        from quantune.models import adapters, packed_linear

        if self.bias != "none":
            packed_linear.train_biases(model)
        torch.manual_seed(seed)
        config = LoraConfig(
            task_type=adapters.task(model),
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            bias=self.bias,
            use_rslora=self.rank_stabilized,
            use_dora=self.dora,
            init_lora_weights="pissa" if self.initialization == "pissa" else True,
        )
        model = get_peft_model(model, config)
        if self.initialization == "pissa":
            adapters.keep_initial(model)
        elif self.initialization == "loftq":
            loftq.initialize(model, original)
        return model

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of two matrices beside each adapted layer, (rank, inputs) and (outputs, rank), of the
        lengths of rows (DoRA), and of the trained biases.
        """
        adapted = [(count, linear) for count, linear in shape.linears() if self.adapts(linear.name)]
        own = sum(count * linear.outputs for count, linear in adapted if linear.bias)
        biases = {"none": 0, "lora_only": own, "all": shape.biases()}[self.bias]
        lengths = sum(count * linear.outputs for count, linear in adapted) if self.dora else 0
        return self.rank * sum(count * (linear.inputs + linear.outputs) for count, linear in adapted) + lengths + biases

    def stored(self, shape: Architecture) -> int:
        """Return the parameters of the saved adapter: of PiSSA's two more matrices of the same rank."""
        twice = self.model_copy(update={"rank": 2 * self.rank})
        return (twice if self.initialization == "pissa" else self).trained(shape)

    def rate(self, name: str) -> float:
        """Return the factor of the learning rate: that of B."""
        return self.learning_rate_ratio if ".lora_B." in name else 1.0

    @property
    def mixed(self) -> bool:
        """Whether the model computes in mixed precision: in float16, or in 16 bits with trained biases."""
        return super().mixed or (self.precision != "float32" and self.bias != "none")

    @property
    def bottleneck(self) -> int:
        """The rank: values for each token between the two matrices."""
        return self.rank


def _unknown(targets: list[str], layers: list[str]) -> str | None:
    """Return the problem (".key: why") with the first target that is none of the linear layers, or None."""
    for target in targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            names = sorted({layer.split(".")[-1] for layer in layers})
            hint = f"allowed: all-linear, or a list of {listed(names)}{nearest(target, names)}"
            return f".target_modules: '{target}' is not a linear layer of the model; {hint}"
    return None
