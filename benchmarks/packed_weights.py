"""Memory, decoding speed and LoRA training with packed weights on the OPT-1.3B architecture: float16, GPTQ and AWQ
(W4 g128) and NF4.

    PYTHONPATH=. python benchmarks/packed_weights.py results.json

Weights are random: neither speed nor memory depends on them. The script loads and trains all variants first,
then decodes. It skips, with a message, the decoding that would exceed six minutes in all. A second argument, `small`,
is a quick test of the script.
"""

import gc
import json
import platform
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

import pandas
import torch
from quantization_memory import OPT_1_3B, checkpoint, tokens

from quantune.data import text
from quantune.evaluations.benchmark import Benchmark
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop
from quantune.models import loading
from quantune.models.meters import Memory, tensor_bytes
from quantune.quantizations.awq import AWQ
from quantune.quantizations.bitsandbytes import NormalFloat4
from quantune.quantizations.gptq import GPTQ

SMALL = sys.argv[2:] == ["small"]
LAYERS, STEPS, LIMIT = (1, 2, 600) if SMALL else (24, 20, 340)  # LIMIT: seconds
TRAINED = {"batch_size": 2, "length": 32} if SMALL else {"batch_size": 8, "length": 512}
DECODED = {"prompt_lengths": [16], "new_tokens": 4} if SMALL else {"prompt_lengths": [512], "new_tokens": 128}
CALIBRATED = {"dataset": "random", "samples": 2 if SMALL else 16, "length": 64 if SMALL else 512}
VARIANTS = {
    "float16": None,
    "gptq-w4": GPTQ(method="gptq", **CALIBRATED),
    "awq-w4": AWQ(method="awq", **CALIBRATED),
    "nf4": NormalFloat4(method="nf4", compute_dtype="float16"),
    "nf4-bfloat16": NormalFloat4(method="nf4", compute_dtype="bfloat16"),
}
BEGAN = time.time()


def loaded_bytes(folder: Path, dtype: str) -> dict:
    """Return the device memory in bytes of a variant after loading, and after a first run."""
    memory = Memory(loading.device())
    model = loading.model([folder], dtype)
    loaded = {"tensors": tensor_bytes(model), "measured": memory.used()}
    with torch.no_grad():
        model(input_ids=torch.ones(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    return {"loaded_bytes": loaded, "running_bytes": {"tensors": tensor_bytes(model), "measured": memory.used()}}


def train(folder: Path) -> dict:
    """Train a LoRA of rank 16 on queries and values in bfloat16; return peak memory and speed after a warm-up."""
    recipe = LoRA(method="lora", dataset="any", steps=STEPS, rank=16, precision="bfloat16", save_every=1000, **TRAINED)
    memory, scratch = Memory(loading.device()), Path(tempfile.mkdtemp())
    model = loading.model([folder], recipe.precision)
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    blocks = text.Blocks(torch.randint(3, 12000, (STEPS * recipe.batch_size, recipe.length)).numpy())
    ways = [recipe.model_copy(update={"steps": 2}), recipe]
    for way in ways:
        memory.reset_peak()
        started = time.time()
        loop.train(model, way, 0, blocks, None, scratch, scratch)
        seconds = time.time() - started
    return {
        "recipe": {"rank": recipe.rank, "steps": STEPS, **TRAINED, "precision": recipe.precision},
        "peak_bytes": memory.peak(),
        "samples_per_second": STEPS * recipe.batch_size / seconds,
    }


def decode(folder: Path, batch: int) -> dict:
    """Return peaks, the decoder, and tokens a second of prefill and decode at one batch size, in float16."""
    place = Path(tempfile.mkdtemp())
    result = Benchmark(batch_sizes=[batch], dtype="float16", **DECODED).measure([folder], place)
    runs = pandas.read_parquet(place / "items.parquet")
    rates = runs[~runs.warmup].assign(rate=lambda rows: rows.tokens / rows.seconds).groupby("phase").rate
    return result["points"][0] | {"tokens_per_second": rates.agg(["median", "min", "max", "count"]).to_dict("index")}


def measure(results: dict, out: Path, name: str, task: str, work, *arguments) -> float:
    """Store the result of `work`, or its error, in the results, write them, and return the seconds of the call."""
    started = time.time()
    try:
        result = work(*arguments)
    except Exception:
        traceback.print_exc()
        result = {"error": traceback.format_exc()[-2000:]}
    results["variants"].setdefault(name, {})[task] = result
    out.write_text(json.dumps(results, indent=1) + "\n")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"{time.time() - BEGAN:.0f} s: {name}, {task}: {json.dumps(result)[:600]}", flush=True)
    return time.time() - started


def main(out: Path) -> None:
    """Make the variants; load, train and decode them."""
    place, results = Path(tempfile.mkdtemp()), about() | {"variants": {}}
    parent, data, folders = checkpoint(place / "float16", OPT_1_3B, LAYERS), tokens(place / "data"), {}
    for name, recipe in VARIANTS.items():
        folders[name] = place / name
        if recipe:
            folders[name].mkdir()
            recipe.quantize(parent, folders[name], data, 0)
        print(f"{time.time() - BEGAN:.0f} s: {name} made", flush=True)
    compared = [name for name in VARIANTS if name != "nf4-bfloat16"]  # NF4 for training only
    for name in compared:
        measure(results, out, name, "memory", loaded_bytes, folders[name], "float16")
        measure(results, out, name, "training", train, folders["nf4-bfloat16" if name == "nf4" else name])
    longest = 0.0
    for batch in (1, 16):
        for name in compared:
            if time.time() - BEGAN + longest > LIMIT:
                print(f"{name}, batch {batch}: no time left", flush=True)
                continue
            seconds = measure(results, out, name, f"decoding, batch {batch}", decode, folders[name], batch)
            longest = max(longest, seconds)


def about() -> dict:
    """Return the device, the package versions and the command of the measurement."""
    names = ("torch", "transformers", "peft", "compressed-tensors", "bitsandbytes")
    return {
        "model": f"OPT-1.3B architecture, {LAYERS} layers, random weights",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {name: metadata.version(name) for name in names},
        "command": "PYTHONPATH=. python benchmarks/packed_weights.py",
        "decoded": DECODED,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
