"""Speed and memory of the OPT-1.3B architecture in float16, NF4, NF4 with double quantization, and GPTQ W4 g128.

    PYTHONPATH=. python benchmarks/decode_speed.py results.json

Weights are random: neither speed nor memory depends on them.
"""

import json
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

import pandas
import torch
from quantization_memory import OPT_1_3B, checkpoint, tokens

from quantune.evaluations.benchmark import Benchmark
from quantune.quantizations.bitsandbytes import NormalFloat4
from quantune.quantizations.gptq import GPTQ

KEYS = {"method": "nf4", "compute_dtype": "float16"}
VARIANTS = {
    "float16": None,
    "nf4": NormalFloat4(**KEYS),
    "nf4-double": NormalFloat4(**KEYS, double_quantization=True),
    "gptq-w4": GPTQ(method="gptq", dataset="random", samples=16, length=512),
}


def main(out: str) -> None:
    """Benchmark every variant at batch 1 and 16, prompt 512, 128 new tokens."""
    place = Path(tempfile.mkdtemp())
    parent, data, results = checkpoint(place / "parent", OPT_1_3B, 24), tokens(place / "data"), {}
    for name, recipe in VARIANTS.items():
        try:
            folder = parent
            if recipe:
                folder = place / name
                folder.mkdir()
                recipe.quantize(parent, folder, data, 0)
            measured = place / f"{name}-measured"
            measured.mkdir()
            benchmark = Benchmark(batch_sizes=[1, 16], prompt_lengths=[512], new_tokens=128, dtype="float16")
            result = benchmark.measure([folder], measured)
            items = pandas.read_parquet(measured / "items.parquet")
            items = items[~items.warmup].assign(rate=lambda rows: rows.tokens / rows.seconds)
            rates = items.groupby(["phase", "prompt_length", "batch_size"]).rate.agg(["median", "min", "max", "count"])
            results[name] = result | {"rates": json.loads(rates.reset_index().to_json(orient="records"))}
            print(name, rates, json.dumps(result)[:1500], flush=True)
        except Exception:
            traceback.print_exc()
            results[name] = {"error": traceback.format_exc()[-2000:]}
        Path(out).write_text(json.dumps(about() | {"variants": results}, indent=1) + "\n")


def about() -> dict:
    """Return the device, the package versions and the command of the measurement."""
    names = ("torch", "transformers", "compressed-tensors", "bitsandbytes")
    return {
        "device": torch.cuda.get_device_name(),
        "versions": {name: metadata.version(name) for name in names},
        "command": "PYTHONPATH=. python benchmarks/decode_speed.py",
    }


if __name__ == "__main__":
    main(sys.argv[1])
