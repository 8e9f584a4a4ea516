"""Time GPTQ and AWQ (W4 g128, 128 x 2048 tokens) on the OPT-1.3B architecture, from loading to the checked checkpoint.

    PYTHONPATH=. python benchmarks/quantization_speed.py results.json

Weights are random: the time does not depend on them. A two-layer model runs first as a warm-up.
"""

import json
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import pyarrow
import torch
from transformers import OPTConfig, OPTForCausalLM

from quantune.data import text
from quantune.quantizations.awq import AWQ
from quantune.quantizations.gptq import GPTQ

SAMPLES, LENGTH = 128, 2048
SHAPE = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "ffn_dim": 8192, "num_attention_heads": 32}
TOKENIZER = Path(__file__).parent.parent / "assets/models/opt-2m"


def checkpoint(folder: Path, layers: int) -> Path:
    """Write a random OPT in float16 with `layers` layers of OPT-1.3B's shape; return the folder."""
    torch.manual_seed(0)
    config = OPTConfig(**SHAPE, num_hidden_layers=layers, vocab_size=50272, bos_token_id=2, eos_token_id=2)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = OPTForCausalLM(config).half()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def tokens(folder: Path) -> Path:
    """Write enough random documents for the calibration set; return the folder."""
    folder.mkdir()
    ids = torch.randint(3, 12000, (SAMPLES + 1, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    table = pyarrow.table({"ids": ids, "bytes": ids, "words": ids}, schema=text.SCHEMA)
    with pyarrow.OSFile(str(folder / "train.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, text.SCHEMA) as writer:
        writer.write_table(table)
    return folder


def main(out: str) -> None:
    """Run both methods three times; write the seconds of each."""
    place = Path(tempfile.mkdtemp())
    data, small, full = tokens(place / "data"), checkpoint(place / "small", 2), checkpoint(place / "full", 24)
    results = {
        "model": "OPT-1.3B architecture, 24 layers, random weights, float16",
        "samples": SAMPLES,
        "length": LENGTH,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "compressed-tensors")},
        "command": "PYTHONPATH=. python benchmarks/quantization_speed.py",
        "seconds": {},
    }
    for recipe in (
        GPTQ(method="gptq", dataset="random", samples=SAMPLES, length=LENGTH),
        AWQ(method="awq", dataset="random", samples=SAMPLES, length=LENGTH),
    ):
        for parent in (small, full, full, full):
            target = place / "target"
            target.mkdir()
            started = time.time()
            recipe.quantize(parent, target, data, 0)
            recipe.check(parent, target)
            seconds = round(time.time() - started, 2)
            shutil.rmtree(target)
            if parent is full:
                results["seconds"].setdefault(recipe.method, []).append(seconds)
            print(recipe.method, parent.name, seconds, flush=True)
    Path(out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
