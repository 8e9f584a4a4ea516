"""Peak memory of every job of the course's exercises 1 to 8 on a card of 15 GB: the sizes of OPT and Whisper-large-v2.

    PYTHONPATH=. python benchmarks/course_memory.py results.json WHISPER [--cap 15] [--only e1 e6:opt-6.7b] [--small]

Recipes are those of `experiments/course`, and the jobs are the bodies of the project's scripts. Weights, tokens and
recordings are random: memory does not depend on them. What does not change the peak is shorter than in the exercises: 4
training steps, 4 windows of text, 16 clips. Benchmarks decode over a static cache; compiled, opt-6.7b took 13.42 GB.
WHISPER is a folder with the tokenizer and generation_config.json of a multilingual Whisper with 51,865 tokens.
`--small` is a trial on a CPU. The results are extended, job by job.
"""

import argparse
import gc
import json
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy
import pyarrow
import torch
import yaml
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSpeechSeq2Seq

from quantune.artefacts import job
from quantune.core import hardware
from quantune.data import clips, tokens
from quantune.planning import chains, memory
from quantune.planning.config import AnyEvaluation, AnyFinetuning, AnyQuantization

ROOT = Path(__file__).parents[1]
OPT = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048, "bos_token_id": 2, "eos_token_id": 2}
SIZES = {"opt-125m": (768, 12, 12), "opt-2.7b": (2560, 32, 32), "opt-6.7b": (4096, 32, 32)}
WHISPER = {"model_type": "whisper", "d_model": 1280, "vocab_size": 51865, "num_mel_bins": 80}
WHISPER |= {
    f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in (("layers", 32), ("ffn_dim", 5120))
}
WHISPER |= {"encoder_attention_heads": 20, "decoder_attention_heads": 20, "decoder_start_token_id": 50258}
DOCUMENTS = {"c4": (160, 2100), "wikitext-2-train": (160, 2100), "pile": (200, 300), "one-sentence": (1, 25)}
DOCUMENTS |= {"wikitext-2": (1, 4 * 2048), "quotes": (64, 1020)}
"""Dataset -> documents and the tokens in each; quotes are shorter, mostly by far."""
CLIPS, SECONDS = 128, 6
GPU = torch.cuda.is_available()


def shape(model: str, small: bool) -> dict:
    """Return the config.json of a model of the exercises; with `small`, of a tiny one."""
    if model.startswith("whisper"):
        tiny = {"d_model": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        tiny |= {
            f"{part}_{key}": 2 if key == "layers" else 256
            for part in ("encoder", "decoder")
            for key in ("layers", "ffn_dim")
        }
        return WHISPER | (tiny if small else {})
    width, layers, heads = (256, 2, 4) if small else SIZES[model]
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return OPT | sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}


def checkpoint(folder: Path, keys: dict, whisper: Path) -> None:
    """Write a random model in float16, with a tokenizer."""
    torch.manual_seed(0)
    speech = keys["model_type"] == "whisper"
    kind = AutoModelForSpeechSeq2Seq if speech else AutoModelForCausalLM
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda" if GPU else "cpu"):
        model = kind.from_config(AutoConfig.for_model(**keys), dtype=torch.float16)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    source = whisper if speech else ROOT / "assets/models/opt-2m"
    for path in source.glob("*.json"):
        if path.name != "config.json" and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)


