"""The report, on a small set of artefacts whose numbers are known."""

import csv
import json
import math
import re
from pathlib import Path

import pytest

from quantune.report import by_layer, findings, gather, page, table, table_files
from quantune.report.figures import tradeoffs
from tests import records
from tests.reports import SHA, TOKENS, WINDOWS, Work, write


def told(gathered: gather.Report) -> dict[str, str]:
    return {finding.heading: " ".join(finding.sentences) for finding in findings.findings(gathered)}


def test_changes_are_paired(work):
    change = gather.gather(work.order()).variants["m+rough"].scores["home"].from_root
    assert change.change == pytest.approx(math.expm1(0.2))
    assert change.estimate.items == WINDOWS and change.estimate.degrees == 4  # one cosine for ten windows
    margin = 2.776445 * change.estimate.error
    assert (change.low, change.high) == pytest.approx((math.expm1(0.2 - margin), math.expm1(0.2 + margin)), rel=1e-5)
    assert change.verdict == "worse" and change.against == "m"


def test_each_step_is_compared_with_its_parent(work):
    variants = gather.gather(work.order()).variants
    score = variants["m+fine+tune"].scores["home"]
    assert score.from_parent.against == "m+fine" and score.from_root.against == "m"
    assert score.from_parent.change == pytest.approx(math.expm1(4.55 - 5.0001))
    merged = variants["m+tune+merge"].scores["home"].from_parent
    assert (merged.against, merged.change, merged.p_value) == ("m+tune", 0.0, 1.0)
    assert variants["m"].scores["home"].from_root is None


def test_size_is_what_must_be_loaded(work):
    sizes = {name: variant.size_bytes for name, variant in gather.gather(work.order()).variants.items()}
    assert sizes["m"] == 1000  # the tokenizer is no weight
    assert sizes["m+tune"] == 1050 and sizes["m+fine+tune"] == 450  # an adapter with its base
    assert sizes["m+tune+merge"] == 1000


def test_bits_are_those_of_the_quantization_in_force(work):
    bits = {name: variant.bits_per_weight for name, variant in gather.gather(work.order()).variants.items()}
    assert bits == {"m": None, "m+fine": 4.5, "m+rough": 2.5, "m+tune": None, "m+fine+tune": 4.5, "m+tune+merge": None}


def test_findings_say_what_the_numbers_say(work):
    found = told(gather.gather(work.order()))
    assert found["Compared"].startswith("5 variants of `m` (and 1 ancestor, to measure each step against)")
    smallest = found["Smallest without a loss against `m` (1.00 kB)"]
    assert (
        "On home, `m+fine` (400 bytes, 60 % smaller) loses less than 1 %: perplexity +0.01 % (95 % interval" in smallest
    )
    assert "On every evaluation, `m+fine` (400 bytes, 60 % smaller) loses less than 1 %." in smallest
    assert "`m+rough`" not in smallest
    tuned = found["What fine-tuning changed"]
    assert "`m+tune` against `m`: perplexity −39.35 % (95 % interval −39.56 to −39.13 %) on its target domain" in tuned
    assert "on general text (away)" in tuned
    assert "to +22.14 % (95 % interval +21.71 to +22.57 %) with `m+rough`" in found["What quantizing changed"]


def test_a_loss_everywhere_is_said(tmp_path):
    work = Work(tmp_path)
    model = work.checkpoint("m", "model", {"model.safetensors": 1000})
    work.checkpoint("m+rough", "quantize/rtn", {"model.safetensors": 300}, parents={"parent": model})
    work.perplexity("m", "home", 5.0)
    work.perplexity("m+rough", "home", 5.2, 1.0)
    found = told(gather.gather(work.order()))
    assert (
        found["Smallest without a loss against `m` (1.00 kB)"]
        == "On home, no smaller variant is shown to lose less than 1 %."
    )
    assert "What fine-tuning changed" not in found


def test_one_model_alone(tmp_path):
    work = Work(tmp_path)
    work.checkpoint("m", "model", {"model.safetensors": 1000})
    work.perplexity("m", "home", 5.0)
    gathered, html = write(work.order(), tmp_path / "report")
    assert list(told(gathered)) == ["Compared"] and "no variant to compare" in told(gathered)["Compared"]
    assert "What fine-tuning" not in html


