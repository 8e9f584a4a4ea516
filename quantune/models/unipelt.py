"""UniPELT as a method of PEFT, which has none: after `import quantune.models.unipelt` its own
`PeftModel.from_pretrained(model, folder)` opens it.

Three parts of each layer have a gate (Mao et al., 2022, arXiv:2110.07577), the sigmoid of a linear function:

- LoRA: y becomes y + g(x)·alpha/rank·B(A(x)) for the queries and the values, x the input of q_proj or v_proj.
- prefix: before the attention's last linear layer a becomes a + g(x)·softmax(q·Kᵀ/√d)·V for each head, with trained K
  and V; q is the output of q_proj, x its input.
- adapter: behind the feed-forward part y becomes y + g(y)·up(ReLU(down(y))).

This differs from the paper:

- The prefix has a softmax of its own, in place of one over prefix and text, and no positions. So it needs no cache and
  no mask, and a gate of 0 removes it; in the paper its keys and values are scaled, and a gate of 0 leaves it a weight.
  K and V have a row for each query head, they are not the output of a network, and V is zero at the beginning.
- Each token has its own gate, where the paper averages over the sequence: in a model that writes from left to right,
  the mean would tell a token of later ones.
- A gate reads the input of the linear layer that its part is beside; in the paper LoRA and prefix share the layer's
  input, which no norm has scaled. The adapter's gate reads what the adapter reads.
- Every gate begins at 1/2, so that its mean shows what was learned, and not how it was initialized.
"""

from dataclasses import dataclass, field
from math import sqrt

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import einsum
from torch.nn.functional import softmax

from quantune.models import adapters
from quantune.models.architecture import ATTENTION_END

NAME = "unipelt"
LORA = ("q_proj", "v_proj")
"""Layers that have LoRA; those of `ATTENTION_END` have a prefix, others an adapter."""


@dataclass
class UniPELTConfig(PeftConfig):
    """The layers that have a part beside them, and the sizes of the parts."""

    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    rank: int = field(default=8)
    alpha: float = field(default=16)
    virtual_tokens: int = field(default=10)
    size: int = field(default=48)

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())


class GatedLayer(torch.nn.Module, BaseTunerLayer):
    """A linear layer with a gated part beside it; each part has two matrices and a gate."""

    adapter_layer_names = ("unipelt_first", "unipelt_second", "unipelt_gate")

    def __init__(self, base_layer: torch.nn.Module, adapter_name: str, config: UniPELTConfig):
        """Take any linear layer, quantized or not."""
        super().__init__()
        self.base_layer = base_layer
        self.unipelt_first, self.unipelt_second = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        self.unipelt_gate, self.scale = torch.nn.ModuleDict(), config.alpha / config.rank
        self.register_buffer("gates", torch.zeros(2, dtype=torch.float64), persistent=False)
        self._active_adapter, self.merged_adapters = adapter_name, []
        self.update_layer(adapter_name, config)

    def matrices(self, config: UniPELTConfig) -> tuple[torch.nn.Module, torch.nn.Module, int]:
        """Return both matrices of the part, and the width that its gate reads."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, config: UniPELTConfig) -> None:
        """Add an adapter that changes nothing yet."""
        first, second, width = self.matrices(config)
        gate = torch.nn.Linear(width, 1)
        for value in (*second.parameters(), *gate.parameters()):
            torch.nn.init.zeros_(value)
        self.unipelt_first[adapter_name], self.unipelt_second[adapter_name] = first, second
        self.unipelt_gate[adapter_name] = gate
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def names(self) -> list[str]:
        """Adapters in use."""
        return [] if self.disable_adapters else self.active_adapters

    def gate(self, name: str, read: torch.Tensor) -> torch.Tensor:
        """Return the gate of each token; in training they are counted for the mean."""
        value = torch.sigmoid(self.unipelt_gate[name](read))
        if self.training:
            self.gates[0] += value.detach().double().sum()
            self.gates[1] += value.numel()
        return value

    def typed(self, name: str, states: torch.Tensor) -> torch.Tensor:
        """Return the states in the dtype of the adapter's weights."""
        return self._cast_input_dtype(states, self.unipelt_first[name].weight.dtype)

    def merge(self, *args, **kwargs) -> None:
        """Raise: a gate depends on the input."""
        raise NotImplementedError("UniPELT cannot be merged")

    unmerge = merge


