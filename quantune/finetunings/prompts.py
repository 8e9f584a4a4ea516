"""Virtual tokens before the text, with PEFT: prompt tuning (Lester et al., 2021, arXiv:2104.08691), P-tuning (Liu et
al., 2021, arXiv:2103.10385) and prefix tuning (Li and Liang, 2021, arXiv:2101.00190). The model's weights stay.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantune.core.recipe import LONGEST
from quantune.data.batches import IGNORED
from quantune.finetunings import Finetuning
from quantune.models import architecture
from quantune.models.architecture import SPEECH, Architecture


class VirtualTokens(Finetuning):
    """Train what a language model reads before every text."""

    unmergeable: ClassVar[str | None] = "adds virtual tokens and changes no weights that could be merged"

    virtual_tokens: int = Field(default=20, gt=0, le=LONGEST)
    """Number of virtual tokens. They take positions: `length` and this must fit into the model's."""

    @property
    def taken_positions(self) -> int:
        """Positions that the virtual tokens take."""
        return self.virtual_tokens

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json cannot have virtual tokens, or None: speech models cannot."""
        if config.get("model_type") in SPEECH:
            return f".method: '{self.method}' is for text models; for speech take 'lora', 'ia3', 'full' or 'freeze'"
        return None

    def prepare(self, model, seed: int, original: Path | None = None):
        """Return a `PeftModel` with virtual tokens initialized from the seed; only they require gradients."""
        import torch
        from peft import get_peft_model

        torch.manual_seed(seed)
        made = get_peft_model(model, self._config(model.get_input_embeddings().weight.shape[1]))
        made.prompt_encoder.float()
        made.register_forward_pre_hook(_without_first_label, with_kwargs=True)
        return made

    def _config(self, width: int):
        """Return PEFT's configuration for a model with embeddings of this width."""
        raise NotImplementedError


class PromptTuning(VirtualTokens):
    """Train the embeddings of virtual tokens before the text."""

    method: Literal["prompt"]
    """Prompt tuning."""

    def trained(self, shape: Architecture) -> int:
        """Return the size of the embeddings."""
        return self.virtual_tokens * shape.head.inputs

    def _config(self, width: int):
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.virtual_tokens,
            token_dim=width,
            prompt_tuning_init="SAMPLE_VOCAB",
        )


class PTuning(VirtualTokens):
    """Train a small network that makes the embeddings of virtual tokens; only its output is saved."""

    method: Literal["p-tuning"]
    """P-tuning."""
    hidden_size: int = Field(default=128, gt=0, le=2**16)
    """Width of the network: three linear layers with ReLU between them."""

    def trained(self, shape: Architecture) -> int:
        """Return the parameters of the embeddings and of three linear layers."""
        width, hidden = shape.head.inputs, self.hidden_size
        network = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        return self.virtual_tokens * width + network

    def stored(self, shape: Architecture) -> int:
        """Return the size of the network's output."""
        return self.virtual_tokens * shape.head.inputs

    def _config(self, width: int):
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.virtual_tokens,
            token_dim=width,
            encoder_hidden_size=self.hidden_size,
        )


class PrefixTuning(VirtualTokens):
    """Train the keys and values of virtual tokens in every layer."""

    method: Literal["prefix"]
    """Prefix tuning, without the network of the paper."""

    @model_validator(mode="after")
    def _keeps_its_cache(self):
        if self.gradient_checkpointing:
            raise ValueError("'gradient_checkpointing' does not work with 'method: prefix', whose keys are in a cache")
        return self

    def unsuitable(self, config: dict[str, Any]) -> str | None:
        """Return why a model with this config.json cannot have a prefix, or None."""
        shape = architecture.known(config)
        if shape and shape.decoder.queries != shape.decoder.width:
            return ".method: PEFT makes no prefix for heads that are not hidden size / heads wide; take 'prompt'"
        return super().unsuitable(config)

    def trained(self, shape: Architecture) -> int:
        """Return the number of keys and values."""
        return self.virtual_tokens * 2 * shape.decoder.count * shape.decoder.keys

    def _config(self, width: int):
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.virtual_tokens)


def _without_first_label(module, args, kwargs):
    """Take the first label out of the loss: the last virtual token would predict it, which no other method does."""
    if kwargs.get("labels") is not None:
        kwargs["labels"] = kwargs["labels"].clone()
        kwargs["labels"][:, 0] = IGNORED
    return args, kwargs
