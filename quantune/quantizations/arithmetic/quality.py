"""How much a quantization changed a model, measured on real input.

The input is the calibration set where the method has one, else a short text or clip that comes with quantune. Both
models read it in float32, with one layer of each on the device at a time. Each linear layer gets the inputs that it has
in the original model: the relative error of its outputs is ‖(Ŵ-W)X‖ / ‖WX‖, as in the papers of GPTQ and AWQ. A method
that rescales the inputs of layers (AWQ) measures these errors itself, while it rounds. The loss is the mean negative
log-likelihood of a token.
"""

from collections import Counter
from dataclasses import dataclass
from math import inf, isfinite, log
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from quantune.core.errors import QuantuneError
from quantune.core.recipe import Recipe
from quantune.core.workload import PROBE_LOGITS, PROBE_SAMPLE_TOKENS, PROBE_SAMPLES, PROBE_TOKENS
from quantune.data import speech, text
from quantune.data.batches import Data
from quantune.data.draws import Sequences
from quantune.models import loading, offloading
from quantune.models.checkpoints import quantizable
from quantune.quantizations.arithmetic.layerwise import placed
from quantune.sources import audio

PROBE = Path(__file__).parents[3] / "assets/probe"
DESTROYED_ERROR = 0.98
"""Output error from which a layer is destroyed: a layer that gives only zeros has an error of 1."""
LOSS_RISE = 0.25
"""Rise of the loss, in nats a token, above which a quantization gives a warning: perplexity grows by 28 %."""


@dataclass
class Comparison:
    """A quantized model and its parent on the same input."""

    before: float
    """Loss of the original model, in nats a token."""
    after: float
    """Loss of the quantized model."""
    unigram: float
    """Loss of a unigram model on the same tokens: add-one smoothed counts of those tokens."""
    errors: dict[str, float]
    """Linear layer -> relative error of its outputs; layers without input (an expert without tokens) are left out.
    """

    def worst(self) -> list[tuple[str, float]]:
        """Return layer and error, the largest first; NaN counts as infinite."""
        return sorted(self.errors.items(), key=lambda item: -item[1] if isfinite(item[1]) else -inf)


def measure(
    parent: Path, folder: Path, inputs: list[dict[str, torch.Tensor]], errors: dict[str, float] | None = None
) -> Comparison:
    """Compare a quantized checkpoint with its parent.

    Args:
        parent: the original checkpoint.
        folder: the quantized one.
        inputs: batches of one sample: `input_ids`, or `input_features` with `decoder_input_ids`, whose prompt (start,
            language, task, no timestamps) is read but not scored.
        errors: the layers' errors, where the method measured them itself.
    """
    prompt = 1 if not loading.is_speech(parent) else 4 if speech.knows_languages(parent) else 2
    original, changed = loading.streamed([parent], "float32"), loading.streamed([folder], "float32")
    batches = joined(inputs, original.config.get_text_config().vocab_size)
    after = [_losses(changed, batch, prompt) for batch in batches]
    hooks = None if errors else _Errors(original, changed)
    before = [_losses(original, batch, prompt) for batch in tqdm(batches, desc="output errors", unit="batch")]
    if hooks:
        hooks.remove()
    tokens = [int(token) for batch in inputs for token in _tokens(batch)[0, prompt:]]
    counts, size = Counter(tokens), len(tokens) + original.config.get_text_config().vocab_size
    unigram = -sum(count * log((count + 1) / size) for count in counts.values()) / len(tokens)
    return Comparison(_mean(before), _mean(after), unigram, errors or hooks.relative())


