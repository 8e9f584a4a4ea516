"""Stream calibration data through a model layer by layer: only one layer's statistics are held at a time.

For each layer the Gram matrices of its linear layers' inputs are collected in one pass; linear layers that read
the same input (query, key and value) share one. The visitor then changes the layer's weights, and the layer's outputs
become the next layer's inputs. The scheme of GPTQ's reference code (github.com/IST-DASLab/gptq). Only one layer is on
the device at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from quantune.core.errors import QuantuneError
from quantune.models.offloading import move, stacks
from quantune.quantizations.arithmetic.inputs import Collector, Inputs


def load(parent: Path):
    """Load a model for calibration, layers in main memory: float32 on a CPU, the stored dtype on a GPU."""
    from quantune.models import loading

    on_gpu = loading.device().type == "cuda"
    return loading.streamed([parent], str(loading.stored_dtype(parent)).removeprefix("torch.") if on_gpu else "float32")


@dataclass
class Arguments:
    """The arguments of a stack's layers: hidden states (batch, length, width), and the other arguments of each layer.

    The other arguments may differ: layers with global and with windowed attention have different masks and positions.
    """

    states: torch.Tensor
    others: list[tuple[tuple, dict]]
    """For each layer: positional arguments after the hidden states, and keyword arguments; equal tensors are shared."""

    def __call__(self, layer: torch.nn.Module, index: int) -> torch.Tensor:
        """Return the output hidden states of the stack's layer with this number."""
        others, keywords = self.others[index]
        return _states(layer(self.states, *others, **keywords))


def _states(output: torch.Tensor | tuple) -> torch.Tensor:
    """Return the hidden states in a layer's output."""
    return output[0] if isinstance(output, tuple) else output


class _CaughtError(Exception):
    """Raised to stop a forward pass once the inputs of all layers are known."""


@dataclass
class Finished:
    """The layers of an encoder that have been visited, and what they give."""

    layers: torch.nn.ModuleList
    states: list[torch.Tensor]
    """For each batch: hidden states after the last layer, (batch, length, width)."""
    others: tuple | None
    """What a layer returns after the states; None: it returns no tuple."""


@torch.no_grad()
def first_inputs(
    model, layers: torch.nn.ModuleList, batches: list[dict[str, torch.Tensor]], encoder: Finished | None = None
) -> tuple[list[Arguments], tuple | None]:
    """Return, for each batch of the model's inputs, the first layer's hidden states and each layer's other arguments.

    The model's own forward pass calls stand-ins for the layers, which return the states unchanged. Only the first layer
    is computed, once, to see whether layers return more than states; what they return is the second result.

    Args:
        model: the model.
        layers: the layers of its decoder, or of its encoder.
        batches: its inputs.
        encoder: the encoder's layers, if they have been visited; they are not computed again.
    """
    inputs: list[Arguments] = []
    seen: list[tuple | None] = []  # Nones in place of the first layer's further outputs; None: no tuple

    def stand_in(index: int, real: Callable):
        def forward(*args, **kwargs):
            states, *others = args or (kwargs.pop("hidden_states"),)
            if index == 0:
                inputs.append(Arguments(states, []))
            inputs[-1].others.append((tuple(others), kwargs))
            if index == len(layers) - 1:
                raise _CaughtError
            if not seen:
                output = real(states, *others, **kwargs)
                seen.append(tuple(None for _ in output[1:]) if isinstance(output, tuple) else None)
            return states if seen[0] is None else (states, *seen[0])

        return forward

    def known(index: int, real: Callable):
        return lambda *args, **kwargs: (
            encoder.states[len(inputs)] if encoder.others is None else (encoder.states[len(inputs)], *encoder.others)
        )

    with _replaced(layers, stand_in), _replaced(encoder.layers if encoder else [], known):
        for batch in batches:
            with suppress(_CaughtError):
                model(**placed(batch, model), use_cache=False)
    return inputs, seen[0] if seen else None


