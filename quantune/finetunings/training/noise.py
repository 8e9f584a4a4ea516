"""Noise on the embeddings during training (NEFTune: Jain et al., 2024, arXiv:2310.05914)."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt

import torch

from quantune.finetunings import Finetuning


@contextmanager
def noisy(model: torch.nn.Module, recipe: Finetuning) -> Iterator[None]:
    """Add uniform noise of at most alpha / sqrt(length x width) to the embeddings of a model in training mode."""

    def add(layer, _, states):
        if not layer.training:
            return states
        spread = recipe.embedding_noise / sqrt(states.shape[-2] * states.shape[-1])
        return states + torch.empty_like(states).uniform_(-spread, spread)

    hook = model.get_input_embeddings().register_forward_hook(add) if recipe.embedding_noise else None
    try:
        yield
    finally:
        if hook:
            hook.remove()
