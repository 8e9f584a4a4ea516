"""DVC's remote on S3, and everything pulled with the network off."""

import json
import os
import shutil
import subprocess

import pytest
import soundfile

from tests.repository import ENVIRONMENT, MAKE, made, relative
from tests.voices import WHISPER
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


def offline(folder: Folder, *command: str) -> str:
    """Run a command in a namespace without any network, not even loopback."""
    if not has_namespaces():
        pytest.skip("needs `unshare --map-root-user --net`: network namespaces for this user")
    done = subprocess.run(
        [*NO_NETWORK, *command], cwd=folder.path, env=os.environ | ENVIRONMENT, text=True, capture_output=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_everything_is_made_again_with_the_network_off(pulled):
    """From the pulled sources and models alone; also what the hub and `datasets` would look up by themselves."""
    pulled.config["variants"] = ["opt+rtn-a", "opt+lora+merge"]
    pulled.write(pulled.config)
    for path in ("prepared", "evaluations", "report", "checkpoints/opt+rtn-a", "checkpoints/opt+lora+merge"):
        shutil.rmtree(pulled.work / path)
    printed = offline(pulled, "snakemake", "--cores", "2")
    assert made(printed) >= {"report", "checkpoints/opt+lora+merge", "prepared/log/opt"}
    assert "nothing to make" in offline(pulled, "snakemake", "plan", "--quiet", "all")
    offline(pulled, "dvc", "repro")
    assert "every file is as recorded" in offline(pulled, *MAKE, "check")
    assert "3 of 3 bit-equal" in offline(pulled, *MAKE, "verify", "ONLY=opt+rtn-a")
    offline(pulled, *MAKE, "current")
    assert "Nothing was removed" in offline(pulled, *MAKE, "clean-stale")


@pytest.mark.slow
def test_transcripts_and_benchmarks_need_no_network(tmp_path, heard):
    models = {"opt": CONFIG["models"]["opt"], "whisper": {"path": str(WHISPER)}}
    sweep = {"prompt_lengths": [8], "batch_sizes": [1], "new_tokens": 4, "dtype": "float32"}
    folder = Folder(tmp_path / "project", {"models": models, "variants": ["opt", "whisper"], "benchmark": sweep})
    folder.write(folder.config | {"recordings": {"talk": {"path": "talk.wav", "language": "en"}}})
    soundfile.write(folder.path / "talk.wav", heard[0][0], 16_000)
    assert made(offline(folder, *folder.command("transcripts", "benchmarks", "--cores", "1"))) >= {
        "transcripts/whisper/talk",
        "benchmarks/opt",
        "benchmarks/whisper",
    }
    for model in ("opt", "whisper"):
        (point,) = json.loads((folder.work / f"benchmarks/{model}/result.json").read_text())["points"]
        assert point["fits"]


@pytest.mark.slow
def test_a_hub_model_that_was_pulled_needs_no_network(hub, root, tmp_path, monkeypatch):
    hub.repositories["models/a/opt"] = root / "assets/models/opt-2m"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    config = relative(CONFIG) | {"models": {"opt": {"hub": "a/opt"}}, "variants": ["opt+rtn-a"]}
    for entry in config["datasets"].values():
        entry["path"] = str(root / entry["path"])
    folder = Folder(tmp_path / "project", config)
    folder.run("checkpoints", "--cores", "2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert made(offline(folder, *folder.command("--cores", "2"))) == {
        "evaluations/opt/log",
        "evaluations/opt/general",
        "evaluations/opt+rtn-a/log",
        "evaluations/opt+rtn-a/general",
        "report",
    }
