"""Stream calibration data through a model layer by layer: only one layer's statistics are held at a time.

For each decoder layer the Gram matrices of its linear layers' inputs are collected in one pass; linear layers that read
the same input (query, key and value) share one. The visitor then changes the layer's weights, and the layer's outputs
become the next layer's inputs. The scheme of GPTQ's reference code (github.com/IST-DASLab/gptq).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from quantune.calibration import BATCH_TOKENS
from quantune.errors import QuantuneError


@dataclass
class Inputs:
    """Linear layers of one decoder layer that read the same input, and what is known of that input."""

    layers: dict[str, torch.nn.Linear]
    """Full name -> layer."""
    gram: torch.Tensor
    """Mean over tokens of x xᵀ, (columns, columns), float32."""
    magnitude: torch.Tensor
    """Mean over tokens of |x|, (columns,), float32."""


def load(parent: Path):
    """Load a model for calibration: float32 on a CPU, the stored dtype on a GPU."""
    from quantune import loading

    on_gpu = loading.device().type == "cuda"
    return loading.model([parent], str(loading.stored_dtype(parent)).removeprefix("torch.") if on_gpu else "float32")


def batches(blocks: numpy.ndarray, tokens: int = BATCH_TOKENS) -> list[torch.Tensor]:
    """Cut calibration blocks (samples, length) into batches of about so many tokens."""
    return list(torch.from_numpy(blocks).split(max(1, tokens // blocks.shape[1])))


def decoder_layers(model) -> tuple[str, torch.nn.ModuleList]:
    """Return the name and the list of a causal language model's decoder layers."""
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise QuantuneError(f"calibration knows no decoder layers in the architecture '{model.config.model_type}'")
    return next(name for name, module in model.named_modules() if module is layers), layers


class _CaughtError(Exception):
    """Raised to stop a forward pass once the first layer's inputs are known."""


@torch.no_grad()
def first_inputs(model, layer: torch.nn.Module, batches: list[torch.Tensor]) -> list[tuple[torch.Tensor, dict]]:
    """Return, for each batch of token ids (batch, length), the hidden states that reach `layer`, and its keywords."""
    caught = []

    def catch(_, args, kwargs):
        caught.append((args[0] if args else kwargs.pop("hidden_states"), kwargs))
        raise _CaughtError

    hook = layer.register_forward_pre_hook(catch, with_kwargs=True)
    for batch in batches:
        with suppress(_CaughtError):
            model(input_ids=batch.to(model.device), use_cache=False)
    hook.remove()
    return caught


@torch.no_grad()
def stream(
    model, batches: list[torch.Tensor], visit: Callable[[str, torch.nn.Module, list[Inputs]], None], requantized: bool
) -> None:
    """Visit every decoder layer with the statistics of its inputs.

    Args:
        model: a causal language model in evaluation mode.
        batches: token ids, each (batch, length), int64.
        visit: called with the layer's name, the layer, and its linear layers grouped by input; changes the weights.
        requantized: whether the next layer sees the outputs of the changed layer (GPTQ) or the original ones (AWQ),
            which the changed layer must still give.

    Raises:
        QuantuneError: if it does not.
    """
    root, layers = decoder_layers(model)
    hidden = first_inputs(model, layers[0], batches)
    tokens = sum(batch.numel() for batch in batches)
    for index, layer in enumerate(tqdm(layers, desc="quantizing", unit="layer")):
        name = f"{root}.{index}"
        collector = _Collector(name, layer)
        first = hidden[0]
        _advance(layer, hidden, keep=not requantized)
        groups = collector.finish(tokens)
        visit(name, layer, groups)
        del groups
        if requantized:
            _advance(layer, hidden, keep=True)
        else:
            _require_unchanged(name, first[0], hidden[0][0], _output(layer, *first))


def _advance(layer: torch.nn.Module, hidden: list[tuple[torch.Tensor, dict]], keep: bool) -> None:
    """Run a layer on every batch; with `keep`, its outputs take the place of its inputs, which are freed one by one."""
    for place, (states, kwargs) in enumerate(hidden):
        output = _output(layer, states, kwargs)
        if keep:
            hidden[place] = (output, kwargs)


def _output(layer: torch.nn.Module, states: torch.Tensor, kwargs: dict) -> torch.Tensor:
    found = layer(states, **kwargs)
    return found[0] if isinstance(found, tuple) else found


def _require_unchanged(name: str, states: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raise QuantuneError if a layer's outputs of the first sequence moved: by 1e-4 of what it adds to the states in
    float32, by 20 roundings in half precision, and by the rounding of the states themselves.
    """
    epsilon = torch.finfo(before.dtype).eps
    states, before, after = (item[:1].float() for item in (states, before, after))
    moved, added, allowed = (after - before).norm(), (before - states).norm(), max(1e-4, 20 * epsilon)
    if not moved <= allowed * added + 4 * epsilon * before.norm():
        raise QuantuneError(
            f"rescaling changed the function of the layer '{name}', before anything was rounded: its outputs moved by"
            f" {float(moved / added):.2g}, more than {allowed:.2g}; a scale cannot move through everything between the"
            " two ends of a mapping (ReLU and products let it pass, GELU does not): correct 'mappings'"
        )


class _Collector:
    """Hooks that sum the statistics of the inputs of a layer's linear layers."""

    def __init__(self, name: str, layer: torch.nn.Module):
        self.linears = {f"{name}.{part}": item for part, item in layer.named_modules() if _is_linear(item)}
        self.leader: dict[str, str] = {}
        self.sums: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.seen: tuple[torch.Tensor, str] | None = None
        self.hooks = [item.register_forward_pre_hook(self._hook(part)) for part, item in self.linears.items()]

    def _hook(self, part: str):
        def collect(_, args):
            states = args[0]
            # query, key and value are called one after the other with the very same tensor
            if self.leader.get(part, part) != part:
                return
            if part not in self.leader:
                self.leader[part] = self.seen[1] if self.seen and self.seen[0] is states else part
                if self.leader[part] != part:
                    return
            self.seen = (states, part)
            rows = states.reshape(-1, states.shape[-1])
            gram, magnitude = _gram(rows), rows.abs().sum(0, dtype=torch.float32)
            if part in self.sums:
                self.sums[part][0].add_(gram)
                self.sums[part][1].add_(magnitude)
            else:
                self.sums[part] = (gram, magnitude)

        return collect

    def finish(self, tokens: int) -> list[Inputs]:
        """Remove the hooks; return the groups with their means."""
        for hook in self.hooks:
            hook.remove()
        self.seen = None
        found = []
        for leader in list(self.sums):
            gram, magnitude = self.sums.pop(leader)
            layers = {part: self.linears[part] for part, head in self.leader.items() if head == leader}
            found.append(Inputs(layers, gram.div_(tokens), magnitude.div_(tokens)))
        return found


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """Return rowsᵀ rows in float32; TF32 products hold 16-bit values exactly, and nothing else uses them."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = rows.dtype in (torch.float16, torch.bfloat16)
    try:
        return rows.float().T @ rows.float()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)
