"""The damage that rounding one part of a model does, measured on real input: the divergence of the model's predictions
when only this part is rounded.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from quantune.models import loading
from quantune.models.checkpoints import untie
from quantune.models.offloading import move
from quantune.quantizations.arithmetic import layerwise
from quantune.quantizations.arithmetic.quality import joined

DESTROYED = 1e9
"""Damage of a model whose predictions are not finite, in nats."""
Fits = Callable[[dict[str, torch.nn.Linear], torch.Tensor | None, int], dict[str, torch.Tensor]]
"""Linear layers that read the same input, its Gram matrix or None, bits -> full name -> rounded weights."""


class Meter:
    """Measures a model against itself: with and without rounded layers."""

    def __init__(self, model, inputs: list[dict[str, torch.Tensor]], units: list[list[str]], widths: list[int]):
        """Compute the predictions at full precision, for batches of one sample."""
        self.model, self.units, self.widths = model, units, widths
        head = model.get_output_embeddings()
        if head is not None and any(model.get_submodule(name) is head for names in units for name in names):
            untie(model)
        self.batches = joined(inputs, model.config.get_text_config().vocab_size)
        self.before = [_predictions(model, batch) for batch in self.batches]
        self._measured: dict[int, dict[int, float]] = {}

    def measure(self, unit: int, rounded: dict[int, dict[str, torch.Tensor]]) -> None:
        """Measure a unit at each width; `rounded` is bits -> full name -> weights."""
        layers = {name: self.model.get_submodule(name) for name in self.units[unit]}
        originals = {name: layer.weight.data for name, layer in layers.items()}
        self._measured[unit] = {}
        for bits, weights in rounded.items():
            for name, layer in layers.items():
                layer.weight.data = weights[name].to(originals[name].device, originals[name].dtype)
            pairs = zip(self.batches, self.before, strict=True)
            sums = [divergence(known, _predictions(self.model, batch)) for batch, known in pairs]
            mean = sum(sums) / sum(map(len, self.before))
            self._measured[unit][bits] = max(0.0, mean) if math.isfinite(mean) else DESTROYED
        for name, layer in layers.items():
            layer.weight.data = originals[name]

    def measure_alone(self, fits: Fits) -> None:
        """Measure the units that are not measured yet, rounded without calibration."""
        for unit in tqdm([unit for unit in range(len(self.units)) if unit not in self._measured], desc="sensitivity"):
            layers = {name: self.model.get_submodule(name) for name in self.units[unit]}
            self.measure(unit, {bits: fits(layers, None, bits) for bits in self.widths})

    def damages(self) -> list[dict[int, float]]:
        """Return, for each unit, bits -> Kullback-Leibler divergence in nats a token, from the model's predictions to
        those with only this unit rounded.
        """
        return [self._measured[unit] for unit in range(len(self.units))]


@torch.no_grad()
def nearest(parent: Path, inputs: list[dict], units: list[list[str]], widths: list[int], fits: Fits) -> list[dict]:
    """Return the damage of each unit at each width, for a method without calibration; see `Meter.damages`."""
    meter = Meter(loading.streamed([parent], "float32"), inputs, units, widths)
    meter.measure_alone(fits)
    return meter.damages()


@torch.no_grad()
def calibrated(
    parent: Path,
    inputs: list[dict],
    units: list[list[str]],
    widths: list[int],
    fits: Fits,
    batches: list[dict[str, torch.Tensor]],
    rescale: Callable[[torch.nn.Module, str, torch.nn.Module, list], dict[str, torch.Tensor]] | None,
) -> list[dict]:
    """Return the damage of each unit at each width, rounded by a method with calibration; see `Meter.damages`.

    Args:
        parent: the checkpoint.
        inputs: batches of one sample, on which the damage is measured.
        units: full names of layers that get the same width.
        widths: bits to try.
        fits: rounds layers that read the same input.
        batches: calibration samples.
        rescale: of a method that rescales layers before it rounds: takes the model, and name, layer and inputs.
    """
    model = layerwise.load(parent)
    meter = Meter(model, inputs, units, widths)
    scales: dict[str, torch.Tensor] = {}

    def transform(name, layer, groups):
        scales.update(rescale(model, name, layer, groups))

    def visit(name, layer, groups):
        rounded: dict[int, dict[str, torch.Tensor]] = {bits: {} for bits in widths}
        for group in groups:
            scale = scales.get(next(iter(group.layers)))
            gram = group.gram if scale is None else group.gram / scale / scale[:, None]
            for bits in widths:
                rounded[bits] |= fits(group.layers, gram, bits)
        for unit, names in enumerate(units):
            if set(names) <= rounded[widths[0]].keys():
                meter.measure(unit, rounded)

    def finish(name, layer):
        move(layer.modules(), "cpu", loading.stored_dtype(parent) if loading.device().type == "cuda" else torch.float32)

    layerwise.stream(model, batches, visit, False, finish, transform=transform if rescale else None)
    meter.measure_alone(fits)
    return meter.damages()


def divergence(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the sum over rows of the divergence KL(before ‖ after) of log-probabilities, (rows, classes)."""
    return float(torch.nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(-1).double().sum())


def _predictions(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the log-probabilities of the next token at each position: (tokens, vocabulary), float32."""
    logits = model(**layerwise.placed(batch, model), use_cache=False).logits
    return logits.float().log_softmax(-1).flatten(0, -2)
