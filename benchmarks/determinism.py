"""Cost and effect of `deterministic: true` on the OPT-1.3B architecture: GPTQ (W4 g128), LoRA training with dropout,
and evaluation. Each runs in two processes with the switch on and in two with the switch off.

    PYTHONPATH=. python benchmarks/determinism.py results.json

Weights are random: the speed does not depend on them. A second argument, `small`, is a quick test of the script.
"""

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

SMALL = "small" in sys.argv
LAYERS, STEPS, ROUNDS = (1, 2, 2) if SMALL else (24, 40, 2)
TRAINED = {"batch_size": 2, "length": 32} if SMALL else {"batch_size": 8, "length": 512}
CALIBRATED = {"samples": 2, "length": 64} if SMALL else {"samples": 32, "length": 1024}
SEPARATE = 3  # repetitions of each within a process


def once(switch: str, parent: Path, data: Path) -> dict:
    """Run everything in this process; return name of the task -> seconds and SHA-256 of the results."""
    if switch == "on":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import torch

    from quantune.artefacts import job
    from quantune.data import text
    from quantune.finetunings.lora import LoRA
    from quantune.finetunings.training import loop
    from quantune.models import loading
    from quantune.quantizations.gptq import GPTQ

    if switch == "on":
        job.be_deterministic()
    results = {}

    def measure(name, work):
        seconds, hashes = [], []
        for _ in range(SEPARATE):
            torch.manual_seed(0)
            started = time.time()
            tensors = work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.time() - started)
            digest = hashlib.sha256()
            for tensor in tensors:
                digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
            hashes.append(digest.hexdigest())
        results[name] = {"seconds": seconds, "sha256": hashes}

    def quantize():
        folder = Path(tempfile.mkdtemp())
        GPTQ(method="gptq", dataset="random", **CALIBRATED).quantize(parent, folder, data, 0)
        from safetensors.torch import load_file

        return [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in load_file(path).values()]

    def train():
        recipe = LoRA(
            method="lora",
            dataset="any",
            steps=STEPS,
            rank=16,
            dropout=0.1,
            precision="bfloat16",
            save_every=1000,
            **TRAINED,
        )
        model = loading.model([parent], recipe.precision)
        model.config.use_cache = False
        model = recipe.prepare(model, 0)
        generator = torch.Generator().manual_seed(0)
        shape = (STEPS * recipe.batch_size, recipe.length)
        blocks = text.Blocks(torch.randint(3, 12000, shape, generator=generator).numpy())
        loop.train(model, recipe, 0, blocks, None, Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()))
        return [value for value in model.parameters() if value.requires_grad]

    whole = loading.model([parent], "float16")

    def evaluate():
        ids = torch.randint(3, 12000, (4, TRAINED["length"]), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return [whole(input_ids=ids.to(whole.device), use_cache=False).logits for _ in range(1 if SMALL else 20)]

    for name, work in (("GPTQ", quantize), ("LoRA", train), ("evaluation", evaluate)):
        measure(name, work)
    return results


def main(out: Path) -> None:
    """Run the processes in turns; write median seconds, their ratio, and whether the results had the same bits."""
    import torch
    from quantization_memory import OPT_1_3B, checkpoint, tokens

    place = Path(tempfile.mkdtemp())
    parent, data = checkpoint(place / "model", OPT_1_3B, LAYERS), tokens(place / "data")
    runs = {"on": [], "off": []}
    for _ in range(ROUNDS):
        for switch, done in runs.items():
            command = [sys.executable, __file__, "once", switch, str(parent), str(data), *(["small"] if SMALL else [])]
            printed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            done.append(json.loads(printed.splitlines()[-1]))
            print(switch, printed.splitlines()[-1], flush=True)
    works = {}
    for name in runs["on"][0]:
        # the first repetition in each process is a warm-up
        medians = {
            switch: statistics.median(value for run in done for value in run[name]["seconds"][1:])
            for switch, done in runs.items()
        }
        works[name] = {
            "seconds": medians,
            "ratio": medians["on"] / medians["off"],
            "same_bits": {
                switch: len({value for run in done for value in run[name]["sha256"]}) == 1
                for switch, done in runs.items()
            },
        }
    about = {
        "model": f"OPT-1.3B architecture, {LAYERS} layers, random weights",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "compressed-tensors")},
        "command": "PYTHONPATH=. python benchmarks/determinism.py",
        "repeats": f"{ROUNDS} processes each, {SEPARATE - 1} times in each after one to warm up",
        "trained": {"steps": STEPS, "rank": 16, "dropout": 0.1, "precision": "bfloat16", **TRAINED},
        "calibrated": CALIBRATED,
    }
    out.write_text(json.dumps(about | {"works": works, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "once":
        print(json.dumps(once(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main(Path(sys.argv[1]))
