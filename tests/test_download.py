"""Downloads from the hub and from URLs, against a server on loopback with the faults of real ones."""

import hashlib
import json

import pytest
from huggingface_hub import constants

from quantune.core.errors import ConfigError, QuantuneError
from quantune.sources import download
from tests.hub import BIG, model_order


def fetch(order: dict, folder) -> None:
    folder.mkdir(exist_ok=True)
    download.fetch_sources(order, folder)


def url_order(hub, path, digest=None) -> dict:
    digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()
    urls = {path.name: f"{hub.url}/files{path}"}
    return {"sources": {path.name: digest}, "options": {"download": {"urls": urls}}}


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


@pytest.mark.parametrize("content", [BIG[:-1] + b"x", b"short"])
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
    with pytest.raises(QuantuneError, match=r"'tokenizer.json' of the model 'a/opt' .*no longer exists \(404\)"):
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


def test_a_download_while_offline(hub, asked, tmp_path, monkeypatch):
    order = model_order(asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(QuantuneError, match="cannot be downloaded while HF_HUB_OFFLINE is set; unset it"):
        fetch(order, tmp_path / "scratch")


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
    ("status", "message"), [(401, "access is denied (401)"), (403, "denied (403)"), (404, "does not exist (404)")]
)
def test_a_url_that_is_refused(hub, tmp_path, status, message):
    hub.fail("/files", status=status)
    with pytest.raises(QuantuneError) as caught:
        fetch(url_order(hub, tmp_path / "hub/data/test.txt"), tmp_path / "scratch")
    assert message in str(caught.value) and "/files/" in str(caught.value)
