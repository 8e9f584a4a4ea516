"""The memory that a model takes, from its config.json and the recipes alone: no weights are read, no torch imported.

    >>> print(memory.inference(config, [nf4], "bfloat16", batch=8, length=2048))
    >>> print(memory.training(config, [nf4], lora))

An `Estimate` is a sum of named terms in bytes, to be compared with `torch.cuda.max_memory_allocated()`. What its
activations are is told in `quantune.activations`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from quantune.activations import BYTES, FLOAT, Pass
from quantune.architecture import Architecture, Linear, read
from quantune.calibration import BATCH_TOKENS, Calibrated
from quantune.finetunings import Finetuning
from quantune.quantizations import Quantization
from quantune.recipe import Recipe

WORKSPACE = 32 * 2**20
"""What PyTorch sets aside for cuBLAS, on a data-centre GPU and with the setting that deterministic runs need."""

PROBE = 512
"""Tokens of the probe text that a quantized model and its parent read, at most."""


@dataclass(frozen=True)
class Estimate:
    """Predicted peak memory of a model at work."""

    terms: dict[str, int]
    """What is there at the moment of the peak -> bytes."""

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
        dtype: of everything that is not quantized.
        quantization: recipe of the linear layers, if they are quantized.
    """
    parameters = model.parameters()
    if quantization is None:
        return sum(parameters.values()) * BYTES[dtype]
    packed = 0
    for count, linear in model.linears():
        tensors = quantization.layer_tensors(linear.outputs, linear.inputs).values()
        packed += count * sum(BYTES[kind or dtype] * prod(shape) for kind, shape in tensors)
    return packed + (sum(parameters.values()) - parameters["linears"]) * BYTES[dtype]


def trainable(model: Architecture, finetuning: Finetuning) -> int:
    """Return the number of parameters that a fine-tuning trains."""
    return sum(
        count * finetuning.layer_parameters(linear.outputs, linear.inputs)
        for count, linear in model.linears()
        if finetuning.targets(linear.name)
    )


def inference(
    config: dict[str, Any],
    steps: Sequence[Recipe],
    dtype: str,
    batch: int,
    length: int,
    cache: bool = False,
    logits: int | None = None,
) -> Estimate:
    """Estimate the peak of a forward pass without gradients: inside a layer, or when the logits are there.

    With an encoder and a cache it is reached in a layer of the encoder, before there is a cache, or afterwards, with
    the encoder's output; while a layer caches the keys and values of its cross-attention, they are there twice.

    Args:
        config: the model's config.json.
        steps: the recipes in effect: a quantization, a fine-tuning whose adapter lies on top, both or none.
        dtype: of the weights that are not packed, and of the computation.
        batch: sequences.
        length: tokens in each; with `cache`, all that it ends up with.
        cache: whether keys and values are kept, as in generation.
        logits: positions of each sequence whose logits are computed; None: all (1 in generation).

    Raises:
        QuantuneError: if the model's shape is not known.
    """
    model, quantization, finetuning = read(config), _first(steps, Quantization), _first(steps, Finetuning)
    step = Pass(model, batch, length, dtype, quantization, finetuning)
    head = step.logits(dtype, logits) + 2 * step.hidden(model.decoder)  # before and after the last norm
    own = {
        "weights": weights(model, dtype, quantization),
        "adapter": trainable(model, finetuning) * FLOAT if finetuning else 0,
        "workspace": WORKSPACE,
    }
    kept = {"cache": step.cache()} if cache else {}
    if not (cache and model.encoder):
        return Estimate(own | kept | _largest(logits=head, one_layer=max(map(step.at_work, model.layers))))
    encoding = Estimate(own | {"one layer": step.at_work(model.encoder)})
    heard, cached = step.hidden(model.encoder), 2 * step.hidden(model.encoder)
    kept |= {"encoder output": heard}
    decoding = Estimate(own | kept | _largest(logits=head, one_layer=max(step.at_work(model.decoder), cached)))
    return max(encoding, decoding, key=lambda estimate: estimate.total)