class GatedLoRA(GatedLayer):
    """A linear layer with gated LoRA; it keeps what the prefix of its layer reads."""

    kept: tuple[torch.Tensor, torch.Tensor] | None = None
    keeps = False

    def matrices(self, config: UniPELTConfig) -> tuple[torch.nn.Module, torch.nn.Module, int]:
        """Return A and B."""
        base, rank = self.get_base_layer(), config.rank
        first = torch.nn.Linear(base.in_features, rank, bias=False)
        return first, torch.nn.Linear(rank, base.out_features, bias=False), base.in_features

    def forward(self, states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return the base layer's output and the gated updates."""
        result = self.base_layer(states, *args, **kwargs)
        for name in self.names:
            read = self.typed(name, states)
            change = self.unipelt_second[name](self.unipelt_first[name](read))
            result = result + (self.gate(name, read) * self.scale * change).to(result.dtype)
        if self.keeps and self.names:
            self.kept = states, result
        return result


class GatedPrefix(GatedLayer):
    """The last linear layer of an attention, with a gated prefix before it."""

    def __init__(self, base_layer, adapter_name: str, config: UniPELTConfig, queries: GatedLoRA, heads: int):
        """Take the layer that makes the queries, which stays no part of this one, and the number of heads."""
        self._reads, self._heads = queries.get_base_layer().in_features, heads
        super().__init__(base_layer, adapter_name, config)
        self._queries, queries.keeps = (queries,), True

    def matrices(self, config: UniPELTConfig) -> tuple[torch.nn.Module, torch.nn.Module, int]:
        """Return keys and values, one row for each virtual token."""
        width = self.get_base_layer().in_features
        keys, values = (torch.nn.Embedding(config.virtual_tokens, width) for _ in range(2))
        return keys, values, self._reads

    def forward(self, states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return the base layer's output for what the attention and the prefixes give."""
        for name in self.names:
            read, queries = (self.typed(name, value) for value in self._queries[0].kept)
            keys, values, queries = (
                value.unflatten(-1, (self._heads, -1))
                for value in (self.unipelt_first[name].weight, self.unipelt_second[name].weight, queries)
            )  # (virtual tokens, heads, width of a head); of queries (..., tokens, heads, width of a head)
            scores = einsum("...hd,vhd->...hv", queries, keys.to(queries.dtype)) / sqrt(queries.shape[-1])
            weights = softmax(scores, dim=-1).to(values.dtype)
            change = einsum("...hv,vhd->...hd", weights, values).flatten(-2)
            states = states + (self.gate(name, read) * change).view(states.shape).to(states.dtype)
        self._queries[0].kept = None
        return self.base_layer(states, *args, **kwargs)


class GatedAdapter(GatedLayer):
    """The last linear layer of a feed-forward part, with a gated bottleneck adapter behind it."""

    def matrices(self, config: UniPELTConfig) -> tuple[torch.nn.Module, torch.nn.Module, int]:
        """Return the two linear layers."""
        width = self.get_base_layer().out_features
        return torch.nn.Linear(width, config.size), torch.nn.Linear(config.size, width), width

    def forward(self, states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return the base layer's output and the adapters' gated changes of it."""
        result = self.base_layer(states, *args, **kwargs)
        for name in self.names:
            read = self.typed(name, result)
            change = self.unipelt_second[name](torch.relu(self.unipelt_first[name](read)))
            result = result + (self.gate(name, read) * change).to(result.dtype)
        return result


class UniPELTModel(BaseTuner):
    """A model with the three gated parts."""

    prefix = f"{NAME}_"
    tuner_layer_cls = GatedLayer
    target_module_mapping = {}

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs
    ) -> None:
        if isinstance(target, GatedLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if target_name in ATTENTION_END:  # models make q_proj before it
            heads = self.model.config.num_attention_heads
            made = GatedPrefix(target, adapter_name, peft_config, parent.q_proj, heads)
        else:
            made = (GatedLoRA if target_name in LORA else GatedAdapter)(target, adapter_name, peft_config)
        self._replace_module(parent, target_name, made, target)


adapters.register(NAME, UniPELTConfig, UniPELTModel)
