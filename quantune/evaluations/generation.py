"""Generations from fixed prompts, to compare two variants side by side: greedy, or sampled with a seed.

A sampled text follows from the seed, the number of its prompt and its own number. It does not depend on other prompts.
"""

import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import LONGEST, Dtype, Entry, NonEmpty, Seed
from quantune.core.workload import Inference
from quantune.evaluations import Evaluation

TEMPLATE = 128
"""Tokens that a chat template adds to a prompt, assumed for estimates."""


class Sampling(Entry):
    """How tokens are drawn."""

    temperature: float = Field(default=1.0, ge=0.001, le=100)
    """Logits are divided by this before the draw; below 1 likely tokens become likelier."""
    top_k: int | None = Field(default=None, gt=0, le=10_000_000)
    """Draw from this number of the likeliest tokens only; null: from all. transformers' own default is 50."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability only; 1: from all."""
    samples: int = Field(default=1, gt=0, le=10_000)
    """Continuations of each prompt."""
    seed: Seed = 0
    """Seed of the draws."""

    def processor(self, prompt: int, sample: int):
        """Return the logits processor that draws the tokens of a sample of the prompt with this number."""
        from quantune.models.drawing import Draw

        digest = hashlib.sha256(f"{self.seed}:{prompt}:{sample}".encode()).digest()
        return Draw(int.from_bytes(digest[:7]), self.temperature, self.top_k, self.top_p)


class Generation(Evaluation):
    """Continuations of fixed prompts, greedy or sampled."""

    version: ClassVar[int] = 2
    neutral: ClassVar[frozenset[str]] = frozenset({"sampling", "chat"})

    kind: Literal["generation"]
    """Continue fixed prompts."""
    prompts: list[NonEmpty] = Field(min_length=1)
    """The prompts."""
    chat: bool = False
    """Whether each prompt is a user's message, written by the model's chat template; false: a text to continue."""
    max_new_tokens: int = Field(default=40, gt=0, le=LONGEST)
    """Tokens generated at most for each prompt."""
    sampling: Sampling | None = None
    """How tokens are drawn, such as {temperature: 0.8, samples: 3, seed: 1}; null: always the most likely token."""
    dtype: Dtype = "float32"
    """Dtype of the computation and of the weights that are not packed."""

    def evaluate(self, variant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Write `items.jsonl` (prompt, text, tokens; sample, if they are drawn); return the number of prompts.

        The text of a model whose logits are not finite is the reason, in parentheses.
        """
        import torch
        from tqdm import tqdm

        from quantune.core.errors import QuantuneError
        from quantune.data import chat, text
        from quantune.models import adapters, finite, loading

        tokenizer, loaded = loading.tokenizer(variant.base), variant.model(self.dtype)
        encoded = [(chat if self.chat else text).prompt(prompt, tokenizer) for prompt in self.prompts]
        longest = max(map(len, encoded)) + adapters.virtual_tokens(loaded)
        limit = getattr(loaded.config, "max_position_embeddings", None)
        if limit and longest + self.max_new_tokens > limit:
            reason = (
                f"{self.max_new_tokens} new tokens after a prompt of {longest} exceed the model's {limit} positions"
            )
            raise QuantuneError(f"{reason}; lower 'max_new_tokens' or shorten the prompt")
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        samples = range(self.sampling.samples) if self.sampling else [None]
        with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
            for number, sample in tqdm(list(product(range(len(encoded)), samples)), desc="generating", unit="text"):
                watch = finite.Watch()
                processors = [watch] if sample is None else [watch, self.sampling.processor(number, sample)]
                inputs = torch.tensor([encoded[number]], device=loaded.device)
                with torch.no_grad():
                    mask = torch.ones_like(inputs)
                    output = loaded.generate(inputs, attention_mask=mask, logits_processor=processors, **options)
                new = output[0, inputs.shape[1] :]
                item = {"prompt": self.prompts[number]} | ({} if sample is None else {"sample": sample})
                item |= {"text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}
                if watch.bad:
                    item |= {"text": f"({finite.reason(loaded)})", "tokens": 0}
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        return {"kind": self.kind, "prompts": len(self.prompts)}

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload: one prompt at a time; a token has at least one character. A chat template adds some."""
        length = max(map(len, self.prompts)) + self.max_new_tokens + (TEMPLATE if self.chat else 0)
        return Inference(self.dtype, 1, length, cache=True, logits=1)
