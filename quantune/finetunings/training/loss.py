"""The loss of a causal language model, without all logits in memory at once.

The product with the output embedding, the cross-entropy and their gradient are computed for some rows at a time, as in
Liger kernels (Hsu et al., 2024, arXiv:2410.10989). A vocabulary of 50,000 and 16,384 tokens would otherwise take 1.6 GB
of logits in 16 bits, and four copies of it in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from quantune.core.workload import LOSS_CHUNK
from quantune.data.batches import IGNORED

SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Keys of config.json of models that change the logits after the product with the output embedding."""


@contextmanager
def fused(model: torch.nn.Module) -> Iterator[None]:
    """Let a causal language model compute its loss in chunks; inside, its `logits` are the hidden states.

    Models keep their own loss if they change the logits after the product, or if the output embedding is trained.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = any(getattr(config, key, None) for key in SCALED)
    plain = type(head) is torch.nn.Linear and not any(value.requires_grad for value in head.parameters())
    if model.config.is_encoder_decoder or not plain or scaled:
        yield
        return
    own = model.loss_function
    head.forward = lambda states: states
    model.loss_function = lambda logits, labels, *_, **more: causal(logits, labels, head)
    try:
        yield
    finally:
        del head.forward
        model.loss_function = own


def causal(states: torch.Tensor, labels: torch.Tensor, head: torch.nn.Linear) -> torch.Tensor:
    """Return the mean negative log-likelihood of the labels, in nats, computed in float32: a scalar.

    Args:
        states: hidden states before the output embedding, shape (batch, length, features).
        labels: token ids, shape (batch, length); position i predicts label i + 1; `IGNORED` is not counted.
        head: the output embedding, which is not trained.
    """
    targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:].reshape(-1).to(states.device)
    states, weight, bias, context = states.reshape(-1, states.shape[-1]), head.weight, head.bias, nullcontext()
    if states.dtype == torch.float16:
        states = states.float()  # the gradient is scaled later; until then float16 would lose small values
    if states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # a CPU is slow in 16 bits
        context = torch.autocast("cpu", enabled=False)
        states, weight, bias = (None if value is None else value.float() for value in (states, weight, bias))
    with context:
        return _CrossEntropy.apply(states, weight, bias, targets)


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over rows of hidden states; their gradient is computed with the loss, in chunks."""

    @staticmethod
    def forward(ctx, states, weight, bias, targets):
        kept = targets != IGNORED
        count, total = kept.sum(), torch.zeros((), device=states.device)
        gradient = torch.empty_like(states) if states.requires_grad else None
        size = max(1, LOSS_CHUNK // len(weight))
        for first in range(0, len(states), size):
            rows = slice(first, first + size)
            loss, slope = _rows(states[rows], weight, bias, targets[rows], kept[rows], states.requires_grad)
            total += loss
            if gradient is not None:
                gradient[rows] = slope.to(gradient.dtype) / count
        ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx, slope):
        return ctx.saved_tensors[0] * slope, None, None, None


def _rows(states, weight, bias, targets, kept, with_slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed loss of some rows, and its gradient with respect to their hidden states."""
    logits = torch.nn.functional.linear(states, weight, bias)
    if not logits.is_cuda:
        logits = logits.float()  # a GPU casts inside the kernel
    chances = logits.log_softmax(-1, dtype=torch.float32)
    del logits
    place = torch.arange(len(chances), device=states.device), targets.clamp(min=0)
    likely = chances[place]
    loss = -(likely * kept).sum()
    if not with_slope:
        return loss, None
    slope = chances.exp_().to(states.dtype)
    slope[place] = (likely.exp() - 1).to(slope.dtype)
    return loss, (slope @ weight).mul_(kept[:, None])