@contextmanager
def _replaced(layers: Iterable[torch.nn.Module], stand_in: Callable[[int, Callable], Callable]) -> Iterator[None]:
    """Replace each layer's forward function by `stand_in(index, forward)` inside the context."""
    before = [vars(layer).get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = stand_in(index, layer.forward)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.forward
            if own is not None:
                layer.forward = own


@torch.no_grad()
def stream(
    model,
    batches: list[dict[str, torch.Tensor]],
    visit: Callable[[str, torch.nn.Module, list[Inputs]], None],
    requantized: bool,
    finish: Callable[[str, torch.nn.Module], None] = lambda name, layer: None,
    sequential: bool = False,
    transform: Callable[[str, torch.nn.Module, list[Inputs]], None] | None = None,
    collecting: type[Collector] = Collector,
) -> None:
    """Visit every layer with the statistics of its inputs.

    Args:
        model: a model in evaluation mode; its layers may be in main memory.
        batches: its inputs. Padding would bias the statistics, so none is used.
        visit: called with the layer's name, the layer, and its linear layers grouped by input; changes the weights.
        requantized: whether the next layer reads the outputs of the changed layer (GPTQ) or the original outputs (AWQ).
        finish: called with the layer's name and the layer, after its last use; may pack it, and move it away.
        sequential: visit a layer once for each of its inputs, with statistics that the linear layers visited before
            have changed; needs one pass for each input.
        transform: called as `visit` is, before it; changes the weights and must preserve the layer's outputs.
        collecting: the kind of statistics; by default Gram matrices and mean magnitudes.

    Raises:
        QuantuneError: if the model's layers are not known, or if a transformed layer does not preserve the outputs.
    """
    roots, encoder = stacks(model), None
    if len(roots) < 1 + model.config.is_encoder_decoder:
        raise QuantuneError(f"calibration knows no layers in the architecture '{model.config.model_type}'")
    place = model.get_input_embeddings().weight
    for root, layers in roots:
        hidden, others = first_inputs(model, layers, batches, encoder)
        for index, layer in enumerate(tqdm(layers, desc=f"quantizing {root}", unit="layer")):
            move(layer.modules(), place.device, place.dtype)
            collector = collecting(f"{root}.{index}", layer)
            first = copy(hidden[0])
            _advance(layer, index, hidden, keep=not requantized)
            groups = collector.finish()
            if transform:
                before = first(layer, index)
                transform(f"{root}.{index}", layer, groups)
                _require_unchanged(f"{root}.{index}", first.states, before, first(layer, index))
            if sequential:
                _visit_in_turn(f"{root}.{index}", layer, index, hidden, groups, visit)
            else:
                visit(f"{root}.{index}", layer, groups)
            del groups
            if requantized:
                _advance(layer, index, hidden, keep=True)
            finish(f"{root}.{index}", layer)
        encoder = Finished(layers, [arguments.states for arguments in hidden], others)


def _visit_in_turn(name: str, layer: torch.nn.Module, index: int, hidden: list[Arguments], groups: list, visit) -> None:
    """Visit the linear layers of a layer, group by group in the order of their calls; collect anew for each group."""
    turns = [set(group.layers) for group in groups]
    visit(name, layer, groups[:1])
    for turn in turns[1:]:
        groups.clear()
        collector = Collector(name, layer, turn)
        _advance(layer, index, hidden, keep=False)
        groups += collector.finish()
        visit(name, layer, groups)


def _advance(layer: torch.nn.Module, index: int, hidden: list[Arguments], keep: bool) -> None:
    """Run a layer on every batch; with `keep`, its outputs replace its inputs, which are freed one by one."""
    for arguments in hidden:
        output = arguments(layer, index)
        if keep:
            arguments.states = output


def placed(batch: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """Return a model's inputs on its device, in its dtype where they are floating-point."""
    weight = model.get_input_embeddings().weight
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
    }


def _require_unchanged(name: str, states: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    """Raise QuantuneError if a layer's outputs for the first sequence changed. The change may be 1e-4 of the layer's
    addition to the states in float32, or 20 roundings in half precision, plus the rounding of the states.
    """
    epsilon = torch.finfo(before.dtype).eps
    states, before, after = (item[:1].float() for item in (states, before, after))
    moved, added, allowed = (after - before).norm(), (before - states).norm(), max(1e-4, 20 * epsilon)
    if not moved <= allowed * added + 4 * epsilon * before.norm():
        raise QuantuneError(
            f"rescaling changed the function of the layer '{name}', before any rounding: its outputs changed by"
            f" {float(moved / added):.2g}, more than {allowed:.2g}; between the two ends of a mapping a scale can pass"
            " ReLU and products, but not GELU: correct 'mappings'"
        )
