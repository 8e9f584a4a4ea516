"""The report, on a small set of artefacts whose numbers are known."""

import csv
import json
import math
import re
from pathlib import Path

import numpy
import pandas
import pytest

from quantune import page, plots, report, table, tradeoffs, words
from quantune.errors import QuantuneError

TOKENS, WINDOWS = 100, 40
NOISE = numpy.tile([1.0, -1.0], WINDOWS // 2)  # sums to zero: it widens intervals and moves nothing
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
        self.recipes = {}

    def artefact(self, path: str, stage: str, parents=None, recipe=None, facts=None, files=None, sources=None) -> dict:
        """Write the records of an artefact; return its reference."""
        place = self.folder / path
        place.mkdir(parents=True, exist_ok=True)
        sizes = [{"path": name, "size": size, "sha256": SHA} for name, size in (files or {}).items()]
        provenance = {"digest": f"digest of {path}", "stage": stage, "version": 1, "recipe": recipe or {}}
        provenance |= {"sources": sources or {}, "facts": facts or {}, "files": sizes, "packages": {"torch": "2.13.0"}}
        provenance["parents"] = {role: [parent] for role, parent in (parents or {}).items()}
        run = {"started": "2026-01-02T03:04:05Z", "seconds": 1.5, "command": "snakemake", "platform": "Linux"}
        run["hardware"] = {"cpu": "a processor", "cores": 2, "memory_bytes": 10**9}
        (place / "provenance.json").write_text(json.dumps(provenance))
        (place / "run.json").write_text(json.dumps(run))
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

    def perplexity(self, name: str, evaluation: str, per_token: float, noise: float = 0.0) -> None:
        """Write an evaluation whose mean loss is `per_token` nats, with noise of so many nats a window."""
        made = self.evaluation(name, evaluation, RECIPES[evaluation] | WINDOW_RECIPE)
        spread = numpy.linspace(-20, 20, WINDOWS)  # windows differ, and variants have that in common
        items = {"begin": range(0, WINDOWS * 101, 101), "tokens": TOKENS, "bytes": 400, "words": 80}
        items = pandas.DataFrame(items | {"nll": per_token * TOKENS + spread + noise * NOISE})
        items.to_parquet(Path(made["path"], "items.parquet"))

    def generation(self, name: str, text: str) -> None:
        """Write a generation."""
        made = self.evaluation(name, "prompts", RECIPES["prompts"])
        item = {"prompt": RECIPES["prompts"]["prompts"][0], "text": text, "tokens": 3}
        Path(made["path"], "items.jsonl").write_text(json.dumps(item) + "\n")

    def order(self) -> dict:
        """Return the report's order."""
        recipe = {"title": "A question", "variants": [name for name, _ in self.made], "listed": self.listed}
        parents = {"checkpoints": [made for _, made in self.made], "evaluations": self.evaluated}
        recipe["evaluations"] = self.recipes
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


def write(order: dict, folder: Path) -> tuple[report.Report, str]:
    """Write the figures and the page as scripts/report.py does."""
    folder.mkdir()
    gathered = report.gather(order)
    table.write_table(table.table(gathered), folder / "table.csv")
    figures = {name: (folder / f"{name}.svg").read_text() for name in plots.draw(gathered, folder)}
    html = page.render(gathered, figures, "snakemake --configfile my.yaml --cores 2")
    (folder / "report.html").write_text(html)
    return gathered, html


def told(gathered: report.Report) -> dict[str, str]:
    return {finding.heading: " ".join(finding.sentences) for finding in words.findings(gathered)}


def test_changes_are_paired(work):
    change = report.gather(work.order()).variants["m+rough"].scores["home"].from_root
    error = math.sqrt(WINDOWS / (WINDOWS - 1) * WINDOWS) / (WINDOWS * TOKENS)  # residuals of 1 nat a window
    assert change.change == pytest.approx(math.expm1(0.2))
    assert change.low == pytest.approx(math.expm1(0.2 - 1.959964 * error), rel=1e-6)
    assert change.high == pytest.approx(math.expm1(0.2 + 1.959964 * error), rel=1e-6)
    assert change.verdict == "worse" and change.against == "m"


def test_each_step_is_compared_with_its_parent(work):
    variants = report.gather(work.order()).variants
    score = variants["m+fine+tune"].scores["home"]
    assert score.from_parent.against == "m+fine" and score.from_root.against == "m"
    assert score.from_parent.change == pytest.approx(math.expm1(4.55 - 5.0001))
    merged = variants["m+tune+merge"].scores["home"].from_parent
    assert (merged.against, merged.change, merged.p_value) == ("m+tune", 0.0, 1.0)
    assert variants["m"].scores["home"].from_root is None


def test_size_is_what_must_be_loaded(work):
    sizes = {name: variant.size_bytes for name, variant in report.gather(work.order()).variants.items()}
    assert sizes["m"] == 1000  # the tokenizer is no weight
    assert sizes["m+tune"] == 1050 and sizes["m+fine+tune"] == 450  # an adapter with its base
    assert sizes["m+tune+merge"] == 1000


def test_bits_are_those_of_the_quantization_in_force(work):
    bits = {name: variant.bits_per_weight for name, variant in report.gather(work.order()).variants.items()}
    assert bits == {"m": None, "m+fine": 4.5, "m+rough": 2.5, "m+tune": None, "m+fine+tune": 4.5, "m+tune+merge": None}


def test_findings_say_what_the_numbers_say(work):
    found = told(report.gather(work.order()))
    assert found["Compared"].startswith("5 variants of `m` (and 1 ancestor, to measure each step against)")
    smallest = found["Smallest without a significant loss against `m` (1.00 kB)"]
    assert "On every evaluation, `m+fine` (400 bytes, 60 % smaller)." in smallest
    assert "below 1 % on every evaluation, at 95 % confidence, `m+fine`" in smallest
    assert "`m+rough`" not in smallest
    tuned = found["What fine-tuning changed"]
    assert "`m+tune` against `m`: perplexity −39.35 % (95 % interval −39.54 to −39.16 %) on its target domain" in tuned
    assert "on general text (away)" in tuned
    assert "to +22.14 % (95 % interval +21.76 to +22.52 %) with `m+rough`" in found["What quantizing changed"]


def test_a_loss_everywhere_is_said(tmp_path):
    work = Work(tmp_path)
    model = work.checkpoint("m", "model", {"model.safetensors": 1000})
    work.checkpoint("m+rough", "quantize/rtn", {"model.safetensors": 300}, parents={"parent": model})
    work.perplexity("m", "home", 5.0)
    work.perplexity("m+rough", "home", 5.2, 1.0)
    found = told(report.gather(work.order()))
    assert (
        "On home, none of the smaller variants." in found["Smallest without a significant loss against `m` (1.00 kB)"]
    )
    assert "What fine-tuning changed" not in found


def test_one_model_alone(tmp_path):
    work = Work(tmp_path)
    work.checkpoint("m", "model", {"model.safetensors": 1000})
    work.perplexity("m", "home", 5.0)
    gathered, html = write(work.order(), tmp_path / "report")
    assert list(told(gathered)) == ["Compared"] and "nothing to compare" in told(gathered)["Compared"]
    assert "What fine-tuning" not in html


def test_no_evaluations(work, tmp_path):
    order = work.order()
    order["recipe"]["evaluations"], order["parents"]["evaluations"] = {}, []
    gathered, _ = write(order, tmp_path / "report")
    assert "No perplexity was evaluated" in told(gathered)["Compared"]
    assert not list((tmp_path / "report").glob("quality-size*"))


def test_a_broken_variant_is_infinitely_bad(tmp_path):
    work = Work(tmp_path)
    model = work.checkpoint("m", "model", {"model.safetensors": 1000})
    work.checkpoint("m+rough", "quantize/rtn", {"model.safetensors": 300}, parents={"parent": model})
    work.perplexity("m", "home", 5.0)
    work.perplexity("m+rough", "home", 705.0, 1.0)
    gathered, html = write(work.order(), tmp_path / "report")
    assert "∞" in html and "1 not shown" in (tmp_path / "report/quality-size.home.svg").read_text()
    assert "home.token_perplexity" not in table.metrics(gathered)["m+rough"]


def test_two_models_are_compared_apart(tmp_path):
    work = Work(tmp_path)
    for name in ("m", "n"):
        model = work.checkpoint(name, "model", {"model.safetensors": 1000})
        work.checkpoint(f"{name}+fine", "quantize/rtn", {"model.safetensors": 300}, parents={"parent": model})
        work.perplexity(name, "home", 5.0)
        work.perplexity(f"{name}+fine", "home", 5.0, 1.0)
    gathered, _ = write(work.order(), tmp_path / "report")
    assert sum(heading.startswith("Smallest") for heading in told(gathered)) == 2
    assert "use bits per byte" in told(gathered)["Compared"]
    assert "bits per byte" in (tmp_path / "report/quality-size.home.svg").read_text()


def test_table_is_unrounded(work, tmp_path):
    write(work.order(), tmp_path / "report")
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert float(rows["m+rough"]["home.token_perplexity"]) == pytest.approx(math.exp(5.2), rel=1e-14)
    assert rows["m+fine+tune"]["listed"] == "False" and rows["m+fine+tune"]["steps"] == "fine+tune"
    assert rows["m"]["home.change_from_parent"] == ""
    assert rows["m+tune"]["kind"] == "finetuning" and rows["m+tune"]["trainable_parameters"] == "12"


def test_metrics_are_flat(work):
    metrics = table.metrics(report.gather(work.order()))
    assert metrics["m"]["size_bytes"] == 1000
    assert metrics["m"]["away.bits_per_byte"] == pytest.approx(5.5 * TOKENS / 400 / math.log(2))


def test_page_needs_no_network(work, tmp_path):
    _, html = write(work.order(), tmp_path / "report")
    addresses = re.findall(r'\b(?:src|srcset|href|action|data)="([^"]*)"', html)
    assert len(addresses) == 5  # four figures, and the table beside the page
    assert all(address.startswith("data:image/svg+xml;base64,") or address == "table.csv" for address in addresses)
    assert "@import" not in html and "url(" not in html and "fetch(" not in html


def test_lineage_leads_to_the_sources(work, tmp_path):
    _, html = write(work.order(), tmp_path / "report")
    lineage = json.loads(re.search(r'id="lineage">(.*?)</script>', html)[1])
    places = {Path(path).relative_to(work.folder).as_posix(): item for path, item in lineage.items()}
    evaluation = places["evaluations/m+tune/home"]
    assert evaluation["again"].endswith("evaluations/m+tune/home --configfile my.yaml")
    assert evaluation["numbers"]["token perplexity"].startswith("90.0")
    assert evaluation["parents"] == [str(work.folder / "checkpoints/m+tune")]
    assert places["checkpoints/m+tune"]["parents"][0] == str(work.folder / "checkpoints/m")
    assert places["checkpoints/m"]["sources"] == {"model.bin": SHA}
    assert places["checkpoints/m"]["run"]["hardware"]["cpu"] == "a processor"
    assert places["prepared/home/m"]["digest"] == "digest of data" and "stage" not in places["prepared/home/m"]


def test_text_from_outside_is_escaped(work, tmp_path):
    _, html = write(work.order(), tmp_path / "report")
    assert "Say &lt;/script&gt;&lt;b&gt;" in html and "Say </script><b>" not in html
    assert page.embedded({"x": "</script>"}) == '{"x":"\\u003c/script>"}'
    assert page.embedded({"x": math.inf}) == '{"x":null}'


def test_same_bytes_again(work, tmp_path):
    for name in ("one", "two"):
        write(work.order(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_generations_mark_the_beginning_in_common():
    assert page.same_beginning("one two four", "one two three") == len("one two ")
    assert page.same_beginning("same", "same") == 4
    assert page.same_beginning("a", "b") == 0


def test_best_tradeoffs():
    assert tradeoffs.best_tradeoffs([(3, 1), (1, 5), (2, 6), (2, 3), (4, 1)]) == [(1, 5), (2, 3), (3, 1)]


def benchmark(work: Work, name: str, rate: float, memory: int, device: str = "A processor") -> None:
    """Write a benchmark: decode at `rate` tokens/s ± 1 % at batch size 1 and 4, prefill ten times that."""
    made = work.artefact(f"benchmarks/{name}", "benchmark", {"checkpoint": dict(work.made)[name]})
    machine = {"kind": "cpu", "device": device, "count": 2, "driver": None, "software": {}}
    phase, rows, points = {"peak_bytes": 2 * memory, "joules_per_token": None}, [], []
    for batch in (1, 4):
        points.append({"batch_size": batch, "prompt_length": 8, "decoder": "eager", "passed_over": {}})
        points[-1] |= {"prefill": phase, "decode": phase}
        for run, factor in enumerate((0.1, 0.99, 1.0, 1.0, 1.0, 1.01)):  # the first is warm-up
            for name_, times in (("prefill", 10), ("decode", 1)):
                row = {"batch_size": batch, "prompt_length": 8, "phase": name_, "run": run, "warmup": run == 0}
                rows.append(row | {"tokens": 100, "seconds": 100 / (rate * factor * batch * times)})
    size = {"tensors": memory, "measured": 0}
    result = {"hardware": machine, "threads": 2, "dtype": "float32", "points": points}
    result |= {"loaded_bytes": size, "running_bytes": size}
    Path(made["path"], "result.json").write_text(json.dumps(result))
    pandas.DataFrame(rows).to_parquet(Path(made["path"], "items.parquet"))
    work.benchmarks = [*getattr(work, "benchmarks", []), made]


def measured(work: Work) -> dict:
    """Return the order of a report with benchmarks."""
    order = work.order()
    order["parents"]["benchmarks"] = work.benchmarks
    return order


def test_benchmarks_are_told_and_drawn(work, tmp_path):
    for name, rate, memory in (("m", 100, 1000), ("m+fine", 200, 400), ("m+rough", 100.5, 300)):
        benchmark(work, name, rate, memory)
    gathered, html = write(measured(work), tmp_path / "report")
    told = " ".join(page.performance_words.findings(gathered)[0].sentences)
    assert "`m+rough` takes least, 300 bytes (70 % less)" in told
    assert "`m` 100 (99 to 101) tokens/s; fastest `m+fine`, 200 (198 to 202), 2 times as fast." in told
    assert "significant loss on any evaluation, `m+fine` takes least memory (400 bytes) and `m+fine` decodes" in told
    drawn = {path.stem for path in (tmp_path / "report").glob("quality-*.home.svg")}
    assert drawn == {f"quality-{name}.home" for name in ("size", "memory", "speed-batch1", "speed-batch4")}
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert float(rows["m"]["decode.batch4.prompt8.tokens_per_second"]) == pytest.approx(400)
    assert rows["m+tune"]["running_bytes"] == "" and "A processor, 2 cores, 2 threads used" in html
    assert table.metrics(gathered)["m+fine"]["prefill.batch1.prompt8.tokens_per_second_high"] == pytest.approx(2020)


def test_a_small_lead_is_no_lead(work):
    benchmark(work, "m", 100, 1000)
    benchmark(work, "m+rough", 101, 1000)
    told = " ".join(page.performance_words.findings(report.gather(measured(work)))[0].sentences)
    assert "no variant is faster in every repeat" in told and "no variant takes less" in told


def test_machines_are_never_mixed(work):
    benchmark(work, "m", 100, 1000)
    benchmark(work, "m+fine", 100, 1000, device="Another processor")
    with pytest.raises(QuantuneError, match="different machines"):
        report.gather(measured(work))
