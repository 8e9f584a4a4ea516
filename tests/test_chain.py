"""One path through every stage, on the embedded model: what comes out is what was asked for, and opens anywhere."""

import json
import subprocess
import sys

import pandas
import pytest

from quantune.evaluations.metrics import rates
from tests.workflow import Folder, weights


def result(folder, variant, evaluation="log"):
    return json.loads((folder.work / f"evaluations/{variant}/{evaluation}/result.json").read_text())


def test_a_chain_that_no_config_names_is_built_from_the_command_line(project):
    project.run("work/evaluations/opt+int8+lora@3/log", "--cores", "2")
    record = json.loads((project.work / "checkpoints/opt+int8+lora@3/provenance.json").read_text())
    assert record["recipe"]["seed"] == 3
    assert result(project, "opt+int8+lora@3")["token_perplexity"] < result(project, "opt")["token_perplexity"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("checkpoints/opt+rtn-c", "'rtn-c' is not a step; steps: rtn-a, rtn-b, nf4, int8, lora, merge; did you mean"),
        ("checkpoints/opt+rtn-a+nf4", "'opt+rtn-a' is already quantized; 'nf4' needs full precision: 'opt+nf4'"),
        ("checkpoints/opt+lora+nf4", "merge it first: 'opt+lora+merge+nf4'"),
        ("checkpoints/opt+lora+lora", "merge it first: 'opt+lora+merge+lora'"),
        ("checkpoints/opt+merge", "'opt' has no adapter to merge"),
        ("checkpoints/opt+lora+merge+merge", "'opt+lora+merge' is already merged"),
        ("checkpoints/opt+rtn-a@3", "write 'rtn-a'"),
        ("checkpoints/otp+nf4", "'otp' is not a model; models: opt; did you mean 'opt'?"),
        ("evaluations/opt+nf4/lgo", "'lgo' is not one of the evaluations: log, general; did you mean 'log'?"),
        ("chekpoints/opt", "nothing is made at 'work/chekpoints/opt'"),
    ],
)
def test_what_cannot_be_made_is_explained(finished, target, message):
    printed = finished.run("--dry-run", f"work/{target}", check=False)
    assert message in printed and ".smk" not in printed  # the error alone, and not the place in the rules


def test_a_bad_config_stops_before_any_job(tmp_path, finished):
    folder = Folder(tmp_path / "bad", finished.config)
    folder.change(quantizations={"rtn-a": {"bits": 7}, "rtn-b": {"group_size": 24}})
    printed = folder.run("--cores", "2", check=False)
    assert "config.yaml: quantizations.rtn-a.bits: 7 is not allowed; allowed: 2, 3, 4, 5, 6 or 8" in printed
    assert not folder.work.exists()


def test_checkpoints_open_in_a_bare_session(finished, tmp_path):
    """transformers and peft alone, another working directory, nothing of this project importable."""
    program = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
base = sys.argv[1]
prompt = AutoTokenizer.from_pretrained(base)("The tide", return_tensors="pt").input_ids
for path in sys.argv[1:]:
    if "+lora" in path and "merge" not in path:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, path)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.isfinite(model(prompt).logits).all()
    assert "quantune" not in sys.modules
print("all open")
"""
    names = ["opt", "opt+rtn-a", "opt+rtn-b", "opt+nf4", "opt+lora", "opt+lora+merge", "opt+lora+merge+rtn-b"]
    paths = [str(finished.work / "checkpoints" / name) for name in names]
    done = subprocess.run([sys.executable, "-c", program, *paths], cwd=tmp_path, text=True, capture_output=True)
    assert done.stdout.endswith("all open\n"), done.stderr[-3000:]


def test_fine_tuning_improves_its_domain_and_merging_keeps_it(finished):
    before, after = result(finished, "opt"), result(finished, "opt+lora")
    assert after["token_perplexity"] < 0.98 * before["token_perplexity"]
    merged = result(finished, "opt+lora+merge")["token_perplexity"]
    assert merged == pytest.approx(after["token_perplexity"], rel=2e-3)


@pytest.mark.slow
def test_fewer_bits_cost_more(project):
    base, found = result(project, "opt")["token_perplexity"], {}
    for bits in (2, 3, 4):
        project.config["quantizations"][f"rtn-w{bits}"] = {"method": "rtn", "bits": bits, "group_size": 32}
    project.write(project.config)
    project.run(*[f"work/evaluations/opt+rtn-w{bits}/log" for bits in (2, 3, 4)], "--cores", "2")
    for bits in (2, 3, 4):
        found[bits] = result(project, f"opt+rtn-w{bits}")["token_perplexity"]
    eight = result(project, "opt+rtn-a")["token_perplexity"]
    assert abs(eight / base - 1) < 0.005
    assert eight < found[4] < found[3] < found[2]


def test_summaries_follow_from_the_raw_items(finished):
    folder = finished.work / "evaluations/opt+nf4/log"
    items = pandas.read_parquet(folder / "items.parquet")
    summary = rates.perplexity(items)
    assert len(items) == 8 and items.tokens.between(120, 127).all(), "tokens that join documents are not scored"
    assert {key: json.loads((folder / "result.json").read_text())[key] for key in summary} == summary


@pytest.mark.slow
def test_two_folders_one_machine_the_same_bytes(finished, tmp_path):
    twin = Folder(tmp_path / "elsewhere", finished.config)
    targets = ["checkpoints/opt+lora+merge+rtn-b", "checkpoints/opt+nf4+lora", "evaluations/opt+rtn-a/log"]
    twin.run(*[f"work/{target}" for target in targets], "--cores", "2")
    for target in [*targets, "checkpoints/opt+lora", "prepared/log/opt", "sources/log"]:
        assert weights(twin.work / target) == weights(finished.work / target), target
