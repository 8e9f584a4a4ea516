"""Estimates of a model's memory from its config.json and the recipes; neither reads weights nor imports torch.

    >>> print(memory.inference(config, [nf4], Inference("bfloat16", batch=8, length=2048)))
    >>> print(memory.training(config, [nf4], lora))

An `Estimate` is a sum of named terms in bytes, comparable with `torch.cuda.max_memory_allocated()`.
`quantune.planning.activations` computes the terms of the activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from quantune.core.recipe import Recipe
from quantune.core.units import BYTES
from quantune.core.workload import (
    PROBE_LOGITS,
    PROBE_SAMPLE_TOKENS,
    PROBE_SAMPLES,
    PROBE_TOKENS,
    Calibration,
    Inference,
)
from quantune.data.batches import BATCH_TOKENS
from quantune.finetunings import Finetuning
from quantune.models import layer_names
from quantune.models.architecture import Architecture, Layers, Linear, read
from quantune.planning.activations import FLOAT, Pass
from quantune.quantizations import Quantization

WORKSPACE = 32 * 2**20
"""Bytes that PyTorch allocates for cuBLAS on a data-centre GPU, with the setting that deterministic runs need."""
ROUNDING = 6
"""Float32 matrices of a linear layer's shape while it is rounded and packed."""


@dataclass(frozen=True)
class Estimate:
    """Predicted peak memory of a model while it computes."""

    terms: dict[str, int]
    """Group of tensors in memory at the peak -> bytes."""

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return sum(self.terms.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value / 1e6:,.1f}" for name, value in self.terms.items() if value)
        return f"{self.total / 1e6:,.1f} MB ({parts})"


def weights(model: Architecture, dtype: str, quantization: Quantization | None = None) -> int:
    """Return the bytes of a model's weights, on disk or loaded: codes, scales, zero points and tables included.

    Args:
        model: the model's shape.
        dtype: dtype of the weights that are not quantized.
        quantization: recipe of the linear layers, if they are quantized.
    """
    parameters = model.parameters()
    if quantization is None:
        return sum(parameters.values()) * BYTES[dtype]
    packed, layers = 0, layer_names.shapes(model, quantization.quantizes_head())
    recipe = quantization.resolved(layers)
    for name, (rows, columns) in layers.items():
        own = recipe.of_layer(name)
        tensors = own.layer_tensors(rows, columns) if own else {"weight": (None, [rows, columns])}
        packed += sum(BYTES[kind or dtype] * prod(shape) for kind, shape in tensors.values())
    replaced = parameters["linears"] + (parameters["head"] if quantization.quantizes_head() else 0)
    return packed + (sum(parameters.values()) - replaced) * BYTES[dtype]


def inference(config: dict[str, Any], steps: Sequence[Recipe], work: Inference) -> Estimate:
    """Estimate the peak of a forward pass without gradients: inside a layer, or when the logits are computed.

    With an encoder and a cache the peak is in a layer of the encoder, before the cache exists, or later, with the
    encoder output in memory. While a layer caches the keys and values of its cross-attention, memory holds them twice.

    Args:
        config: the model's config.json.
        steps: the effective recipes: a quantization, a fine-tuning with an adapter, both or none.
        work: dtype, batch, length, cache and logits.

    Raises:
        QuantuneError: if the model's architecture is not known.
    """
    model, quantization, finetuning = read(config), _first(steps, Quantization), _first(steps, Finetuning)
    length = work.length + (finetuning.taken_positions if finetuning else 0)
    step = Pass(model, work.batch, length, work.dtype, quantization, finetuning)
    head = step.logits(work.dtype, work.logits) + 2 * step.hidden(model.decoder)  # before and after the last norm
    own = {
        "weights": weights(model, work.dtype, quantization),
        "adapter": finetuning.stored(model) * FLOAT if finetuning else 0,
        "workspace": WORKSPACE,
        **work.extra,
    }
    kept = {"cache": step.cache()} if work.cache else {}
    if not (work.cache and model.encoder):
        return Estimate(own | kept | _largest(logits=head, one_layer=max(map(step.forward_peak, model.layers))))
    encoding = Estimate(own | {"one layer": step.forward_peak(model.encoder)})
    encoded = step.hidden(model.encoder)
    kept |= {"encoder output": encoded}
    layer = max(step.forward_peak(model.decoder), 2 * encoded)
    decoding = Estimate(own | kept | _largest(logits=head, one_layer=layer))
    return max(encoding, decoding, key=lambda estimate: estimate.total)


