"""DVC's remote on S3, and everything pulled with the network off."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.repository import Repository, made, relative
from tests.workflow import CONFIG, Folder, weights

KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
NO_NETWORK = ["unshare", "--map-root-user", "--net"]


@pytest.fixture
def s3(monkeypatch):
    """An S3 server on loopback with an empty bucket `store`: its address, and a function that lists its keys."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="store")

    def keys() -> dict[str, str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="store")
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}

    yield url, keys
    server.stop()


def test_push_and_pull_on_s3_move_what_changed_and_nothing_else(pulled, s3, tmp_path):
    url, keys = s3
    pulled.tell("dvc", "remote", "add", "--default", "--force", "store", "s3://store/quantune")
    pulled.tell("dvc", "remote", "modify", "store", "endpointurl", url)
    pulled.make("push")
    before = keys()
    assert all(key.startswith("quantune/files/md5/") for key in before), "files, not tarballs"
    assert "Everything is up to date" in pulled.make("push")

    pulled.change(quantizations={"rtn-a": {"bits": 3}})
    pulled.make("commit")
    pulled.commit("Three bits")
    pulled.make("push")
    after = keys()
    assert {key: after[key] for key in before} == before, "what did not change did not move"
    record = json.loads((pulled.work / "checkpoints/opt+rtn-a/provenance.json").read_text())
    assert 0 < len(after) - len(before) < 50 and record["recipe"]["bits"] == 3

    clone = pulled.clone(tmp_path / "from-s3")
    clone.make("pull")
    assert clone.planned() == set() and clone.clean()
    assert weights(clone.work / "checkpoints/opt+rtn-a") == weights(pulled.work / "checkpoints/opt+rtn-a")
    assert "every file is as recorded" in clone.make("check")


def has_namespaces() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode


def snakemake(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", *arguments]


def offline(folder: Folder, *arguments: str) -> str:
    """Run Snakemake in a namespace without any network, not even loopback."""
    if not has_namespaces():
        pytest.skip("needs `unshare --map-root-user --net`: network namespaces for this user")
    command = folder.command if not isinstance(folder, Repository) else snakemake
    done = subprocess.run(
        [*NO_NETWORK, *command(*arguments)], cwd=folder.path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def test_everything_is_made_again_with_the_network_off(pulled):
    """From the pulled sources and models alone; also what the hub and `datasets` would look up by themselves."""
    pulled.config["variants"] = ["opt+rtn-a", "opt+lora+merge"]
    pulled.write(pulled.config)
    for path in ("prepared", "evaluations", "report", "checkpoints/opt+rtn-a", "checkpoints/opt+lora+merge"):
        shutil.rmtree(pulled.work / path)
    assert made(offline(pulled, "--cores", "2")) >= {"report", "checkpoints/opt+lora+merge", "prepared/log/opt"}
    assert "nothing to make" in offline(pulled, "plan", "--quiet", "all")


def test_a_hub_model_that_was_pulled_needs_no_network(hub, root, tmp_path, monkeypatch):
    hub.repositories["models/a/opt"] = root / "assets/models/opt-2m"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    config = relative(CONFIG) | {"models": {"opt": {"hub": "a/opt"}}, "variants": ["opt+rtn-a"]}
    for entry in config["datasets"].values():
        entry["path"] = str(root / entry["path"])
    folder = Folder(tmp_path / "project", config)
    folder.run("checkpoints", "--cores", "2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert made(offline(folder, "--cores", "2")) == {
        "evaluations/opt/log",
        "evaluations/opt/general",
        "evaluations/opt+rtn-a/log",
        "evaluations/opt+rtn-a/general",
        "report",
    }