def guard(
    recipe: Recipe,
    parent: Path,
    folder: Path,
    data: Path | None = None,
    seed: int = 0,
    errors: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return facts for the provenance: how much a quantization changed a model, with warnings.

    Args:
        recipe: the `Quantization` of the checkpoint.
        parent: the original checkpoint.
        folder: the quantized one.
        data: the prepared calibration set, if the method has one.
        seed: of the draw of samples.
        errors: layer -> relative output error, measured by the method while rounding; used if it rescales inputs.

    Raises:
        QuantuneError: if the model is destroyed and the recipe says to stop: its loss is not finite or worse than a
            unigram model's, or a layer is no better than one that gives zeros. The error names the layer.
    """
    source, inputs = recipe.probe(parent, data, seed)
    result = measure(parent, folder, inputs, errors if recipe.rescales else None)
    worst = result.worst()[:3]
    print(
        f"on {source}: loss {result.before:.3f} -> {result.after:.3f} nats a token, {result.unigram:.3f} of a unigram"
        f" model; largest output errors: {', '.join(f'{name} {error:.3f}' for name, error in worst)}"
    )
    damage, warnings = destroyed(result), quality_warnings(result, recipe.usual_error())
    if damage:
        advice = "use more bits, smaller groups or other calibration data"
        if recipe.if_destroyed == "stop":
            raise QuantuneError(f"{damage}; {advice}, or keep the model with 'if_destroyed: warn'")
        warnings = [damage, *warnings]
    for warning in warnings:
        print(f"WARNING: {warning}", flush=True)
    return {
        "measured_on": source,
        "loss_before": result.before,
        "loss_after": _finite_or_text(result.after),
        "unigram_loss": result.unigram,
        "largest_output_errors": {name: _finite_or_text(error) for name, error in worst},
        "warnings": warnings,
    }


def destroyed(result: Comparison) -> str | None:
    """Return the evidence that a model is destroyed, or None.

    If the parent is no better than a unigram model, only the layers are judged.
    """
    name, error = result.worst()[0]
    where = f"the layer with the largest output error is '{name}' ({error:.3f})"
    if not isfinite(result.after):
        return f"the quantized model's loss is {result.after}; {where}"
    if result.before < result.unigram <= result.after:
        more = f"{result.after:.2f} nats a token, {result.before:.2f} before; a unigram model has {result.unigram:.2f}"
        return f"the quantized model is worse than a unigram model: {more}; {where}"
    if not error < DESTROYED_ERROR:
        return f"the layer '{name}' is destroyed: its outputs have a relative error of {error:.3f}; zeros have 1"
    return None


def quality_warnings(result: Comparison, usual: float) -> list[str]:
    """Return warnings of a large rise in loss, and of layers with larger errors than usual."""
    warnings = []
    if result.after - result.before > LOSS_RISE:
        warnings.append(
            f"quantizing raised the loss from {result.before:.2f} to {result.after:.2f} nats a token on its probe"
        )
    above = {name: error for name, error in result.errors.items() if not error <= usual}
    if above:
        name = next(name for name, _ in result.worst())
        count = f"{len(above)} of {len(result.errors)} layers have"
        warnings.append(
            f"{count if len(above) > 1 else 'a layer has'} output errors above {usual:g}, the most that is usual for"
            f" the method; the largest is {above[name]:.2f} in '{name}'"
        )
    return warnings


def calibration_inputs(drawn: Data | Sequences, chosen: list[int]) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """Return a name and the first samples of a calibration set, one in each batch."""
    first = chosen[:PROBE_SAMPLES]
    longest = max(drawn.tokens([number]) for number in first)
    first = first[: max(1, PROBE_SAMPLE_TOKENS // longest)]
    return "calibration samples", [batch for number in first for batch in drawn.inputs([number])]


def probe_inputs(parent: Path) -> tuple[str, list[dict[str, torch.Tensor]]]:
    """Return a name and the probe text, or the probe clip with its transcript, as a model's inputs."""
    config = loading.config(parent)
    if not loading.is_speech(parent):
        ids = text.prompt((PROBE / "text.txt").read_text(encoding="utf-8"), loading.tokenizer(parent))
        length = min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)
        return "the probe text", [{"input_ids": torch.tensor([ids[:length]])}]
    processor = loading.processor(parent)
    samples, rate, _ = audio.decode((PROBE / "speech.flac").read_bytes())
    wave = audio.resample(samples, rate, processor.feature_extractor.sampling_rate)
    transcript = (PROBE / "speech.txt").read_text(encoding="utf-8").strip()
    ids = speech.encode([transcript], ["en"], "transcribe", processor.tokenizer, speech.knows_languages(parent))
    features = speech.features([wave], processor.feature_extractor)
    return "the probe clip", [{"input_features": features, "decoder_input_ids": torch.tensor(ids)}]


class _Errors:
    """Hooks on a model's linear layers that run the same layers of another model on their inputs."""

    def __init__(self, original: torch.nn.Module, changed: torch.nn.Module):
        self.sums: dict[str, torch.Tensor] = {}
        self.hooks = [
            layer.register_forward_hook(self._hook(name, changed.get_submodule(name)))
            for name, layer in quantizable(original).items()
        ]

    def _hook(self, name: str, other: torch.nn.Module):
        def compare(layer, args, output):
            with offloading.resident(other, output.device, torch.float32):
                change = other(*args).float() - output.float()
            right = output.float() if layer.bias is None else output.float() - layer.bias.float()
            sums = torch.stack([_squares(change), _squares(right)])
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

        return compare

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()

    def relative(self) -> dict[str, float]:
        """Return layer -> relative error; 0 where both models give zeros."""
        pairs = {name: sums.tolist() for name, sums in self.sums.items()}
        return {
            name: (change / right) ** 0.5 if right else inf if change else 0.0
            for name, (change, right) in pairs.items()
        }


def _squares(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares, summed in float64."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).square()


def _finite_or_text(value: float) -> float | str:
    """Return a finite number unchanged, and any other as text, since JSON has no infinity."""
    return value if isfinite(value) else str(value)


def joined(inputs: list[dict[str, torch.Tensor]], vocabulary: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of one sample as larger batches: neighbours of the same shape, up to `PROBE_LOGITS` logits."""
    batches: list[dict[str, torch.Tensor]] = []
    for batch in inputs:
        shapes = [value.shape[1:] for value in batch.values()]
        last = batches[-1] if batches else {}
        alike = shapes == [value.shape[1:] for value in last.values()]
        if alike and (_tokens(last).numel() + _tokens(batch).numel()) * vocabulary <= PROBE_LOGITS:
            batches[-1] = {name: torch.cat([last[name], value]) for name, value in batch.items()}
        else:
            batches.append(batch)
    return batches


def _tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch.get("decoder_input_ids", batch.get("input_ids"))


@torch.no_grad()
def _losses(model, batch: dict[str, torch.Tensor], prompt: int) -> torch.Tensor:
    """Return the negative log-likelihood of each token after the prompt, in nats: (samples * (tokens - prompt),)."""
    inputs = placed(batch, model)
    logits = model(**inputs, use_cache=False).logits
    losses = [
        torch.nn.functional.cross_entropy(row[prompt - 1 : -1].float(), tokens[prompt:], reduction="none")
        for row, tokens in zip(logits, _tokens(inputs), strict=True)
    ]
    return torch.cat(losses).double().cpu()


def _mean(losses: list[torch.Tensor]) -> float:
    return float(torch.cat(losses).mean())
