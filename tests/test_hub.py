"""Sources from the hub and from URLs, against a server on loopback with the faults of real ones."""

import hashlib
import json
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from quantune import config, download, lock
from quantune.errors import ConfigError, QuantuneError
from quantune.plan import Plan
from tests.hub import Hub
from tests.workflow import Folder

TEXT = "First story.\n\nSecond story.\n"
BIG = bytes(range(256)) * 8000  # 2 MB


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with a model and a dataset; the working directory, and so the lock file, are the test's own."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model, data = tmp_path / "hub/model", tmp_path / "hub/data"
    for path, content in {
        model / "config.json": json.dumps({"model_type": "opt", "hidden_size": 128, "ffn_dim": 512}),
        model / "tokenizer.json": "{}",
        model / "model.safetensors": BIG,
        model / "pytorch_model.bin": b"pickled",
        model / "modeling_opt.py": "raise SystemExit",
        model / "onnx/model.safetensors": b"other",
        data / "README.md": "About.",
        data / "train-0.txt": TEXT,
        data / "train-1.txt": TEXT.replace("story", "tale"),
        data / "test.txt": "Held out.\n",
        data / "old/train-9.txt": "Old.\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with Hub({"models/a/opt": model, "datasets/a/text": data}) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        close_session()
        yield found
    close_session()


@pytest.fixture
def asked(raw):
    """The configuration with its model and one dataset on the hub."""
    raw["models"] = {"opt": {"hub": "a/opt"}}
    raw["datasets"]["news"] = {"hub": "a/text", "splits": {"train": "train-*.txt", "test": "test.txt"}}
    return raw


@pytest.fixture
def no_waiting(monkeypatch):
    """What the program waited for, without waiting."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def fetch(order: dict, folder) -> None:
    folder.mkdir(exist_ok=True)
    download.fetched(order, folder)


def model_order(asked) -> dict:
    return Plan(config.load(asked)).checkpoint("opt").order()


def url_order(hub, path, digest=None) -> dict:
    digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()
    urls = {path.name: f"{hub.url}/files{path}"}
    return {"sources": {path.name: digest}, "options": {"download": {"urls": urls}}}


def test_a_model_is_locked_once_and_never_asked_for_again(hub, asked, monkeypatch, capsys):
    asked["models"]["other"] = {"hub": "a/not-there"}
    loaded = config.load(asked)
    assert hub.requests == [], "reading a configuration asks nothing"
    artefact = Plan(loaded).checkpoint("opt+rtn-w4").parents["parent"]
    paths = [item[1] for item in hub.requests if "opt" in item[1] or "cdn" in item[1]]  # the library asks more
    assert [path.split("/")[1] for path in paths] == ["api", "a", "cdn"], "the listing and config.json"
    assert "licence: mit" in capsys.readouterr().err
    entry = json.loads((hub.repositories["models/a/opt"].parents[1] / "sources.lock.json").read_text())["models"]
    assert list(entry) == ["a/opt@main"], "what no target needs is not asked for"
    entry = entry["a/opt@main"]
    assert entry["commit"] == hub.commit("models/a/opt") and entry["config"]["hidden_size"] == 128
    assert list(entry["files"]) == ["config.json", "model.safetensors", "tokenizer.json"], "no pickles, no code"
    assert artefact.sources["model.safetensors"] == hashlib.sha256(BIG).hexdigest()
    assert artefact.sources["config.json"] == "git:" + entry["files"]["config.json"]["git"]

    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Plan(config.load(asked)).checkpoint("opt+rtn-w4").parents["parent"].digest == artefact.digest
    assert hub.requests == []


def test_a_locked_model_is_checked_when_the_configuration_is_read(hub, asked):
    model_order(asked)
    asked["quantizations"]["rtn-w4"]["group_size"] = 96
    with pytest.raises(ConfigError, match="group_size: 96 does not divide the layers' input width 128"):
        config.load(asked)


def test_a_fitting_group_is_asked_of_a_model_that_is_not_locked_yet(hub, asked):
    asked["quantizations"]["rtn-w4"]["group_size"] = 96
    with pytest.raises(ConfigError, match="group_size: 96 does not divide the layers' input width 128"):
        Plan(config.load(asked)).checkpoint("opt+rtn-w4")


def test_offline_and_not_locked(hub, asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        model_order(asked)
    assert str(caught.value).startswith("models.opt.hub: 'a/opt' at 'main' is not in the lock file 'sources.lock.json'")
    assert "unset it for one dry run" in str(caught.value) and hub.requests == []


def test_a_broken_lock_file(hub, asked, tmp_path):
    (tmp_path / "sources.lock.json").write_text("<<<<<<< HEAD\n")
    with pytest.raises(ConfigError, match=r"lock: 'sources.lock.json' is not a lock file \(.*\); restore it from"):
        config.load(asked)


def test_only_pickled_weights_are_refused_before_any_job(hub, asked, tmp_path):
    for path in hub.repositories["models/a/opt"].rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError) as caught:
        model_order(asked)
    message = "has only pickled weights (pytorch_model.bin), which can run code when loaded; look for a conversion"
    assert message in str(caught.value) and f"{hub.url}/a/opt/discussions" in str(caught.value)
    assert not (tmp_path / "sources.lock.json").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"hub": "a/otp"}, "does not exist or is private (401): check the name at"),
        ({"hub": "a/opt", "revision": "v9"}, "at revision 'v9': there is no such revision"),
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


def test_a_gated_repository_needs_its_licence_accepted_and_a_token(hub, asked, monkeypatch, tmp_path):
    hub.token, hub.licence = "hf_secret", "llama3"
    message = rf"is gated \(401\): accept its licence \(llama3\) at {hub.url}/a/opt and set HF_TOKEN to a token"
    with pytest.raises(ConfigError, match=message):
        model_order(asked)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ConfigError, match=r"is gated \(403\): .* and use a token of that account in HF_TOKEN"):
        model_order(asked)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    order = model_order(asked)
    fetch(order, tmp_path / "scratch")
    assert all(item[3] is None for item in hub.asked("/cdn/")), "the token stays with the hub"
    assert "hf_secret" not in json.dumps(order) + (tmp_path / "sources.lock.json").read_text()


def test_a_download_brings_the_locked_files_and_says_where_from(hub, asked, tmp_path, capsys):
    order = model_order(asked)
    fetch(order, tmp_path / "scratch")
    found = {path.name for path in (tmp_path / "scratch").iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "scratch/model.safetensors").read_bytes() == BIG
    assert f"{hub.url}/a/opt at commit {hub.commit('models/a/opt')}; licence: mit" in capsys.readouterr().out
    assert download.facts(order)["source"]["commit"] == hub.commit("models/a/opt")


def test_a_cut_connection_goes_on_where_it_was_cut(hub, asked, tmp_path, no_waiting):
    order = model_order(asked)
    hub.fail("cdn" + str(hub.repositories["models/a/opt"] / "model.safetensors"), cut=1_000_000)
    fetch(order, tmp_path / "scratch")
    first, second = [item[2] for item in hub.asked("/cdn/") if item[1].endswith("model.safetensors")]
    begin = int(second.removeprefix("bytes=").removesuffix("-"))
    assert first is None and 1_000_000 - download.CHUNK <= begin <= 1_000_000
    assert hub.sent["model.safetensors"] == 1_000_000 + len(BIG) - begin
    assert (tmp_path / "scratch/model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("have", [500_000, len(BIG)])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_killed_download_goes_on(hub, asked, tmp_path, have, ranges):
    hub.ranges = ranges
    order = model_order(asked)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/model.safetensors.partial").write_bytes(BIG[:have])
    fetch(order, tmp_path / "scratch")
    assert (tmp_path / "scratch/model.safetensors").read_bytes() == BIG
    assert hub.sent["model.safetensors"] == (len(BIG) - have if ranges else len(BIG))


def test_what_arrived_of_another_file_is_thrown_away(hub, asked, tmp_path):
    order = model_order(asked)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/model.safetensors.partial").write_bytes(b"other")
    fetch(order, tmp_path / "scratch")
    assert (tmp_path / "scratch/model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("content", [BIG[:-1] + b"x", BIG + b"more", b"short"])
def test_a_changed_file_under_a_pinned_name_fails_with_both_hashes(hub, asked, tmp_path, content):
    order = model_order(asked)
    (hub.repositories["models/a/opt"] / "model.safetensors").write_bytes(content)
    with pytest.raises(QuantuneError) as caught:
        fetch(order, tmp_path / "scratch")
    for part in (
        hashlib.sha256(BIG).hexdigest(),
        hashlib.sha256(content).hexdigest(),
        "'model.safetensors' of",
        "lock",
    ):
        assert part in str(caught.value)
    assert not list((tmp_path / "scratch").glob("model.safetensors*"))


def test_a_changed_small_file_fails_with_both_blob_ids(hub, asked, tmp_path):
    order = model_order(asked)
    (hub.repositories["models/a/opt"] / "tokenizer.json").write_text("[]")
    with pytest.raises(QuantuneError, match=r"expected git blob 9e26dfee\w+, 2 bytes, found git blob \w{40}, 2 bytes"):
        fetch(order, tmp_path / "scratch")


def test_a_file_that_has_gone(hub, asked, tmp_path):
    order = model_order(asked)
    (hub.repositories["models/a/opt"] / "tokenizer.json").unlink()
    with pytest.raises(QuantuneError, match=r"'tokenizer.json' of the model 'a/opt' .*no longer there \(404\)"):
        fetch(order, tmp_path / "scratch")


def test_a_name_that_leads_out_of_the_folder(hub, tmp_path):
    order = url_order(hub, tmp_path / "hub/data/test.txt")
    order["sources"] = {"../x": "0" * 64}
    order["options"]["download"]["urls"]["../x"] = hub.url
    with pytest.raises(QuantuneError, match="leads out of the folder"):
        fetch(order, tmp_path / "scratch")


@pytest.mark.parametrize("path", ["/api/models/a/opt", "resolve", "/cdn/"])
def test_too_many_requests_are_waited_for(hub, asked, tmp_path, no_waiting, path):
    hub.fail(path, status=429, headers={"Retry-After": "7"})
    fetch(model_order(asked), tmp_path / "scratch")
    assert no_waiting == [8.0] and (tmp_path / "scratch/model.safetensors").exists()


def test_a_server_that_never_stops_limiting(hub, asked, no_waiting):
    for _ in range(9):
        hub.fail("/api/", status=429, headers={"Retry-After": "7"})
    with pytest.raises(ConfigError, match=r"still limits the rate of requests \(429\); run again later"):
        model_order(asked)


def test_a_download_while_offline(hub, asked, tmp_path, monkeypatch):
    order = model_order(asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(QuantuneError, match="cannot be downloaded while HF_HUB_OFFLINE is set; unset it"):
        fetch(order, tmp_path / "scratch")


def test_only_the_files_of_the_splits_are_locked(hub, asked):
    found = Plan(config.load(asked)).dataset("news")
    assert found.options["files"] == {"train": ["train-0.txt", "train-1.txt"], "test": ["test.txt"]}
    assert sorted(found.sources) == ["test.txt", "train-0.txt", "train-1.txt"]
    (hub.repositories["datasets/a/text"] / "README.md").write_text("A new commit of the card.")
    asked["datasets"]["news"]["splits"]["old"] = "**/train-9.txt"
    with pytest.raises(ConfigError, match="there is no such revision"):  # looked up at the locked commit, now gone
        Plan(config.load(asked)).dataset("news")
    (hub.repositories["datasets/a/text"] / "README.md").write_text("About.")
    found = Plan(config.load(asked)).dataset("news")
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
        Plan(config.load(asked)).dataset("news")
    assert message in str(caught.value)


def test_a_dataset_by_shares_is_all_its_data(hub, asked):
    (hub.repositories["datasets/a/text"] / "old/train-9.txt").unlink()
    asked["datasets"]["news"]["splits"] = {"train": 0.5, "test": 0.5}
    found = Plan(config.load(asked)).dataset("news")
    assert found.options["files"] == {"": ["test.txt", "train-0.txt", "train-1.txt"]}


def test_an_update_moves_the_lock_on_and_prints_what_changed(hub, asked, capsys):
    model_order(asked)
    Plan(config.load(asked)).dataset("news")
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
    lock.update()
    assert "models a/opt@main: kept: the model 'a/opt' at revision 'main' does not exist" in capsys.readouterr().out


def test_a_url_resumes_and_is_checked(hub, tmp_path, no_waiting):
    path = tmp_path / "hub/model/model.safetensors"
    hub.fail("/files", cut=600_000)
    hub.fail("/files", status=429, headers={"Retry-After": "3"})
    fetch(url_order(hub, path), tmp_path / "scratch")
    assert (tmp_path / "scratch/model.safetensors").read_bytes() == BIG
    assert hub.asked("/files")[-1][2].startswith("bytes=") and 4.0 in no_waiting
    with pytest.raises(QuantuneError) as caught:
        fetch(url_order(hub, path, "0" * 64), tmp_path / "other")
    assert f"expected SHA-256 {'0' * 64}, found SHA-256 {hashlib.sha256(BIG).hexdigest()}" in str(caught.value)
    assert "change 'sha256'" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "access is denied (401)"), (403, "denied (403)"), (404, "is not there (404)")]
)
def test_a_url_that_is_refused(hub, tmp_path, status, message):
    hub.fail("/files", status=status)
    with pytest.raises(QuantuneError) as caught:
        fetch(url_order(hub, tmp_path / "hub/data/test.txt"), tmp_path / "scratch")
    assert message in str(caught.value) and "/files/" in str(caught.value)


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
