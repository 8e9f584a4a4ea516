"""Peak device memory beside its estimate, for OPT-1.3B and OPT-6.7B shapes with random weights.

PYTHONPATH=. python benchmarks/memory_estimate.py results.json
"""

import gc
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quantune.core.workload import Inference
from quantune.data import text
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import checkpointing, loop
from quantune.planning import memory

SHAPES = {"opt-1.3b": (2048, 24, 32), "opt-6.7b": (4096, 32, 32)}
DEVICE = torch.device("cuda")
rows = []


def config(name):
    width, layers, heads = SHAPES[name]
    return {
        "model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "hidden_size": width,
        "word_embed_proj_dim": width, "ffn_dim": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
    }  # fmt: skip


def model(name, dtype):
    with torch.device(DEVICE):
        created = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(name)), dtype=getattr(torch, dtype))
    created.config.use_cache = False
    return created.eval()


def measure(label, estimate, function, *arguments):
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        function(*arguments)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        peak = None
    row = {"what": label, "measured": peak, "estimate": estimate.total, "terms": estimate.terms}
    row["ratio"] = peak and round(estimate.total / peak, 4)
    rows.append(row)
    shown = "out of memory" if peak is None else f"{peak / 1e9:8.3f} GB, estimate / measured {row['ratio']:.3f}"
    print(f"{label}: {shown}; {estimate}", flush=True)


@torch.no_grad()
def forward(loaded, batch, length):
    tokens = torch.randint(3, 50272, (batch, length), device=DEVICE)
    for _ in range(2):
        loaded(input_ids=tokens, use_cache=False).logits.sum()


@torch.no_grad()
def generate(loaded, batch, prompt, new):
    tokens = torch.randint(3, 50272, (batch, prompt), device=DEVICE)
    loaded.generate(tokens, min_new_tokens=new, max_new_tokens=new, do_sample=False, use_cache=True)


def train(loaded, recipe):
    folder = Path(tempfile.mkdtemp())
    blocks = text.Blocks(torch.randint(3, 50272, (4 * recipe.batch_size, recipe.length)).numpy())
    checkpointing.enable(loaded, recipe)
    loop.train(loaded, recipe, 0, blocks, None, folder, folder)


for name in SHAPES:
    for batch, length in ((1, 2048), (8, 2048)):
        loaded = model(name, "float16")
        label = f"{name} inference float16 {batch} x {length}"
        measure(
            label,
            memory.inference(config(name), [], Inference("float16", batch, length)),
            forward,
            loaded,
            batch,
            length,
        )
        del loaded
    loaded = model(name, "float16")
    estimate = memory.inference(config(name), [], Inference("float16", 16, 640, cache=True, logits=1))
    measure(f"{name} generate float16 16 x (512 + 128)", estimate, generate, loaded, 16, 512, 128)
    del loaded
    for keys in (
        {"batch_size": 8 if name == "opt-1.3b" else 4, "length": 1024},
        {"batch_size": 2, "length": 2048, "target_modules": "all-linear"},
        {"batch_size": 8, "length": 2048, "gradient_checkpointing": True},
        {"batch_size": 8, "length": 512, "dropout": 0.05},
    ):
        recipe = LoRA(method="lora", dataset="any", steps=3, rank=16, precision="bfloat16", **keys)
        loaded = recipe.prepare(model(name, "bfloat16"), 0)
        measure(f"{name} LoRA bfloat16 {keys}", memory.training(config(name), [], recipe), train, loaded, recipe)
        del loaded
if len(sys.argv) > 1:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    command = "PYTHONPATH=. python benchmarks/memory_estimate.py"
    results = {"device": torch.cuda.get_device_name(), "versions": versions, "command": command, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