def test_no_evaluations(work, tmp_path):
    order = work.order()
    order["recipe"]["evaluations"], order["parents"]["evaluations"] = {}, []
    gathered, _ = write(order, tmp_path / "report")
    assert "Nothing was evaluated" in told(gathered)["Compared"]
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
    metrics = table.metrics(gather.gather(work.order()))
    assert metrics["m"]["size_bytes"] == 1000
    assert metrics["m"]["away.bits_per_byte"] == pytest.approx(5.5 * TOKENS / 400 / math.log(2))


def test_page_needs_no_network(work, tmp_path):
    _, html = write(work.order(), tmp_path / "report")
    addresses = re.findall(r'\b(?:src|srcset|href|action|data)="([^"]*)"', html)
    beside = {"table.csv", *(f"quality-size.{name}.{kind}" for name in ("home", "away") for kind in ("svg", "png"))}
    assert beside < set(addresses)  # links to files for papers, which a reader may follow
    beside |= {address for address in addresses if address.startswith("tables/")}
    assert all(address.startswith("data:image/svg+xml;base64,") for address in set(addresses) - beside)
    assert "@import" not in html and not re.search(r"url\((?!#)", html) and "fetch(" not in html


def test_lineage_leads_to_the_sources(work, tmp_path):
    _, html = write(work.order(), tmp_path / "report")
    lineage = json.loads(re.search(r'id="lineage">(.*?)</script>', html)[1])
    places = {Path(path).relative_to(work.folder).as_posix(): item for path, item in lineage.items()}
    evaluation = places["evaluations/m+tune/home"]
    assert evaluation["again"].endswith("evaluations/m+tune/home --configfile my.yaml")
    assert evaluation["numbers"]["token perplexity"].startswith("90 (95 % interval ")
    assert evaluation["parents"] == [str(work.folder / "checkpoints/m+tune")]
    assert str(work.folder / "checkpoints/m") in places["checkpoints/m+tune"]["parents"]
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


def test_gates_and_ranks_are_drawn_and_listed_by_layer(work, tmp_path):
    """Names of encoder and decoder say which; a layer without a number has a dash."""
    names = [f"model.decoder.layers.{layer}.self_attn.{part}" for part in ("q_proj", "v_proj") for layer in (0, 1)]
    gates = dict(zip(names, (0.125, 0.25, 0.5, 0.75), strict=True))
    ranks = {"model.encoder.layers.0.fc1": 3, "model.decoder.layers.1.fc1": 5, "lm_head": 7}
    for name, facts in (("m+tune", {"gates": gates}), ("m+fine+tune", {"ranks": ranks})):
        path = Path(dict(work.made)[name]["path"], "provenance.json")
        records.change(path, lambda record, facts=facts: record["facts"].update(facts))
    gathered, html = write(work.order(), tmp_path / "report")
    made = by_layer.studies(gathered)
    assert [study.parts for study in made["gates"]] == [{"q_proj": {0: 0.125, 1: 0.25}, "v_proj": {0: 0.5, 1: 0.75}}]
    assert [study.parts for study in made["ranks"]] == [{"encoder fc1": {0: 3}, "decoder fc1": {1: 5}}]
    rows = {part: re.findall("<td[^>]*>(.*?)</td>", row) for part, row in re.findall(CELL, html)}
    assert rows["v_proj"] == ["0.5", "0.75"] and rows["encoder fc1"] == ["3", "–"] and rows["decoder fc1"] == ["–", "5"]
    assert {"by-layer-gates", "by-layer-ranks"} <= set(table_files.write(html, tmp_path / "tables"))
    for fact, texts in (
        ("gates", ("q_proj", "v_proj", "mean gate")),
        ("ranks", ("encoder fc1", "decoder fc1", "rank")),
    ):
        drawn = (tmp_path / f"report/by-layer-{fact}.svg").read_text()
        assert all(f">{text}<" in drawn for text in texts)


CELL = r'(?s)<td class="text">([\w ]+)</td>((?:\s*<td[^>]*>[\d.–]+</td>){2})\s*</tr>'
