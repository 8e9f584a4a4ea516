"""Generate with vLLM from an export, and compare with the greedy text that transformers generates from it.

    PYTHONPATH=. python benchmarks/vllm_generation.py work/exports/VARIANT/compressed-tensors results.json

Needs vLLM in the environment (it pins its own torch, so it has an environment of its own) and a GPU. Rounding differs
between kernels, so texts may part after some tokens; the script writes how many tokens are equal, and exits with 1 if a
text parts within its first `LEAST` tokens.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

PROMPTS = ("The wind blew over the harbour, and", "Water boils at", "def add(a, b):", "In the year 1900, the city of")
NEW_TOKENS, LEAST = 64, 4


def main(folder: str, out: str) -> None:
    """Write the texts of both, the equal tokens at their beginnings, and vLLM's tokens per second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cuda")
    reference = []
    for ids in prompts:
        made = model.generate(torch.tensor([ids], device="cuda"), max_new_tokens=NEW_TOKENS, do_sample=False)
        reference.append(made[0, len(ids) :].tolist())
    del model
    torch.cuda.empty_cache()
    server = LLM(folder, dtype="float16", gpu_memory_utilization=0.5, max_model_len=512)
    greedy = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    inputs = [{"prompt_token_ids": ids} for ids in prompts]
    server.generate(inputs, greedy)  # compiles
    started = time.time()
    outputs = [list(answer.outputs[0].token_ids) for answer in server.generate(inputs, greedy)]
    seconds = time.time() - started
    rows = [
        {
            "prompt": prompt,
            "vllm": tokenizer.decode(output),
            "transformers": tokenizer.decode(expected),
            "equal_tokens": equal(output, expected),
            "tokens": len(expected),
        }
        for prompt, output, expected in zip(PROMPTS, outputs, reference, strict=True)
    ]
    versions = {name: metadata.version(name) for name in ("vllm", "torch", "transformers", "compressed-tensors")}
    result = {"folder": folder, "device": torch.cuda.get_device_name(), "packages": versions, "prompts": rows}
    result |= {"tokens_per_second": sum(map(len, outputs)) / seconds}
    Path(out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))
    sys.exit(any(row["equal_tokens"] < min(LEAST, row["tokens"]) for row in rows))


def equal(first: list[int], second: list[int]) -> int:
    """Return how many tokens at the beginnings of two lists are equal."""
    pairs = list(zip(first, second, strict=False))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))


if __name__ == "__main__":
    main(*sys.argv[1:])
