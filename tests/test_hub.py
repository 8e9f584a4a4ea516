"""What is locked of the hub, when it is asked and when not, and the workflow from the hub to a checkpoint."""

import hashlib
import json
import shutil

import pytest
from huggingface_hub import constants

from quantune.core.errors import ConfigError
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.sources import lock
from tests.hub import BIG, OPT, model_order, opt_repository
from tests.workflow import Folder, kill, processes, wait_for


def test_a_model_is_locked_once_and_never_asked_for_again(hub, asked, monkeypatch, capsys):
    asked["models"]["other"] = {"hub": "a/not-there"}
    loaded = load.load(asked)
    assert hub.requests == [], "reading a configuration asks nothing"
    artefact = Plan(loaded).checkpoint("opt+rtn-w4").parents["parent"]
    paths = [item[1] for item in hub.requests if "opt" in item[1] or "cdn" in item[1]]  # the library asks more
    assert [path.split("/")[1] for path in paths] == ["api", "a", "cdn"], "the listing and config.json"
    assert "licence: mit" in capsys.readouterr().err
    entry = json.loads((hub.repositories["models/a/opt"].parents[1] / "sources.lock.json").read_text())["models"]
    assert list(entry) == ["a/opt@main"], "what no target needs is not asked for"
    entry = entry["a/opt@main"]
    assert entry["commit"] == hub.commit("models/a/opt") and entry["config"]["hidden_size"] == 128
    assert list(entry["files"]) == ["config.json", "model.safetensors", "tokenizer.json"], "one set of weights, no code"
    assert artefact.sources["model.safetensors"] == hashlib.sha256(BIG).hexdigest()
    assert artefact.sources["config.json"] == "git:" + entry["files"]["config.json"]["git"]

    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Plan(load.load(asked)).checkpoint("opt+rtn-w4").parents["parent"].digest == artefact.digest
    assert hub.requests == []


def test_a_locked_model_is_checked_when_the_configuration_is_read(hub, asked):
    model_order(asked)
    asked["quantizations"]["rtn-w4"]["group_size"] = 96
    with pytest.raises(ConfigError, match="group_size: 96 does not divide the layers' input width 128"):
        load.load(asked)


def test_a_fitting_group_is_asked_of_a_model_that_is_not_locked_yet(hub, asked):
    asked["quantizations"]["rtn-w4"]["group_size"] = 96
    with pytest.raises(ConfigError, match="group_size: 96 does not divide the layers' input width 128"):
        Plan(load.load(asked)).checkpoint("opt+rtn-w4")


def test_offline_and_not_locked(hub, asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        model_order(asked)
    assert str(caught.value).startswith("models.opt.hub: 'a/opt' at 'main' is not in the lock file 'sources.lock.json'")
    assert "unset it for one dry run" in str(caught.value) and hub.requests == []


def test_an_evaluation_of_another_track_is_refused_once_the_model_is_known(hub, asked):
    path = hub.repositories["models/a/opt"] / "config.json"
    path.write_text(json.dumps({"model_type": "whisper", "d_model": 128}))
    plan = Plan(load.load(asked))
    with pytest.raises(ConfigError, match="'generation' is a text evaluation, and the model 'opt' is a speech model"):
        plan.evaluation("opt", "prompts")


def test_a_broken_lock_file(hub, asked, tmp_path):
    (tmp_path / "sources.lock.json").write_text("<<<<<<< HEAD\n")
    with pytest.raises(ConfigError, match=r"lock: 'sources.lock.json' is not a lock file \(.*\); restore it from"):
        load.load(asked)


def test_pickled_weights_are_locked_only_where_there_are_no_others(hub, asked, tmp_path):
    both = opt_repository(tmp_path / "both")
    shutil.copy(OPT / "model.safetensors", both)
    shards = opt_repository(tmp_path / "shards", shards=2)
    (shards / "training_args.bin").write_bytes(b"code")
    cases = {
        opt_repository(tmp_path / "whole"): ["pytorch_model.bin"],
        both: ["model.safetensors"],
        shards: [
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
        ],
    }
    small = ["config.json", "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"]
    for folder, weights in cases.items():
        (tmp_path / "sources.lock.json").unlink(missing_ok=True)
        hub.repositories["models/a/opt"] = folder
        order = model_order(asked)
        assert sorted(order["options"]["files"]) == sorted([*small, "vocab.json", *weights])
        assert all(len(order["sources"][name]) == 64 for name in weights if not name.endswith(".json")), "SHA-256"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hub": "a/otp"}, "does not exist or is private (401): check the name at"),
        ({"hub": "a/opt", "revision": "v9"}, "at revision 'v9': this revision does not exist"),
    ],
)
def test_what_is_not_there_is_named(hub, asked, entry, message):
    asked["models"]["opt"] = entry
    with pytest.raises(ConfigError) as caught:
        model_order(asked)
    assert str(caught.value).startswith("models.opt.hub: the model ") and message in str(caught.value)


def test_a_hub_that_cannot_be_reached(hub, asked):
    hub.stop()
    with pytest.raises(ConfigError, match=r"cannot be reached \(.*\); check the network and HF_ENDPOINT"):
        model_order(asked)
    hub.__enter__()


def test_a_server_that_never_stops_limiting(hub, asked, no_waiting):
    for _ in range(9):
        hub.fail("/api/", status=429, headers={"Retry-After": "7"})
    with pytest.raises(ConfigError, match=r"still limits the rate of requests \(429\); run again later"):
        model_order(asked)


