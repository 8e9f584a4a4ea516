"""What DVC and Snakemake tell together, with real git and dvc: nothing stale, nothing twice, whoever is asked first."""

import json
import re
import shutil
import time

import pytest
import yaml

from tests.repository import MAKE, Repository, made
from tests.workflow import kill, wait_for, weights

RTN_A = {"checkpoints/opt+rtn-a", "evaluations/opt+rtn-a/log", "evaluations/opt+rtn-a/general", "report"}
RTN_B = {"checkpoints/opt+rtn-b", "evaluations/opt+rtn-b/log", "evaluations/opt+rtn-b/general"}
RTN_B |= {f"{item.replace('opt+', 'opt+lora+merge+')}" for item in RTN_B} | {"report"}


def bits(repository: Repository) -> float:
    return repository.metrics()["opt+rtn-a"]["log.token_perplexity"]


def test_a_pulled_clone_has_nothing_to_do(pulled, origin):
    started = time.monotonic()
    assert pulled.planned() == set()
    assert time.monotonic() - started < 30
    assert pulled.clean()
    assert "every file is as recorded" in pulled.make("check")
    for variant in ("opt+rtn-a", "opt+nf4+lora"):
        there = (repository.work / "checkpoints" / variant for repository in (pulled, origin))
        first, second = map(weights, there)
        assert first == second


def test_one_changed_number_runs_its_branch_and_back_again(pulled):
    """With it the trap that parameters changed after a pull are ignored and the old number recorded as new."""
    before = bits(pulled)
    pulled.tell("git", "switch", "--quiet", "--create", "three-bits")
    pulled.change(quantizations={"rtn-a": {"bits": 3}})
    assert not pulled.clean()
    assert made(pulled.run()) == RTN_A
    three = bits(pulled)
    assert three > before
    changed = json.loads(pulled.tell("dvc", "metrics", "diff", "--json"))["work/report/metrics.json"]
    assert {name.split(".")[0] for name in changed} == {"opt+rtn-a"}
    params = json.loads(pulled.tell("dvc", "params", "diff", "--json"))["config.yaml"]
    assert params == {"quantizations.rtn-a.bits": {"old": 8, "new": 3, "diff": -5}}

    assert made(pulled.tell("dvc", "repro")) == set(), "what Snakemake made is only recorded"
    assert pulled.clean() and bits(pulled) == three
    pulled.commit("Three bits")

    pulled.tell("git", "switch", "--quiet", "main")
    assert pulled.planned() == RTN_A, "another configuration, the artefacts of the branch"
    pulled.tell("dvc", "checkout")
    assert pulled.planned() == set() and pulled.clean() and bits(pulled) == before
    pulled.change(quantizations={"rtn-a": {"bits": 3}})
    assert pulled.planned() == RTN_A, "back by hand, without the artefacts"
    assert made(pulled.tell("dvc", "repro")) in (RTN_A, set()), "or DVC's cache of runs knows it"
    assert bits(pulled) == three and pulled.planned() == set()


@pytest.mark.slow
def test_two_branches(pulled):
    pulled.tell("git", "switch", "--quiet", "--create", "coarse")
    pulled.change(quantizations={"rtn-b": {"group_size": 32}})
    assert pulled.planned() == RTN_B
    assert made(pulled.make("commit")) == RTN_B
    pulled.commit("Smaller groups")
    coarse = pulled.metrics()
    pulled.tell("git", "switch", "--quiet", "main")
    pulled.tell("dvc", "checkout")
    assert pulled.planned() == set() and pulled.clean() and pulled.metrics() != coarse
    pulled.tell("git", "switch", "--quiet", "coarse")
    assert pulled.planned() == RTN_B
    pulled.tell("dvc", "checkout")
    assert pulled.planned() == set() and pulled.clean() and pulled.metrics() == coarse


SLOW = [pytest.param(where, marks=pytest.mark.slow) for where in ("--temp", "--queue")]


@pytest.mark.parametrize("where", ["in place", *SLOW])
def test_an_experiment_runs_its_branch_alone(pulled, where):
    before = bits(pulled)
    override = ["--set-param", "config.yaml:quantizations.rtn-a.bits=4", "--name", "four"]
    if where == "in place":
        printed = pulled.tell("dvc", "exp", "run", *override)
        assert bits(pulled) > before and pulled.planned() == set() and pulled.clean()
    elif where == "--temp":
        printed = pulled.tell("dvc", "exp", "run", "--temp", *override)
    else:
        pulled.tell("dvc", "exp", "run", "--queue", *override)
        pulled.tell("dvc", "queue", "start")
        wait_for(lambda: re.search(r"four\s.*(Success|Failed)", pulled.tell("dvc", "queue", "status")), 240)
        printed = pulled.tell("dvc", "queue", "logs", "four")
    assert made(printed) == RTN_A
    if where != "in place":
        assert bits(pulled) == before and pulled.planned() == set() and pulled.clean()
        pulled.tell("dvc", "exp", "apply", "four")
        assert bits(pulled) > before and pulled.planned() == set() and pulled.clean()


def test_a_corrupted_cache_file_is_found_and_named(pulled):
    (entry,) = [
        item
        for out in yaml.safe_load((pulled.path / "dvc.lock").read_text())["stages"]["checkpoints"]["outs"]
        if out["path"] == "work/checkpoints"
        for item in json.loads((pulled.path / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]).read_text())
        if item["relpath"] == "opt+rtn-a/model.safetensors"
    ]
    cached = pulled.path / ".dvc/cache/files/md5" / entry["md5"][:2] / entry["md5"][2:]
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(content)
    cached.chmod(0o444)
    shutil.rmtree(pulled.work / "checkpoints")
    pulled.tell("dvc", "checkout", "--force", check=False)
    printed = pulled.make("check", check=False)
    assert f"{cached} is not what DVC put there; it stands for work/checkpoints/opt+rtn-a/model.safetensors" in printed
    cached.unlink()
    shutil.rmtree(pulled.work / "checkpoints/opt+rtn-a", ignore_errors=True)
    pulled.make("pull")
    assert "every file is as recorded" in pulled.make("check")
    assert pulled.planned() == set() and pulled.clean()