def training(config: dict[str, Any], steps: Sequence[Recipe], finetuning: Finetuning) -> Estimate:
    """Estimate the peak of `quantune.training.train`.

    It is reached as the backward pass begins, in every step but the first: all activations are kept, and the loss
    (`ForCausalLMLoss`) holds the float32 log-probabilities, their gradient and that of the logits. With gradient
    checkpointing only the inputs of layers and of the last norm are kept, and the peak may be reached within a layer
    that is recomputed.

    Args:
        config: the model's config.json.
        steps: the recipes in effect before: a quantization, or none.
        finetuning: what is trained, batch size and length, precision, gradient checkpointing.

    Raises:
        QuantuneError: if the model's shape is not known.
    """
    model, quantization = read(config), _first(steps, Quantization)
    dtype = finetuning.precision
    step = Pass(model, finetuning.batch_size, finetuning.length, dtype, quantization, finetuning)
    parameters, loss = trainable(model, finetuning), 3 * step.logits("float32")
    if finetuning.gradient_checkpointing:
        activations = sum(layers.count * step.hidden(layers) + step.norm(layers) for layers in model.layers)
        layer = max(step.kept(layers) + step.gradients(layers) for layers in model.layers)
    else:
        activations, layer = sum(layers.count * step.kept(layers) for layers in model.layers), 0
    return Estimate(
        {
            "weights": weights(model, dtype, quantization),
            "adapter": parameters * FLOAT,
            "gradients": parameters * FLOAT,
            "optimizer": 2 * parameters * FLOAT,  # AdamW: the gradient's mean and mean square
            "workspace": WORKSPACE,
            "activations": activations,
            **({"loss": loss} if loss > layer else {"one layer": layer}),
        }
    )


def calibration(config: dict[str, Any], method: Calibrated, dtype: str) -> Estimate:
    """Estimate the peak of `quantune.layerwise.stream`: in the last layer, when all others have their grids.

    With N calibration tokens, width H and s bytes a value: the hidden states N·H·s and the keywords that each batch is
    called with (token positions, 8·N; with RoPE the tables of cosines and sines of each batch). To them comes the
    larger of
    - a layer at work on one batch, with the Gram matrices (one of columns x columns, float32, for each input that
      linear layers read) and one product more, about to be added to them;
    - the Gram matrices, and fitting the largest group of layers that share an input.

    Args:
        config: the model's config.json.
        method: the recipe: samples, length and the method's own working memory.
        dtype: of the model while it is calibrated (see `layerwise.load`).

    Raises:
        QuantuneError: if the model's shape is not known.
    """
    model = read(config)
    layers, parameters = model.decoder, model.parameters()
    in_batch = min(method.samples, max(1, BATCH_TOKENS // method.length))
    whole = Pass(model, method.samples, method.length, dtype)
    step = Pass(model, in_batch, method.length, dtype)
    tables = 2 * method.length * layers.head_size * BYTES[dtype] if layers.gated else 0
    groups: dict[str, list[Linear]] = {}
    for linear in layers.linears:
        groups.setdefault(linear.reads, []).append(linear)
    shapes = [(sum(linear.outputs for linear in group), group[0].inputs) for group in groups.values()]
    grams = sum(columns * columns for _, columns in shapes) * FLOAT
    widest = max(columns for _, columns in shapes)
    copied = step.tokens(layers) * widest * FLOAT if dtype != "float32" else 0
    # a layer's input is one of the hidden states, and the embeddings are gone
    at_work = step.at_work(layers) - (1 + model.embedded) * step.hidden(layers) + widest * widest * FLOAT + copied
    solving = max(method.solver_bytes(*shape) for shape in shapes)
    dense = 0 if method.requantized and dtype == "float32" else parameters["linears"] * FLOAT  # else the model's own
    grids = 2 * sum(
        count * linear.outputs * (linear.inputs // method.group_size if method.group_size else 1) * FLOAT
        for count, linear in model.linears()
    )
    return Estimate(
        {
            "weights": weights(model, dtype),
            "grids": grids + dense,
            "hidden states": whole.hidden(layers),
            "keywords": 8 * whole.tokens(layers) + -(-method.samples // in_batch) * tables,
            "workspace": WORKSPACE,
            "Gram matrices": grams,
            **({"one layer": at_work} if at_work > solving else {"fitting": solving}),
        }
    )


def _largest(**terms: int) -> dict[str, int]:
    """Return the larger term alone; what is never there at once is not added up."""
    name = max(terms, key=terms.__getitem__)
    return {name.replace("_", " "): terms[name]}


def _first(steps: Sequence[Recipe], kind: type) -> Any:
    return next((step for step in steps if isinstance(step, kind)), None)