def training(config: dict[str, Any], steps: Sequence[Recipe], finetuning: Finetuning) -> Estimate:
    """Estimate the peak of `quantune.finetunings.training.loop.train`.

    The peak is at the start of the backward pass, in every step but the first: memory holds all activations, and the
    loss its logits, or the last layer its gradients. Gradient checkpointing keeps only the inputs of layers and of the
    last norm; then the peak may be inside a recomputed layer.

    Args:
        config: the model's config.json.
        steps: the effective recipes of the parent: a quantization, or none.
        finetuning: recipe: trained weights, batch size and length, precision, gradient checkpointing.

    Raises:
        QuantuneError: if the model's architecture is not known.
    """
    model, quantization = read(config), _first(steps, Quantization)
    work = finetuning.workload()
    own = finetuning.leaves == "model"
    dtype = "float32" if work.mixed and (quantization or own) else work.dtype
    length = work.length + finetuning.taken_positions
    step = Pass(model, work.batch, length, dtype, quantization, finetuning, work.mixed)
    parameters = finetuning.trained(model)
    whole = finetuning.trains_head or (quantization and quantization.quantizes_head())
    loss = 3 * step.logits("float32") if whole else step.loss()
    if work.kept != "activations":
        # offloaded: the input of one layer, and the gradient of its output
        inputs = (layers.count if work.kept == "inputs" else 2 for layers in model.layers)
        activations = sum(
            count * step.hidden(layers) + step.norm(layers) for count, layers in zip(inputs, model.layers, strict=True)
        )
        layer = max(step.saved_for_backward(layers) + step.gradients(layers) for layers in model.layers)
    else:
        activations = sum(layers.count * step.saved_for_backward(layers) for layers in model.layers)
        layer = max(step.gradients(layers) + step.hidden(layers) for layers in model.layers)
    return Estimate(
        {
            "weights": weights(model, dtype, quantization),
            "adapter": 0 if own else parameters * FLOAT,
            "16-bit copies": parameters * BYTES[work.dtype] if own and work.mixed else 0,
            "gradients": parameters * FLOAT,
            "optimizer": finetuning.optimizer_bytes(parameters),
            "workspace": WORKSPACE,
            "activations": activations,
            **({"loss": loss} if loss > layer else {"one layer": layer}),
        }
    )