@pytest.mark.parametrize("files", [3, 25])
def test_an_interrupted_pull_is_never_used_half(origin, tmp_path, files):
    clone = origin.clone(tmp_path / "clone")
    pulling = clone.begin("dvc", "pull")
    wait_for(lambda: sum(path.is_file() for path in clone.path.glob("work/**/*")) >= files)
    kill(pulling.pid)
    pulling.wait()
    planned = clone.planned()
    clone.make("pull")
    assert clone.planned() == set() and clone.clean()
    assert "every file is as recorded" in clone.make("check")
    assert planned <= {str(path.parent.relative_to(clone.work)) for path in clone.work.glob("**/provenance.json")}


def test_half_an_artefact_is_made_again(pulled):
    """As a pull leaves it that was cut off and is never completed."""
    (pulled.work / "checkpoints/opt+rtn-a/model.safetensors").unlink()
    (pulled.work / "evaluations/opt+rtn-b/log/provenance.json").unlink()
    expected = {"checkpoints/opt+rtn-a", "evaluations/opt+rtn-b/log"}
    assert made(pulled.run()) == expected
    assert pulled.planned() == set()


@pytest.mark.slow
def test_dvc_repro_makes_a_clean_clone(origin, tmp_path):
    clone = origin.clone(tmp_path / "clone")
    clone.config["variants"] = ["opt+rtn-a"]
    clone.write(clone.config)
    clone.tell("git", "rm", "--quiet", "dvc.lock")
    assert made(clone.tell("dvc", "repro")) > RTN_A
    assert clone.clean() and clone.planned() == set()
    curves = json.loads(clone.tell("dvc", "metrics", "show", "--json"))
    assert curves[""]["data"]["work/report/metrics.json"]["data"] == clone.metrics()


@pytest.mark.slow
def test_an_experiment_is_told_by_its_table_and_its_curves(pulled):
    pulled.config["variants"] = ["opt+lora"]
    pulled.write(pulled.config)
    pulled.make("commit")
    pulled.commit("One training")
    rate = "config.yaml:finetunings.lora.learning_rate=0.001"
    pulled.tell("dvc", "exp", "run", "--set-param", rate, "--name", "slower")
    _, commit = json.loads(pulled.tell("dvc", "exp", "show", "--json"))
    (experiment,) = commit["experiments"]
    before, after = (item["data"] for item in (commit, experiment["revs"][0]))
    assert experiment["name"] == "slower"
    assert after["params"]["config.yaml"]["data"]["finetunings"]["lora"]["learning_rate"] == 0.001
    losses = [item["metrics"]["work/report/metrics.json"]["data"]["opt+lora"] for item in (before, after)]
    assert losses[0]["log.token_perplexity"] != losses[1]["log.token_perplexity"]
    drawn = json.loads(pulled.tell("dvc", "plots", "diff", "main", "slower", "--json"))["data"]
    (figure,) = drawn["work/report/curves/opt+lora.csv"]
    points = figure["content"]["data"]["values"]
    for revision, highest in (("main", 0.003), ("slower", 0.001)):
        own = [point for point in points if point["rev"] == revision]
        assert {point["step"] for point in own} == {"0", "5", "10", "12"}
        assert {point["field"] for point in own} == {"train_loss", "validation_loss"}
        assert highest / 2 < max(float(point["learning_rate"]) for point in own) <= highest


@pytest.mark.slow
def test_a_configuration_that_changes_meanwhile_is_not_recorded(pulled):
    """Else DVC would tell of the new number beside what was made with the old one."""
    before = (pulled.path / "dvc.lock").read_text()
    pulled.change(quantizations={"rtn-a": {"bits": 3}})
    committing = pulled.begin(*MAKE, "commit")
    wait_for(lambda: any(pulled.work.glob("tmp/*.opt+rtn-a")))
    pulled.change(quantizations={"rtn-a": {"bits": 2}})
    assert committing.wait(120) != 0
    assert (pulled.path / "dvc.lock").read_text() == before and not pulled.clean()
    assert "config.yaml changed while this ran" in pulled.tell("sh", "-c", "cat .snakemake/log/*.log", check=False)
    assert made(pulled.make("commit")) == RTN_A
    assert pulled.planned() == set() and pulled.clean()


def test_another_configuration_is_not_committed_by_mistake(pulled):
    printed = pulled.make("commit", "CONFIG=experiments/local-opt.yaml", check=False)
    assert "copy experiments/local-opt.yaml over it" in printed


def test_an_input_that_dvc_does_not_watch_is_refused(pulled, tmp_path):
    elsewhere = tmp_path / "general"
    shutil.copytree(pulled.path / "assets/text/general", elsewhere)
    pulled.change(datasets={"general": {"path": str(elsewhere)}})
    message = f"'{elsewhere}/test.txt' is read, but `dvc repro` does not check whether it changed"
    assert message in pulled.tell("dvc", "repro", check=False)
    assert message in pulled.make("commit", check=False)
    pulled.change(datasets={"general": {"path": "assets/text/general"}})
    pulled.config["work"] = "elsewhere"
    pulled.write(pulled.config)
    assert "DVC keeps 'work', not 'elsewhere'" in pulled.make("commit", check=False)
