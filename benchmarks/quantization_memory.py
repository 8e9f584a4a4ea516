"""Peak memory and seconds of quantizing the OPT-6.7B shape, side by side with an earlier version of the code.

    PYTHONPATH=. python benchmarks/quantization_memory.py results.json --before CHECKOUT [--cap 15] [--small]

Each run quantizes, checks and compares with the parent, as the rule `quantize` does. Weights are random: time and
memory do not depend on them. `--cap` limits the device memory of the new code, in GB; `--small` is a trial on a CPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pyarrow
import torch
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM

from quantune.data.tokens import SCHEMA
from quantune.models import loading
from quantune.planning.config import AnyQuantization
from quantune.quantizations.arithmetic import quality

SAMPLES, LENGTH = 128, 2048
CALIBRATED = {"dataset": "random", "samples": SAMPLES, "length": LENGTH}
RECIPES = {
    "rtn": {"method": "rtn"},
    "nf4": {"method": "nf4"},
    "int8": {"method": "int8"},
    "gptq": {"method": "gptq", **CALIBRATED},
    "awq": {"method": "awq", **CALIBRATED},
}
OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "bos_token_id": 2, "eos_token_id": 2}
OPT |= {"hidden_size": 4096, "word_embed_proj_dim": 4096, "ffn_dim": 16384, "num_attention_heads": 32}
OPT_1_3B = OPT | {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192}
LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672}
LLAMA |= {"num_attention_heads": 64, "num_key_value_heads": 8, "eos_token_id": 2}
SMALL = {"hidden_size": 256, "num_attention_heads": 4}
TOKENIZER = Path(__file__).parent.parent / "assets/models/opt-2m"


def checkpoint(folder: Path, shape: dict, layers: int) -> Path:
    """Write a random model in float16; return the folder."""
    if not folder.exists():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            config = AutoConfig.for_model(**shape, num_hidden_layers=layers)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder, max_shard_size="4GB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def tokens(folder: Path) -> Path:
    """Write enough random documents for the calibration set; return the folder."""
    folder.mkdir()
    ids = torch.randint(3, 12000, (SAMPLES + 1, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    table = pyarrow.table({"ids": ids, "bytes": ids, "words": ids}, schema=SCHEMA)
    with pyarrow.OSFile(str(folder / "train.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    return folder


def measured(function: Callable) -> dict[str, float]:
    """Run a function; return its seconds, peak bytes on the device, and peak bytes of main memory without files."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], 1024 * int(status.split("RssAnon:")[1].split()[0]))

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    thread, started = threading.Thread(target=watch), time.time()
    thread.start()
    try:
        result = function() or {}
    finally:
        done.set()
        thread.join()
    seconds = round(time.time() - started, 2)
    device = torch.cuda.max_memory_allocated() if gpu else 0
    return {"seconds": seconds, "device_bytes": device, "host_bytes": peak[0], **result}


def quantized(recipe, parent: Path, data: Path, place: Path) -> dict[str, float]:
    """Quantize, check and compare, as the rule does; return the peaks, the packed bytes and the predicted peak."""
    target = place / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()

    def job() -> None:
        facts = recipe.quantize(parent, target, data, 0)
        recipe.check(parent, target)
        quality.guard(recipe, parent, target, data, 0, facts.get("output_errors"))

    result = measured(job) | {"packed_bytes": sum(path.stat().st_size for path in target.glob("*.safetensors"))}
    try:
        from quantune.planning import memory

        config = json.loads((parent / "config.json").read_text())
        dtype = "float16" if torch.cuda.is_available() else "float32"
        result["predicted_device_bytes"] = memory.quantizing(config, recipe, dtype).total
    except AttributeError:  # the earlier version predicts with other functions
        pass
    return result


def whole_and_capped(parent: Path, total: int) -> dict[str, dict[str, float]]:
    """Run one window of 2,048 tokens with the whole model on the device, and with memory for some of the layers."""
    ids, logits, results = torch.arange(3, 2051)[None], [], {}
    for name, cap in (("whole", 15e9), ("10 GB", 10e9)):
        torch.cuda.set_per_process_memory_fraction(cap / total)

        def window() -> None:
            model = loading.fitting([parent], "float16")
            place = model.get_input_embeddings().weight.device
            with torch.no_grad():
                for _ in range(2):
                    started = time.time()
                    out = model(input_ids=ids.to(place), use_cache=False).logits.cpu()
                    seconds = time.time() - started
            logits.append(out)
            return {"seconds_of_a_window": round(seconds, 3)}

        results[name] = measured(window)
    return results | {"same_logits": torch.equal(*logits)}


def main() -> None:
    """Run all, or as a child one version's part; write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--cap", type=float, default=15)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    place = options.place or Path(tempfile.mkdtemp())
    opt, llama = (shape | (SMALL if options.small else {}) for shape in (OPT, LLAMA))
    if options.small:
        opt |= {"word_embed_proj_dim": 256, "ffn_dim": 1024}
        llama |= {"intermediate_size": 768, "num_key_value_heads": 2}
    gpu = torch.cuda.is_available()
    total = torch.cuda.mem_get_info()[1] if gpu else 0
    data = place / "data"
    if not data.exists():
        tokens(data)
    recipes = {name: TypeAdapter(AnyQuantization).validate_python(raw) for name, raw in RECIPES.items()}
    results: dict = {}

    def run(label: str, name: str, shape: dict, layers: int) -> None:
        parent = checkpoint(place / f"{shape['model_type']}-{layers}", shape, layers)
        if gpu:
            torch.cuda.empty_cache()
        results[label] = quantized(recipes[name], parent, data, place)
        print(label, results[label], flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")

    if options.only is not None:  # the earlier version
        for label in options.only:
            name, layers = label.split("-")
            run(f"before {label}", name, opt, int(layers))
        return
    full = 2 if options.small else 32
    results |= {
        "hardware": torch.cuda.get_device_name() if gpu else "cpu",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "compressed-tensors")},
        "command": " ".join(["PYTHONPATH=. python", *sys.argv]),
        "cap_bytes": options.cap * 1e9,
    }
    run("warm-up", "gptq", opt, 1)
    if gpu:
        torch.cuda.set_per_process_memory_fraction(options.cap * 1e9 / total)
    for name in ("rtn", "nf4", "int8"):
        run(f"{name}-{full}", name, opt, full)
    few = 1 if options.small else 4
    for name in ("gptq", "awq"):
        run(f"{name}-{few}", name, opt, few)
    if options.before:
        torch.cuda.empty_cache() if gpu else None
        child, only = place / "before.json", [f"rtn-{full}", f"gptq-{few}", f"awq-{few}"]
        command = [sys.executable, __file__, str(child), "--place", str(place), "--only", *only]
        command += ["--small"] if options.small else []
        environment = os.environ | {"PYTHONPATH": f"{options.before}:{os.environ.get('PYTHONPATH', '')}"}
        subprocess.run(command, env=environment, check=False)
        results |= json.loads(child.read_text()) if child.exists() else {}
    for name in ("rtn", "nf4"):
        for layers in (1, 3):
            run(f"70b {name}-{layers}", name, llama, layers)
    if gpu:
        results["evaluation"] = whole_and_capped(place / f"opt-{full}", total)
        torch.cuda.set_per_process_memory_fraction(options.cap * 1e9 / total)
    for name in ("gptq", "awq"):
        run(f"{name}-{full}", name, opt, full)


if __name__ == "__main__":
    main()
