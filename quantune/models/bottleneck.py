"""Bottleneck adapters as a method of PEFT, which has none: after `import quantune.models.bottleneck` its own
`PeftModel.from_pretrained(model, folder)` opens them.

Behind a linear layer that ends a part of a transformer layer, y becomes y + up(ReLU(down(y))) (Houlsby et al., 2019,
arXiv:1902.00751). At the beginning `up` is zero.
"""

from dataclasses import dataclass, field

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from quantune.models import adapters

NAME = "bottleneck"


@dataclass
class BottleneckConfig(PeftConfig):
    """The layers that have an adapter behind them, and its width."""

    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    size: int = field(default=64)

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType(NAME.upper())


class BottleneckLayer(torch.nn.Module, BaseTunerLayer):
    """A linear layer with an adapter behind it."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: torch.nn.Module, adapter_name: str, config: BottleneckConfig):
        """Take any linear layer, quantized or not."""
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down, self.bottleneck_up = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        self._active_adapter, self.merged_adapters = adapter_name, []
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter."""
        width = self.get_base_layer().out_features
        self.bottleneck_down[adapter_name] = torch.nn.Linear(width, config.size)
        self.bottleneck_up[adapter_name] = torch.nn.Linear(config.size, width)
        for value in self.bottleneck_up[adapter_name].parameters():
            torch.nn.init.zeros_(value)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Return the base layer's output and the adapters' changes of it."""
        result = self.base_layer(states, *args, **kwargs)
        for name in () if self.disable_adapters else self.active_adapters:
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            change = up(torch.relu(down(self._cast_input_dtype(result, down.weight.dtype))))
            result = result + change.to(result.dtype)
        return result

    def merge(self, *args, **kwargs) -> None:
        """Raise: a nonlinear layer cannot be merged."""
        raise NotImplementedError("bottleneck adapters cannot be merged")

    unmerge = merge


class BottleneckModel(BaseTuner):
    """A model with bottleneck adapters."""

    prefix = f"{NAME}_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping = {}

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config), target)


adapters.register(NAME, BottleneckConfig, BottleneckModel)
