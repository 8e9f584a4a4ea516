"""A small set of artefacts whose numbers are known, and the report on them."""

import json
from pathlib import Path

import numpy
import pandas
import pytest

from quantune.report import gather, page, table
from quantune.report.figures import gallery
from tests import records

TOKENS, WINDOWS = 100, 40
NOISE = numpy.random.default_rng(1).permutation(numpy.tile([1.0, -1.0], WINDOWS // 2))
"""Sums to zero: it widens intervals and moves nothing."""
SHA = "ab" * 32
RECIPES = {
    "home": {"kind": "perplexity", "dataset": "home", "general": False},
    "away": {"kind": "perplexity", "dataset": "away", "general": True},
    "prompts": {"kind": "generation", "prompts": ["Say </script><b>"]},
}
WINDOW_RECIPE = {"split": "test", "length": 101, "stride": None, "max_windows": None, "dtype": "float32"}


class Work:
    """A work folder that artefacts are written into, and the report's order for them."""

    def __init__(self, folder: Path):
        self.folder, self.listed, self.made, self.evaluated = folder, [], [], []
        self.recipes, self.expected = {}, []

    def artefact(self, path: str, stage: str, parents=None, recipe=None, facts=None, files=None, sources=None) -> dict:
        """Write the records of an artefact; return its reference."""
        place = self.folder / path
        place.mkdir(parents=True, exist_ok=True)
        sizes = [{"path": name, "size": size, "sha256": SHA} for name, size in (files or {}).items()]
        provenance = {"digest": f"digest of {path}", "stage": stage, "version": 1, "recipe": recipe or {}}
        provenance |= {"sources": sources or {}, "facts": facts or {}, "files": sizes, "packages": {"torch": "2.13.0"}}
        provenance["parents"] = {role: [parent] for role, parent in (parents or {}).items()}
        records.write(place, provenance)
        return {"path": str(place), "digest": provenance["digest"]}

    def checkpoint(self, name: str, stage: str, files: dict[str, int], listed: bool = True, **more) -> dict:
        """Write a checkpoint."""
        made = self.artefact(f"checkpoints/{name}", stage, files=files, **more)
        self.made.append((name, made))
        self.listed += [name] if listed else []
        return made

    def evaluation(self, name: str, evaluation: str, recipe: dict) -> dict:
        """Write the records of an evaluation."""
        parents = {"checkpoint": dict(self.made)[name]}
        made = self.artefact(f"evaluations/{name}/{evaluation}", f"evaluate/{recipe['kind']}", parents)
        self.evaluated.append(made)
        self.recipes[evaluation] = recipe
        return made

    def perplexity(self, name: str, evaluation: str, per_token: float, noise: float = 0.0, **more) -> None:
        """Write an evaluation whose mean loss is `per_token` nats, with noise of so many nats a window."""
        made = self.evaluation(name, evaluation, RECIPES[evaluation] | WINDOW_RECIPE)
        spread = numpy.linspace(-20, 20, WINDOWS)  # windows differ, and variants have that in common
        items = {"begin": range(0, WINDOWS * 101, 101), "tokens": TOKENS, "bytes": 400, "words": 80}
        items = pandas.DataFrame(items | {"nll": per_token * TOKENS + spread + noise * NOISE})
        items.to_parquet(Path(made["path"], "items.parquet"))
        Path(made["path"], "result.json").write_text(json.dumps({"kind": "perplexity"} | more))

    def generation(self, name: str, text: str) -> None:
        """Write a generation."""
        made = self.evaluation(name, "prompts", RECIPES["prompts"])
        item = {"prompt": RECIPES["prompts"]["prompts"][0], "text": text, "tokens": 3}
        Path(made["path"], "items.jsonl").write_text(json.dumps(item) + "\n")

    def order(self) -> dict:
        """Return the report's order."""
        recipe = {"title": "A question", "variants": [name for name, _ in self.made], "listed": self.listed}
        parents = {"checkpoints": [made for _, made in self.made], "evaluations": self.evaluated}
        recipe |= {"evaluations": self.recipes, "expected": self.expected}
        return {"path": "work/report", "digest": "digest of report", "recipe": recipe, "parents": parents}


@pytest.fixture
def work(tmp_path):
    """A model, quantized two ways, fine-tuned with and without quantization, and merged."""
    work = Work(tmp_path / "work")
    model = work.checkpoint("m", "model", {"model.safetensors": 1000, "tokenizer.json": 7}, sources={"model.bin": SHA})
    of_model, fine, rough = {"parent": model}, {"bits_per_weight": 4.5}, {"bits_per_weight": 2.5}
    quantized = work.checkpoint("m+fine", "quantize/rtn", {"model.safetensors": 400}, parents=of_model, facts=fine)
    work.checkpoint("m+rough", "quantize/rtn", {"model.safetensors": 300}, parents=of_model, facts=rough)
    data = {"path": str(tmp_path / "work/prepared/home/m"), "digest": "digest of data"}  # was made, is not here
    adapter = {"adapter_config.json": 1, "adapter_model.safetensors": 50}
    tuning = {"recipe": {"dataset": "home", "seed": 0}, "facts": {"trainable_parameters": 12, "total_parameters": 90}}
    tuned = work.checkpoint("m+tune", "train/lora", adapter, parents=of_model | {"data": data}, **tuning)
    work.checkpoint("m+fine+tune", "train/lora", adapter, False, parents={"parent": quantized, "data": data}, **tuning)
    merge = {"parents": {"adapter": tuned, "base": model}, "facts": {"relative_distance_from_unmerged": 0.0002}}
    work.checkpoint("m+tune+merge", "merge", {"model.safetensors": 1000}, **merge)
    for name in ("m+tune", "m+fine+tune"):
        curves = "step,examples,learning_rate,train_loss,validation_loss\n0,0,0.1,,5.0\n10,80,0.1,4.5,4.8\n"
        Path(dict(work.made)[name]["path"], "curves.csv").write_text(curves)
    home = {"m": 5.0, "m+fine": 5.0001, "m+rough": 5.2, "m+tune": 4.5, "m+fine+tune": 4.55, "m+tune+merge": 4.5}
    away = {"m": 5.5, "m+fine": 5.5002, "m+rough": 5.8, "m+tune": 5.6, "m+fine+tune": 5.65, "m+tune+merge": 5.6}
    for name in home:
        noise = 0.0 if name == "m" else 1.0
        work.perplexity(name, "home", home[name], noise)
        work.perplexity(name, "away", away[name], noise)
        work.generation(name, "one two three" if name == "m" else "one two four")
    return work


def write(order: dict, folder: Path) -> tuple[gather.Report, str]:
    """Write the figures and the page as scripts/report.py does."""
    folder.mkdir()
    gathered = gather.gather(order)
    table.write_table(table.table(gathered), folder / "table.csv")
    figures = {name: (folder / f"{name}.svg").read_text() for name in gallery.draw(gathered, folder)}
    html = page.render(gathered, figures, "snakemake --configfile my.yaml --cores 2")
    (folder / "report.html").write_text(html)
    return gathered, html
