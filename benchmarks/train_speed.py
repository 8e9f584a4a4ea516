"""Measure the speed and the peak memory of LoRA training: OPT-1.3B's shape with random weights, 8 x 2,048 tokens.

    python benchmarks/train_speed.py > benchmarks/results/train-speed-h100.json
    python benchmarks/train_speed.py --before ../older-checkout     # its training loop, too, in the same run

Each row is a process of its own. Steps are timed between two synchronized batches; the median of the steps after the
fourth is given. On a CPU a tiny shape is used, to try the script.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = {
    "as it is": {},
    "deterministic: false": {"deterministic": False},
    "compile: true": {"compile": True},
    "compile: true, deterministic: false": {"compile": True, "deterministic": False},
    "gradient_checkpointing: true": {"gradient_checkpointing": True},
    "gradient_checkpointing: true, compile: true": {"gradient_checkpointing": True, "compile": True},
}
OLD = [name for name in ROWS if "compile" not in name]


def measured(keys: dict) -> dict:
    """Return the speed and the peak of training with these keys of the recipe."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, OPTConfig

    from quantune.data import text
    from quantune.finetunings.lora import LoRA
    from quantune.finetunings.training import loop

    with contextlib.suppress(ImportError):
        from quantune.finetunings.training.loss import fused
    torch.use_deterministic_algorithms(keys.pop("deterministic", True))
    torch.utils.deterministic.fill_uninitialized_memory = False
    gpu = torch.cuda.is_available()
    width, layers, heads, vocabulary, batch, length = (2048, 24, 32, 50272, 8, 2048) if gpu else (64, 2, 4, 500, 2, 32)
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary}
    config = OPTConfig(max_position_embeddings=2048, dropout=0.0, use_cache=False, **sizes)
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tuning = {"method": "lora", "dataset": "random", "validation_split": None, "target_modules": "all-linear"}
    sequences = {"precision": "bfloat16", "batch_size": batch, "length": length, "steps": 24 if gpu else 8}
    recipe = LoRA(**tuning, **sequences, evaluate_every=1000, save_every=1000, **keys)
    model = recipe.prepare(model, 0)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    data = text.Blocks((numpy.random.default_rng(0).zipf(1.3, (4 * batch, length)) % vocabulary).astype("int64"))
    stamps, plain = [], data.batch

    def stamped(examples):
        if gpu:
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())
        return plain(examples)

    data.batch, folder = stamped, Path(tempfile.mkdtemp())
    with fused(model) if "fused" in locals() else contextlib.nullcontext():
        facts = loop.train(model, recipe, 0, data, None, folder, folder)
    seconds = sorted(after - before for before, after in itertools.pairwise(stamps[4:]))
    median = seconds[len(seconds) // 2]
    peak = torch.cuda.max_memory_allocated() if gpu else None
    return {"tokens_per_second": round(batch * length / median), "step_seconds": median, "peak_bytes": peak} | {
        "train_loss": facts["train_loss"],
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def main() -> None:
    """Run each row in a process of its own and print all as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", help="a checkout of an older version")
    parser.add_argument("--row")
    arguments = parser.parse_args()
    if arguments.row:
        sys.path.insert(0, arguments.before or str(ROOT))
        print(json.dumps(measured(json.loads(arguments.row))))
        return
    rows = []
    codes = [("before", arguments.before)] if arguments.before else []
    for version, code in [*codes, ("now", None)]:
        for name in ROWS if code is None else OLD:
            command = [sys.executable, __file__, "--row", json.dumps(ROWS[name]), *(["--before", code] if code else [])]
            print(f"{version}, {name}", file=sys.stderr)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"version": version, "keys": name} | json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps({"command": "python benchmarks/train_speed.py --before ...", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
