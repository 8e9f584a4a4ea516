"""Layers with 8 bits on a GPU: products of codes against those of a CPU, speed by tokens, and a whole model.

    PYTHONPATH=. python benchmarks/eight_bits.py results.json

1. `products`: sums of int8 codes must equal those of the CPU; those of FP8 may differ by the order of additions.
2. `layers`: milliseconds of a layer (4096 inputs, 4096 outputs) in bfloat16, by the number of tokens, beside the dense
   one.
3. `models`: the OPT-1.3B architecture with random weights, in bfloat16: prefill and decode, and bytes.
4. `quality`: opt-2m by each method on the probe text; loss and errors of layers on the GPU beside those of the CPU.
   They come from one machine: the CPU's are computed in a process of its own without the GPU.

About five minutes on one H100. A second argument, `small`, is a quick test of the script on a CPU.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import traceback
from importlib import metadata
from pathlib import Path

import pandas
import torch
from quantization_memory import checkpoint

from quantune.evaluations.benchmark import Benchmark
from quantune.models import eight_bit_linear as eight
from quantune.models import loading
from quantune.models.meters import seconds
from quantune.quantizations.arithmetic import quality
from quantune.quantizations.bitsandbytes import Int8
from quantune.quantizations.eight_bits import FP8, Int8Dynamic

SMALL = sys.argv[2:] == ["small"]
PARENT = Path(__file__).parents[1] / "assets/models/opt-2m"
RECIPES = {
    "fp8": FP8(method="fp8"),
    "fp8-weights": FP8(method="fp8", activations="none"),
    "int8-dynamic": Int8Dynamic(method="int8-dynamic"),
    "int8": Int8(method="int8"),
}
KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
SHAPES = [(1, 128, 512), (16, 512, 128), (17, 4096, 4096), (300, 1500, 200), (512, 4096, 11008)]
"""(tokens, inputs, outputs); some are no multiples of 16."""
OPT = {
    "model_type": "opt",
    "hidden_size": 2048,
    "word_embed_proj_dim": 2048,
    "ffn_dim": 8192,
    "num_attention_heads": 32,
    "vocab_size": 50272,
}


def products() -> dict:
    """Return for each shape and kind of codes whether the sums equal the CPU's, and the largest relative difference."""
    found = {}
    for tokens, inputs, outputs in SHAPES[: 2 if SMALL else None]:
        generator = torch.Generator().manual_seed(0)
        states, weight = (torch.randn(size, inputs, generator=generator) for size in (tokens, outputs))
        for name, kind in KINDS.items():
            left, right = (eight.codes(item, eight.scales(item, kind), kind) for item in (states, weight))
            expected = eight.emulated_sums(left, right).double()
            place = loading.device()
            sums = eight.sums(left.to(place), right.to(place)).double().cpu()
            change = float((sums - expected).norm() / expected.norm())
            found[f"{name} {tokens}x{inputs}x{outputs}"] = {"equal": torch.equal(sums, expected), "change": change}
    return found


def layers() -> dict:
    """Return milliseconds of a layer, dense and of each kind, in bfloat16: name -> tokens -> milliseconds."""
    place, size, found = loading.device(), 128 if SMALL else 4096, {}
    weight = torch.randn(size, size, device=place)
    dense = weight.bfloat16()
    for tokens in (1, 16) if SMALL else (1, 16, 256, 2048, 16384):
        states = torch.randn(tokens, size, device=place, dtype=torch.bfloat16)
        works = {"bfloat16": lambda states=states: torch.nn.functional.linear(states, dense)}
        for name, kind in KINDS.items():
            scale = eight.scales(weight, kind)
            codes = eight.codes(weight, scale, kind)
            works[name] = lambda states=states, codes=codes, scale=scale: eight.multiply(states, codes, scale, None)
            compiled = torch.compile(eight.multiply) if not SMALL else eight.multiply
            works[f"{name} compiled"] = lambda states=states, codes=codes, scale=scale, compiled=compiled: compiled(
                states, codes, scale, None
            )
        for name, work in works.items():
            repeated = 2 if SMALL else 50

            def several(work=work, repeated=repeated):
                for _ in range(repeated):
                    work()

            several()
            best = min(seconds(several, place) for _ in range(3))
            found.setdefault(name, {})[tokens] = 1000 * best / repeated
    return found


def models(place: Path) -> dict:
    """Return prefill and decode of the OPT-1.3B architecture, dense and by each method, in bfloat16."""
    parent, found = checkpoint(place / "parent", OPT | {"max_position_embeddings": 2048}, 1 if SMALL else 24), {}
    sweep = {"batch_sizes": [1], "prompt_lengths": [16], "new_tokens": 4}
    sweep = sweep if SMALL else {"batch_sizes": [1, 16], "prompt_lengths": [512], "new_tokens": 64}
    for name, recipe in {"bfloat16": None, **RECIPES}.items():
        folder = place / name if recipe else parent
        if recipe:
            folder.mkdir()
            recipe.quantize(parent, folder)
        out = place / f"{name}-measured"
        out.mkdir()
        result = Benchmark(dtype="bfloat16", **sweep).measure([folder], out)
        items = pandas.read_parquet(out / "items.parquet")
        items = items[~items.warmup].assign(rate=lambda rows: rows.tokens / rows.seconds)
        rates = items.groupby(["phase", "batch_size"]).rate.agg(["median", "min", "max"]).reset_index()
        found[name] = {key: result[key] for key in ("loaded_bytes", "disk_bytes", "points")}
        found[name]["tokens_per_second"] = json.loads(rates.to_json(orient="records"))
        print(name, rates, flush=True)
    return found


def losses(place: Path) -> dict:
    """Return for each method the loss on the probe text and the largest error of a layer, on this device."""
    found = {}
    for name, recipe in RECIPES.items():
        folder = place / f"opt-2m-{name}"
        folder.mkdir()
        recipe.quantize(PARENT, folder)
        result = quality.measure(PARENT, folder, quality.probe_inputs(PARENT)[1])
        found[name] = {"before": result.before, "after": result.after, "largest_error": result.worst()[0]}
    return found


def main(out: Path) -> None:
    """Measure everything; an error of one part is recorded and does not stop the others."""
    place, results = Path(tempfile.mkdtemp()), about()
    parts = {
        "products": products,
        "quality": lambda: losses(place),
        "quality on the CPU": on_cpu,
        "layers": layers,
        "models": lambda: models(place),
    }
    for name, work in parts.items():
        try:
            results[name] = work()
        except Exception:
            traceback.print_exc()
            results[name] = {"error": traceback.format_exc()[-2000:]}
        print(name, json.dumps(results[name])[:2000], flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


def on_cpu() -> dict:
    """Return `losses` of a process that sees no GPU."""
    command = [sys.executable, __file__, "losses"]
    done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    return json.loads(done.stdout.splitlines()[-1])


def about() -> dict:
    """Return the device, the package versions and the command of the measurement."""
    names = ("torch", "transformers", "compressed-tensors", "bitsandbytes")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {name: metadata.version(name) for name in names},
        "command": "PYTHONPATH=. python benchmarks/eight_bits.py",
    }


if __name__ == "__main__":
    if sys.argv[1] == "losses":
        print(json.dumps(losses(Path(tempfile.mkdtemp()))))
    else:
        main(Path(sys.argv[1]))
