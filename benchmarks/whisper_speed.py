"""Speed and memory of Whisper-large-v2's architecture in float16, int8 and NF4.

    PYTHONPATH=. python benchmarks/whisper_speed.py results.json

Weights and windows are random: neither speed nor memory depends on them. Variants in results.json are skipped.
"""

import json
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

import pandas
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from whisper_large import SHAPE

from quantune.evaluations.benchmark import Benchmark
from quantune.quantizations.bitsandbytes import Int8, NormalFloat4

VARIANTS = {
    "float16": None,
    "int8": Int8(method="int8"),
    "nf4": NormalFloat4(method="nf4", compute_dtype="float16"),
}
SWEEP = Benchmark(batch_sizes=[1, 8, 16], new_tokens=128, dtype="float16")


def main(out: str) -> None:
    """Benchmark every variant that the results do not hold yet: windows of 30 s, 128 new tokens for each."""
    place = Path(tempfile.mkdtemp())
    results = json.loads(Path(out).read_text())["variants"] if Path(out).exists() else {}
    parent = place / "parent"
    with torch.device("cuda"):
        model = WhisperForConditionalGeneration._from_config(WhisperConfig(**SHAPE), dtype=torch.float16)
    model.save_pretrained(parent)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(parent)
    del model
    for name, recipe in ((name, recipe) for name, recipe in VARIANTS.items() if name not in results):
        try:
            folder = parent
            if recipe:
                folder = place / name
                folder.mkdir()
                recipe.quantize(parent, folder, None, 0)
            measured = place / f"{name}-measured"
            measured.mkdir()
            result = SWEEP.measure([folder], measured)
            items = pandas.read_parquet(measured / "items.parquet")
            seconds = items[~items.warmup].groupby(["phase", "batch_size"]).seconds
            seconds = seconds.agg(["median", "min", "max", "count"])
            results[name] = result | {"seconds": json.loads(seconds.reset_index().to_json(orient="records"))}
            print(name, seconds, flush=True)
        except Exception:
            traceback.print_exc()
            results[name] = {"error": traceback.format_exc()[-2000:]}
        Path(out).write_text(json.dumps(about() | {"variants": results}, indent=1) + "\n")


def about() -> dict:
    """Return the hardware, the package versions and the command of the measurement."""
    names = ("torch", "transformers", "compressed-tensors", "bitsandbytes")
    return {
        "hardware": torch.cuda.get_device_name(),
        "versions": {name: metadata.version(name) for name in names},
        "command": "PYTHONPATH=. python benchmarks/whisper_speed.py results.json",
    }


if __name__ == "__main__":
    main(sys.argv[1])
