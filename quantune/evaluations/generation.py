"""Generations from fixed prompts, greedy, so that two variants can be read side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from quantune.evaluations import Evaluation
from quantune.memory import Estimate, inference
from quantune.recipe import Dtype, Recipe


class Generation(Evaluation):
    """Greedy continuations of fixed prompts."""

    kind: Literal["generation"]
    """Continue fixed prompts."""
    prompts: list[str] = Field(min_length=1)
    """The prompts."""
    max_new_tokens: int = Field(default=40, gt=0)
    """Tokens generated at most for each prompt."""
    dtype: Dtype = "float32"
    """Of the weights that are not packed, and of the computation."""

    def evaluate(self, variant, data: Path | None, folder: Path) -> dict[str, Any]:
        """Write `items.jsonl` (prompt, text, tokens); return how many there are."""
        import torch
        from tqdm import tqdm

        from quantune import loading

        tokenizer, loaded = loading.tokenizer(variant.base), variant.model(self.dtype)
        with (folder / "items.jsonl").open("w", encoding="utf-8") as file:
            for prompt in tqdm(self.prompts, desc="generating", unit="prompt"):
                inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(loaded.device)
                with torch.no_grad():
                    output = loaded.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
                new = output[0, inputs["input_ids"].shape[1] :]
                item = {"prompt": prompt, "text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        return {"kind": self.kind, "prompts": len(self.prompts)}

    def memory(self, config: dict[str, Any], steps: Sequence[Recipe]) -> Estimate:
        """One prompt at a time; a token is at least one character."""
        length = max(map(len, self.prompts)) + self.max_new_tokens
        return inference(config, steps, self.dtype, 1, length, cache=True, logits=1)
