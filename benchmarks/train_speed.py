"""Measure the speed and the peak memory of LoRA training: OPT-1.3B's shape with random weights, 8 x 2,048 tokens.

    python benchmarks/train_speed.py > benchmarks/results/train-speed-h100.json
    python benchmarks/train_speed.py --before ../older-checkout     # its training loop, too, in the same run

Each row is a process of its own. The time of the steps after the sixth is given, as one span: nothing waits between
steps that would not wait in a training. On a CPU a tiny shape is used, to try the script.
"""

import argparse
import contextlib
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
    "deterministic: false, attention: cudnn": {"deterministic": False, "attention": "cudnn"},
    "compile: true": {"compile": True},
    "compile: true, deterministic: false": {"compile": True, "deterministic": False},
    "gradient_checkpointing: true": {"gradient_checkpointing": True},
    "gradient_checkpointing: true, compile: true": {"gradient_checkpointing": True, "compile": True},
    "gradient_checkpointing: true, deterministic: false, attention: cudnn": {
        "gradient_checkpointing": True,
        "deterministic": False,
        "attention": "cudnn",
    },
    "NF4": {"quantized": True},
    "NF4, gradient_checkpointing: true": {"quantized": True, "gradient_checkpointing": True},
}
OLD = [name for name in ROWS if "cudnn" not in name]
STEPS, WARM = 24, 6  # steps in all, and before the first that is timed


def measured(keys: dict) -> dict:
    """Return the speed and the peak of training with these keys of the recipe."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM, OPTConfig

    from quantune.data import text
    from quantune.finetunings.lora import LoRA
    from quantune.finetunings.training import loop, precision

    with contextlib.suppress(ImportError):
        from quantune.finetunings.training.loss import fused
    torch.use_deterministic_algorithms(keys.pop("deterministic", True))
    quantized = keys.pop("quantized", False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    gpu = torch.cuda.is_available()
    if not gpu and "attention" in keys:
        keys["attention"] = "math"
    width, layers, heads, vocabulary, batch, length = (2048, 24, 32, 50272, 8, 2048) if gpu else (64, 2, 4, 500, 2, 32)
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocabulary}
    config = OPTConfig(max_position_embeddings=2048, dropout=0.0, use_cache=False, **sizes)
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if quantized:
        from transformers import BitsAndBytesConfig

        place = tempfile.mkdtemp()
        model.save_pretrained(place)
        scheme = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16, quantization_config=scheme)
        model.config.use_cache = False
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    tuning = {"method": "lora", "dataset": "random", "validation_split": None, "target_modules": "all-linear"}
    sequences = {"precision": "bfloat16", "batch_size": batch, "length": length, "steps": STEPS}
    recipe = LoRA(**tuning, **sequences, evaluate_every=1000, save_every=1000, **keys)
    model = recipe.prepare(model, 0)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    data = text.Blocks((numpy.random.default_rng(0).zipf(1.3, (4 * batch, length)) % vocabulary).astype("int64"))
    plain, started = data.batch, []

    def counted(examples):
        started.append(None)
        if len(started) == WARM + 1:
            if gpu:
                torch.cuda.synchronize()
            started[-1] = time.perf_counter()
        return plain(examples)

    data.batch, folder = counted, Path(tempfile.mkdtemp())
    attending = getattr(precision, "attending", lambda recipe: contextlib.nullcontext())(recipe)
    with attending, fused(model) if "fused" in locals() else contextlib.nullcontext():
        facts = loop.train(model, recipe, 0, data, None, folder, folder)
    if gpu:
        torch.cuda.synchronize()
    step = (time.perf_counter() - started[WARM]) / (STEPS - WARM)
    peak = torch.cuda.max_memory_allocated() if gpu else None
    return {"tokens_per_second": round(batch * length / step), "step_seconds": round(step, 4), "peak_bytes": peak} | {
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
            print(json.dumps(rows[-1]), file=sys.stderr)  # in case the run is cut off
    print(json.dumps({"command": "python benchmarks/train_speed.py --before ...", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