def test_only_the_files_of_the_splits_are_locked(hub, asked):
    found = Plan(load.load(asked)).dataset("news")
    assert found.options["files"] == {"train": ["train-0.txt", "train-1.txt"], "test": ["test.txt"]}
    assert sorted(found.sources) == ["test.txt", "train-0.txt", "train-1.txt"]
    (hub.repositories["datasets/a/text"] / "README.md").write_text("A new commit of the card.")
    asked["datasets"]["news"]["splits"]["old"] = "**/train-9.txt"
    with pytest.raises(ConfigError, match="this revision does not exist"):  # looked up at the locked commit, now gone
        Plan(load.load(asked)).dataset("news")
    (hub.repositories["datasets/a/text"] / "README.md").write_text("About.")
    found = Plan(load.load(asked)).dataset("news")
    assert found.options["files"]["old"] == ["old/train-9.txt"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"train": "tran-*.txt", "test": "test.txt"},
            "datasets.news.splits: no file 'tran-*.txt' in the dataset 'a/text' at revision 'main'; did you mean",
        ),
        ({"train": 0.5, "test": 0.5}, "has data in several folders (., old); name the files in 'splits'"),
    ],
)
def test_splits_that_match_nothing_or_too_much(hub, asked, splits, message):
    asked["datasets"]["news"]["splits"] = splits
    with pytest.raises(ConfigError) as caught:
        Plan(load.load(asked)).dataset("news")
    assert message in str(caught.value)


def test_a_dataset_by_shares_is_all_its_data(hub, asked):
    (hub.repositories["datasets/a/text"] / "old/train-9.txt").unlink()
    asked["datasets"]["news"]["splits"] = {"train": 0.5, "test": 0.5}
    found = Plan(load.load(asked)).dataset("news")
    assert found.options["files"] == {"": ["test.txt", "train-0.txt", "train-1.txt"]}


def test_an_update_moves_the_lock_on_and_prints_what_changed(hub, asked, capsys):
    model_order(asked)
    Plan(load.load(asked)).dataset("news")
    before = hub.commit("models/a/opt")
    (hub.repositories["models/a/opt"] / "tokenizer.json").write_text("[]")
    (hub.repositories["datasets/a/text"] / "train-2.txt").write_text("New.\n")
    capsys.readouterr()
    lock.update()
    printed = capsys.readouterr().out
    assert f"models a/opt@main: {before} -> {hub.commit('models/a/opt')}; changed: tokenizer.json" in printed
    assert "added: train-2.txt" in printed
    lock.update()
    assert capsys.readouterr().out.count("unchanged at") == 2
    hub.repositories.pop("models/a/opt")
    with pytest.raises(SystemExit):
        lock.update()
    assert "models a/opt@main: kept: the model 'a/opt' at revision 'main' does not exist" in capsys.readouterr().out


def test_a_killed_job_goes_on(hub, root, tmp_path, monkeypatch):
    """Kill -9 in the middle of the weights; the next run asks for the rest alone."""
    weights = root / "assets/models/opt-2m/model.safetensors"
    hub.repositories["models/a/opt"] = weights.parent
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = Folder(tmp_path / "project", {"models": {"opt": {"hub": "a/opt"}}, "variants": ["opt"]})
    hub.stalled.clear()
    hub.fail(f"cdn{weights}", cut=1_000_000)
    running = folder.start("work/checkpoints/opt", "--cores", "1")
    arrived = "tmp/*/scratch/model.safetensors.partial"
    wait_for(lambda: any(path.stat().st_size > 500_000 for path in folder.work.glob(arrived)))
    for process in processes(r"scripts/tmp.*model\.py", folder.path):
        kill(process)
    assert running.wait(60) != 0
    (partial,) = folder.work.glob(arrived)
    have = partial.stat().st_size
    hub.stalled.set()
    folder.run("work/checkpoints/opt", "--cores", "1")
    assert hub.asked("cdn" + str(weights))[-1][2] == f"bytes={have}-"
    assert (folder.work / "checkpoints/opt/model.safetensors").read_bytes() == weights.read_bytes()
    log = (folder.work / "logs/model/opt.log").read_text()
    assert f"going on from byte {have:,}" in log and "100%" in log


def test_the_workflow_from_the_hub_and_from_urls(hub, root, tmp_path, monkeypatch):
    """A model and a dataset are downloaded; then the server is gone, and nothing is left to do."""
    hub.repositories["models/a/opt"] = root / "assets/models/opt-2m"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    text = root / "assets/text/general/test.txt"
    urls = {"test.txt": {"url": f"{hub.url}/files{text}", "sha256": hashlib.sha256(text.read_bytes()).hexdigest()}}
    folder = Folder(
        tmp_path / "project",
        {
            "models": {"opt": {"hub": "a/opt"}},
            "datasets": {"general": {"urls": urls, "splits": {"test": "test.txt"}}},
            "variants": ["opt"],
        },
    )
    targets = ["work/checkpoints/opt", "work/sources/general"]
    folder.run(*targets, "--cores", "1")
    made = folder.work / "checkpoints/opt"
    for path in (root / "assets/models/opt-2m").iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes()
    facts = json.loads((made / "provenance.json").read_text())["facts"]
    assert facts["source"]["commit"] == hub.commit("models/a/opt") and facts["source"]["licence"] == "mit"
    assert (folder.work / "sources/general/test.parquet").exists() and not list(folder.work.glob("tmp/*"))
    assert "licence: mit" in (folder.work / "logs/model/opt.log").read_text()
    locked = (folder.path / "sources.lock.json").read_text()
    hub.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert folder.planned(*targets) == set()
    assert (folder.path / "sources.lock.json").read_text() == locked
    hub.__enter__()
