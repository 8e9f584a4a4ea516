"""Random draws of the next token that do not depend on the device.

Transformers' own sampling uses the generator of the device, and on a GPU some of its kernels have no deterministic
form. Here the logits of one token are copied to the CPU, filtered by transformers' own filters, and drawn from there.
"""

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


class Draw(LogitsProcessor):
    """A logits processor after which the most likely token is one that was drawn at random."""

    def __init__(self, seed: int, temperature: float, top_k: int | None, top_p: float):
        self.generator = torch.Generator().manual_seed(seed)
        self.filters = [TemperatureLogitsWarper(float(temperature))]
        self.filters += [TopKLogitsWarper(top_k)] if top_k else []
        self.filters += [TopPLogitsWarper(top_p)] if top_p < 1 else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores, shape (sequences, vocabulary), that leave one token; those that are not finite are kept."""
        logits = scores.float().cpu()
        if logits.isnan().any() or logits.isposinf().any():
            return scores
        for item in self.filters:
            logits = item(input_ids, logits)
        chosen = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)
        only = torch.full_like(logits, float("-inf")).scatter(-1, chosen, 0.0)
        return only.to(scores.device, scores.dtype)