def quantizing(config: dict[str, Any], recipe: Quantization, dtype: str) -> Estimate:
    """Estimate the peak of quantizing a model: while it is calibrated or rounded, or compared with its parent.

    Args:
        config: the model's config.json.
        recipe: the quantization.
        dtype: dtype of the model during calibration (see `layerwise.load`).

    Raises:
        QuantuneError: if the model's architecture is not known.
    """
    model = read(config)
    recipe = recipe.resolved(layer_names.shapes(model, recipe.quantizes_head()))
    work, length, samples = recipe.workload(), PROBE_TOKENS, 1
    if work:
        length = work.length
        samples = min(work.samples, PROBE_SAMPLES, max(1, PROBE_SAMPLE_TOKENS // length))
        samples = max(1, min(samples, PROBE_LOGITS // (length * model.vocabulary)))
        rounding = calibration(config, work, dtype)
    else:
        largest = max(linear.inputs * linear.outputs for _, linear in model.linears())
        terms = {"embeddings": outside(model, "float32"), "rounding": ROUNDING * largest * FLOAT}
        rounding = Estimate(terms | {"workspace": WORKSPACE})
    return max(rounding, comparison(config, recipe, samples, length), key=lambda estimate: estimate.total)


def comparison(config: dict[str, Any], quantization: Quantization | None, batch: int, length: int) -> Estimate:
    """Estimate the peak of comparing two models in float32, with one layer of each on the device.

    Args:
        config: their config.json.
        quantization: the recipe of one of them, if it is quantized.
        batch: sequences that they read at once.
        length: tokens of each sequence.

    Raises:
        QuantuneError: if the model's architecture is not known.
    """
    model = read(config)
    step = Pass(model, batch, length, "float32", quantization)
    layers = max(model.layers, key=lambda layers: one_layer(layers, "float32"))
    widest = max(linear.outputs for linear in layers.linears)
    # an error needs the other layer's outputs, the change, and the outputs without bias
    errors = 3 * step.tokens(layers) * widest * FLOAT if quantization else 0
    head = step.logits("float32") + 2 * step.hidden(model.decoder)
    return Estimate(
        {
            "embeddings": (2 if quantization else 1) * outside(model, "float32"),
            "workspace": WORKSPACE,
            **_largest(logits=head, one_layer=one_layer(layers, "float32") + step.forward_peak(layers) + errors),
        }
    )


def outside(model: Architecture, dtype: str) -> int:
    """Return the bytes of the weights outside the layers."""
    parameters = model.parameters()
    projected = sum(linear.inputs * linear.outputs + linear.outputs * linear.bias for linear in model.projections)
    kept = parameters["embeddings"] + parameters["head"] + parameters["convolutions"] + model.final_norms + projected
    return kept * BYTES[dtype]


def one_layer(layers: Layers, dtype: str) -> int:
    """Return the bytes of the dense weights of one layer."""
    linears = sum(linear.inputs * linear.outputs + linear.outputs * linear.bias for linear in layers.linears)
    return (linears + layers.norm_parameters) * BYTES[dtype]


def calibration(config: dict[str, Any], work: Calibration, dtype: str) -> Estimate:
    """Estimate the peak of `quantizations.arithmetic.layerwise.stream`, which holds one layer at a time.

    With N calibration tokens, width H and s bytes a value: memory holds the hidden states N·H·s and the keyword
    arguments of each batch (token positions, 8·N; with RoPE the tables of cosines and sines), and the larger of
    - a layer that computes one batch, the Gram matrices (float32, columns x columns, one for each input that linear
      layers read), and one product that is added to them;
    - the Gram matrices, the fit of a group of layers that share an input, and the rounded layers of earlier groups.

    Args:
        config: the model's config.json.
        work: samples, length and the method's own working memory.
        dtype: dtype of the model during calibration (see `layerwise.load`).

    Raises:
        QuantuneError: if the model's architecture is not known.
    """
    model = read(config)
    layers = model.decoder
    in_batch = min(work.samples, max(1, BATCH_TOKENS // work.length))
    whole = Pass(model, work.samples, work.length, dtype)
    step = Pass(model, in_batch, work.length, dtype)
    tables = 2 * work.length * layers.head_size * BYTES[dtype] if layers.gated else 0
    groups: dict[str, list[Linear]] = {}
    for linear in layers.linears:
        groups.setdefault(linear.reads, []).append(linear)
    shapes = [(sum(linear.outputs for linear in group), group[0].inputs) for group in groups.values()]
    widest = max(columns for _, columns in shapes)
    grams = sum(columns * columns for _, columns in shapes) * FLOAT if work.gram else 0
    product = widest**2 * FLOAT if work.gram else 0
    copied = step.tokens(layers) * widest * FLOAT if dtype != "float32" else 0
    # the hidden states include the layer's input, and the embeddings are freed
    computing = step.forward_peak(layers) - (1 + model.embedded) * step.hidden(layers) + product + copied
    fitted, solving = 0, 0
    for rows, columns in shapes:
        solving = max(solving, fitted + work.solver_bytes(rows, columns))
        if not work.gram:
            continue  # nothing is kept until the layer is packed
        fitted += 0 if work.requantized and dtype == "float32" else rows * columns * FLOAT  # else the layer's own
        fitted += 2 * rows * (columns // work.group_size if work.group_size else 1) * FLOAT
    return Estimate(
        {
            "embeddings": outside(model, dtype),
            "weights of a layer": one_layer(layers, dtype),
            "hidden states": whole.hidden(layers),
            "keywords": 8 * whole.tokens(layers) + -(-work.samples // in_batch) * tables,
            "workspace": WORKSPACE,
            "Gram matrices": grams,
            **({"one layer": computing} if computing > solving else {"fitting": solving}),
        }
    )


def _largest(**terms: int) -> dict[str, int]:
    """Return only the largest term: the terms are never in memory at the same time."""
    name = max(terms, key=terms.__getitem__)
    return {name.replace("_", " "): terms[name]}


def _first(steps: Sequence[Recipe], kind: type) -> Any:
    return next((step for step in steps if isinstance(step, kind)), None)
