"""The loss of a language or speech model, without all logits in memory at once.

The product with the output embedding, the cross-entropy and their gradient are computed for some rows at a time, as in
Liger kernels (Hsu et al., 2024, arXiv:2410.10989). A vocabulary of 50,000 and 16,384 tokens would otherwise take 1.6 GB
of logits in 16 bits, and four copies of it in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from quantune.core.workload import LOSS_CHUNK
from quantune.data.batches import IGNORED

SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys of config.json of models that change the logits after the product with the output embedding."""


@contextmanager
def fused(model: torch.nn.Module, smoothing: float = 0.0) -> Iterator[None]:
    """Let a model compute its loss in chunks; inside, its `logits` are the hidden states.

    Models keep their own loss if they change the logits after the product, or if the output embedding is trained or
    quantized.
    `smoothing` is the probability that the loss spreads over all tokens, while the model is in training mode.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = any(getattr(config, key, None) for key in SCALED)
    if scaled or type(head) is not torch.nn.Linear or any(value.requires_grad for value in head.parameters()):
        hook = model.register_forward_hook(partial(_smoothed, smoothing), with_kwargs=True) if smoothing else None
        try:
            yield
        finally:
            if hook:
                hook.remove()
        return

    def loss(logits, labels, *_, **more):
        targets = labels if config.is_encoder_decoder else torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
        return cross_entropy(logits, targets, head, smoothing if model.training else 0.0)

    head.forward = lambda states: states
    own, taken, hooks = model.loss_function, [], ()
    model.loss_function = loss
    if config.is_encoder_decoder:  # Whisper does not call its loss function
        hooks = (
            model.register_forward_pre_hook(partial(_take_labels, taken), with_kwargs=True),
            model.register_forward_hook(partial(_add_loss, taken, loss)),
        )
    try:
        yield
    finally:
        del head.forward
        model.loss_function = own
        for hook in hooks:
            hook.remove()


def _take_labels(taken: list, model, args: tuple, inputs: dict) -> tuple:
    """Keep the labels from an encoder-decoder model, and give it its decoder's input, as it would make it."""
    labels = inputs.pop("labels", None)
    taken.append(labels)
    if labels is not None and inputs.get("decoder_input_ids") is None:
        begin, padding = model.config.decoder_start_token_id, model.config.pad_token_id
        inputs["decoder_input_ids"] = shift_tokens_right(labels, padding, begin)
    return args, inputs


def _add_loss(taken: list, loss: Callable, model, _, output):
    """Put the loss of the labels that were taken into the output of an encoder-decoder model."""
    labels = taken.pop()
    if labels is not None:
        output.loss = loss(output.logits, labels)
    return output


def _smoothed(smoothing: float, model, _, inputs: dict, output):
    """Put the loss with smoothed labels into a model's output, in training mode."""
    if model.training and inputs.get("labels") is not None:
        labels, logits = inputs["labels"], output.logits
        if not model.config.is_encoder_decoder:
            labels = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        labels = labels.flatten().to(logits.device)
        output.loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), labels, ignore_index=IGNORED, label_smoothing=smoothing
        )
    return output


def cross_entropy(
    states: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear, smoothing: float = 0.0
) -> torch.Tensor:
    """Return the mean negative log-likelihood of the targets, in nats, computed in float32: a scalar.

    Args:
        states: hidden states before the output embedding, shape (batch, length, features).
        targets: token ids, shape (batch, length); `IGNORED` is not counted.
        head: the output embedding, which is not trained.
        smoothing: probability that is spread evenly over all tokens (Szegedy et al., 2016, arXiv:1512.00567).
    """
    targets = targets.reshape(-1).to(states.device)
    states, weight, bias, context = states.reshape(-1, states.shape[-1]), head.weight, head.bias, nullcontext()
    if states.dtype == torch.float16:
        states = states.float()  # the gradient is scaled later; until then float16 would lose small values
    if states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # a CPU is slow in 16 bits
        context = torch.autocast("cpu", enabled=False)
        states, weight, bias = (None if value is None else value.float() for value in (states, weight, bias))
    with context:
        return _CrossEntropy.apply(states, weight, bias, targets, smoothing)


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over rows of hidden states; their gradient is computed with the loss, in chunks."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets, smoothing):
        kept = targets != IGNORED
        count, total = kept.sum(), torch.zeros((), device=states.device)
        gradient = torch.empty_like(states) if states.requires_grad else None
        size = max(1, LOSS_CHUNK // len(weight))
        for first in range(0, len(states), size):
            rows = slice(first, first + size)
            loss, slope = _rows(states[rows], weight, bias, targets[rows], kept[rows], smoothing, states.requires_grad)
            total += loss
            if gradient is not None:
                gradient[rows] = slope.to(gradient.dtype) / count
        ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx, slope):
        return ctx.saved_tensors[0] * slope, None, None, None, None


def _rows(
    states, weight, bias, targets, kept, smoothing: float, with_slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed loss of some rows, and its gradient with respect to their hidden states."""
    logits = torch.nn.functional.linear(states, weight, bias)
    if not logits.is_cuda:
        logits = logits.float()  # a GPU casts inside the kernel
    chances = logits.log_softmax(-1, dtype=torch.float32)
    del logits
    place = torch.arange(len(chances), device=states.device), targets.clamp(min=0)
    likely = chances[place]
    spread = smoothing / chances.shape[-1]  # the part of the probability that each token has
    loss = -(likely * kept).sum()
    if smoothing:
        loss = (1 - smoothing) * loss - spread * (chances.sum(-1) * kept).sum()
    if not with_slope:
        return loss, None
    slope = (chances.exp_().sub_(spread) if smoothing else chances.exp_()).to(states.dtype)
    slope[place] = (likely.exp() - (1 - smoothing) - spread).to(slope.dtype)
    return loss, (slope @ weight).mul_(kept[:, None])