def text(folder: Path, count: int, length: int) -> None:
    """Write random documents as every split."""
    ids = torch.randint(3, 12000, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
    table = pyarrow.table({"ids": ids, "bytes": ids, "words": ids}, schema=tokens.SCHEMA)
    _write(folder, table, tokens.SCHEMA)


def speech(folder: Path) -> None:
    """Write recordings of noise with Chinese transcripts as every split."""
    rng, rows = numpy.random.default_rng(0), []
    for number in range(CLIPS):
        words = "".join(map(chr, rng.integers(0x4E00, 0x9000, 20)))
        samples = rng.normal(0, 3000, 16000 * SECONDS).astype("<i2").tobytes()
        row = {"id": str(number), "text": words, "translation": None, "language": "zh", "seconds": float(SECONDS)}
        rows.append(row | {"samples": samples})
    _write(folder, pyarrow.Table.from_pylist(rows, clips.SCHEMA), clips.SCHEMA)


def _write(folder: Path, table: pyarrow.Table, schema: pyarrow.Schema) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        with pyarrow.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            writer.write_table(table)


def body(script: str):
    """Return the function of a stage, from its script."""
    bodies = []

    def keep(_, function, **__):
        bodies.append(function)

    with patch("quantune.artefacts.job.run", keep), patch("quantune.artefacts.job.run_all", keep):
        runpy.run_path(str(ROOT / "scripts" / script), {"snakemake": None})
    return bodies[0]


class Exercises:
    """The jobs of the exercises, each done once, and their peaks."""

    def __init__(self, place: Path, out: Path, whisper: Path, cap: float, small: bool):
        self.place, self.out, self.whisper, self.small = place, out, whisper, small
        self.results = json.loads(out.read_text()) if out.exists() else {"jobs": []}
        names = ("torch", "transformers", "peft", "bitsandbytes", "compressed-tensors")
        self.results |= {"cap_bytes": int(cap * 1e9)}
        self.results |= {"versions": {name: metadata.version(name) for name in names}}
        self.results |= {"command": "PYTHONPATH=. python benchmarks/course_memory.py results.json WHISPER"}
        self.share = cap * 1e9 / torch.cuda.mem_get_info()[1] if GPU else 1
        self.configs: dict[str, dict] = {}
        self.evaluating = "", None

    def folder(self, variant: str) -> Path:
        """Return the folder of a variant; a model is made first."""
        folder = self.place / variant
        if "+" not in variant and not folder.exists():
            self.configs[variant] = shape(variant, self.small)
            if GPU:
                torch.cuda.set_per_process_memory_fraction(1.0)
            checkpoint(folder, self.configs[variant], self.whisper)
        return folder

    def data(self, dataset: str) -> Path:
        """Return the folder of a prepared dataset."""
        folder = self.place / "data" / dataset
        if not folder.exists():
            text(folder, *DOCUMENTS[dataset]) if dataset in DOCUMENTS else speech(folder)
        return folder

    def do(
        self, exercise: str, variant: str, name: str, script: str, recipe, inputs: dict, predict, target: Path
    ) -> None:
        """Do a job; record its peak, its predicted peak and its seconds, or the error that ended it."""
        if any(row["variant"] == variant and row["job"] == name and "error" not in row for row in self.results["jobs"]):
            return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        recipe = recipe if isinstance(recipe, dict) else recipe.model_dump(mode="json", exclude_unset=True)
        order = {"recipe": recipe | {"seed": 0}, "options": {"settings": {}}, "predicted": None}
        if script == "benchmark.py":
            order["recipe"] = recipe | {"hardware": hardware.detect()}
        row = {"exercise": exercise, "variant": variant, "job": name}
        row |= {"hardware": torch.cuda.get_device_name() if GPU else "cpu"}
        if script != "evaluate.py":
            self.evaluating = "", None
            function = body(script)
        else:  # a variant is loaded once for its evaluations, as by the rule
            if self.evaluating[0] != variant:
                self.evaluating = "", None
                self.evaluating = variant, body(script)
            function = self.evaluating[1]
        if script != "benchmark.py":
            job.be_deterministic()
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(self.share)
            torch.cuda.reset_peak_memory_stats()
        started = time.time()
        try:
            function(order, inputs, target, target / "scratch")
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        row["seconds"] = round(time.time() - started, 1)
        torch.use_deterministic_algorithms(False)
        if GPU:
            row |= {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
        try:
            row["predicted_bytes"] = predict()
        except Exception as error:
            row["predicted_bytes"] = repr(error)[:200]
        print(row, flush=True)
        self.results["jobs"].append(row)
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")

    def run(self, path: Path, only: str) -> None:
        """Do the jobs of one exercise, of all its models or of one."""
        raw, exercise = yaml.safe_load(path.read_text()), path.name.split("-")[0]
        kinds = {"quantizations": AnyQuantization, "finetunings": AnyFinetuning, "evaluations": AnyEvaluation}
        names = chains.expand(raw["variants"])
        wanted = dict.fromkeys(name.rsplit("+", parts)[0] for name in names for parts in (2, 1, 0))
        for variant in wanted:
            model, *steps = variant.split("+")
            if only not in ("", model):
                continue
            parent = self.folder(model).parent / variant.rpartition("+")[0]
            config, recipes = self.configs[model], []
            for step in steps:
                section = "quantizations" if step in raw.get("quantizations", {}) else "finetunings"
                keys = dict(raw[section][step])
                if section == "quantizations":
                    keys["if_destroyed"] = "warn"
                else:
                    keys |= {"steps": 4, "epochs": None, "warmup_steps": 0, "evaluate_every": 1000, "log_every": None}
                    keys |= {"max_validation": keys["batch_size"]}
                recipes.append(TypeAdapter(kinds[section]).validate_python(keys))
            if steps:
                recipe, inputs = recipes[-1], {"parent": [parent]}
                if getattr(recipe, "dataset", None):
                    inputs["data"] = [self.data(recipe.dataset)]
                trains = steps[-1] in raw.get("finetunings", {})

                def made(recipe=recipe, recipes=recipes, config=config, trains=trains):
                    if trains:
                        return memory.training(config, recipes[:-1], recipe).total
                    return memory.quantizing(config, recipe, "float16").total

                script = "train.py" if trains else "quantize.py"
                self.do(exercise, variant, script[:-3], script, recipe, inputs, made, self.place / variant)
            adapter = len(recipes) and steps[-1] in raw.get("finetunings", {})
            inputs = {"checkpoint": [self.place / variant], "base": [parent] if adapter else []}
            for name, keys in raw.get("evaluations", {}).items():
                keys = keys | ({"max_clips": 16} if keys["kind"] == "transcription" else {})
                recipe = TypeAdapter(AnyEvaluation).validate_python(keys)
                reads = inputs | ({"data": [self.data(recipe.dataset)]} if getattr(recipe, "dataset", None) else {})

                def read(recipe=recipe, recipes=recipes, config=config):
                    return memory.inference(config, recipes, recipe.workload(config)).total

                self.do(exercise, variant, name, "evaluate.py", recipe, reads, read, self.place / "evaluation")
            if "benchmark" in raw:
                from quantune.evaluations.benchmark import Benchmark

                recipe = Benchmark.model_validate(raw["benchmark"] | {"warmup": 1, "decode": "static"})

                def timed(recipe=recipe, recipes=recipes, config=config):
                    return memory.inference(config, recipes, recipe.workload("text")).total

                self.do(exercise, variant, "benchmark", "benchmark.py", recipe, inputs, timed, self.place / "benchmark")


def main() -> None:
    """Run the exercises."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("--cap", type=float, default=15)
    parser.add_argument("--only", nargs="*", default=[f"e{number}" for number in range(1, 9)])
    parser.add_argument("--place", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    place = options.place or Path(tempfile.mkdtemp())
    exercises = Exercises(place, options.out, options.whisper, options.cap, options.small)
    for name in options.only:
        number, _, model = name.partition(":")
        (path,) = (ROOT / "experiments/course").glob(f"{number}-*.yaml")
        exercises.run(path, model)
    failed = [row for row in exercises.results["jobs"] if "error" in row]
    sys.exit(f"{len(failed)} jobs failed" if failed else 0)


if __name__ == "__main__":
    main()
