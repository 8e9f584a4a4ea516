"""Greedy generations from fixed prompts, to compare two variants side by side."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import LONGEST, Dtype, NonEmpty
from quantune.core.workload import Inference
from quantune.evaluations import Evaluation


class Generation(Evaluation):
    """Greedy continuations of fixed prompts."""

    version: ClassVar[int] = 2

    kind: Literal["generation"]
    """Continue fixed prompts."""
    prompts: list[NonEmpty] = Field(min_length=1)
    """The prompts."""
    max_new_tokens: int = Field(default=40, gt=0, le=LONGEST)
    """Tokens generated at most for each prompt."""
    dtype: Dtype = "float32"
    """Dtype of the computation and of the weights that are not packed."""

    def evaluate(self, variant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Write `items.jsonl` (prompt, text, tokens); return the number of prompts.

        The text of a model whose logits are not finite is the reason, in parentheses.
        """
        import torch
        from tqdm import tqdm

        from quantune.core.errors import QuantuneError
        from quantune.data import text
        from quantune.models import finite, loading

        tokenizer, loaded = loading.tokenizer(variant.base), variant.model(self.dtype)
        encoded = [text.prompt(prompt, tokenizer) for prompt in self.prompts]
        longest = max(map(len, encoded))
        limit = getattr(loaded.config, "max_position_embeddings", None)
        if limit and longest + self.max_new_tokens > limit:
            reason = (
                f"{self.max_new_tokens} new tokens after a prompt of {longest} exceed the model's {limit} positions"
            )
            raise QuantuneError(f"{reason}; lower 'max_new_tokens' or shorten the prompt")
        with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
            for prompt, ids in zip(tqdm(self.prompts, desc="generating", unit="prompt"), encoded, strict=True):
                watch = finite.Watch()
                inputs = torch.tensor([ids], device=loaded.device)
                options = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "logits_processor": [watch]}
                with torch.no_grad():
                    output = loaded.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
                new = output[0, inputs.shape[1] :]
                item = {"prompt": prompt, "text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}
                if watch.bad:
                    item |= {"text": f"({finite.reason(loaded)})", "tokens": 0}
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        return {"kind": self.kind, "prompts": len(self.prompts)}

    def workload(self, config: dict[str, Any]) -> Inference:
        """Return the workload: one prompt at a time; a token has at least one character."""
        length = max(map(len, self.prompts)) + self.max_new_tokens
        return Inference(self.dtype, 1, length, cache=True, logits=1)
