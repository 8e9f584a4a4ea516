"""GPUs: which there are for jobs, and that each job takes its own. No GPU is needed: the driver's answer is made up."""

import os
import re
import subprocess
import sys

import pytest

from quantune.core import gpu_turns, hardware
from quantune.planning import costs, resources
from quantune.planning.config import Config
from quantune.planning.plan import Plan
from tests.conftest import ROOT
from tests.workflow import CONFIG, Folder

ANSWER = "0, GPU-aa, 570.1, NVIDIA H200\n1, GPU-bb, 570.1, NVIDIA H200\n"
TAKE = """
import sys
from quantune.core import gpu_turns as turns, hardware
hardware.gpus = lambda: [{"uuid": name} for name in sys.argv[2:]]
print(*turns.take(all_gpus=sys.argv[1] == "all"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose driver lists two GPUs, and a torch that `build` has said to be built for a CUDA version or none."""
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text(f"#!/bin/sh\nprintf '{ANSWER}'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch = tmp_path / "torch"
    torch.mkdir()
    spec = hardware.util.spec_from_file_location("torch", torch / "__init__.py")
    monkeypatch.setattr(hardware.util, "find_spec", lambda name: spec)

    def build(cuda: str | None) -> None:
        (torch / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda!r}\nhip = None\n")
        hardware.gpus.cache_clear()

    yield build
    hardware.gpus.cache_clear()


def test_a_torch_for_cpus_sees_no_gpu_whatever_its_version_is_called(host):
    host("13.0")
    assert [gpu["uuid"] for gpu in hardware.gpus()] == ["GPU-aa", "GPU-bb"]
    assert costs.this_hardware()["gpu"] == "NVIDIA H200"
    host(None)
    assert hardware.gpus() == () and costs.this_hardware()["gpu"] is None


def test_host_memory_is_that_of_where_the_model_is_computed(host, raw):
    plan = Plan(Config.model_validate(raw))
    wanted = plan.checkpoint("opt+lora")
    host("13.0")
    on_gpu = resources.host_bytes(plan, wanted)
    host(None)
    assert resources.host_bytes(plan, wanted) == hardware.LIBRARY_BYTES + resources.estimate(plan, wanted).total
    assert on_gpu == hardware.LIBRARY_BYTES + hardware.DRIVER_BYTES + resources.weight_bytes(plan, "opt")


class Job:
    """A process that takes GPUs and keeps them until it is told to end."""

    def __init__(self, temporary, what: str, *uuids: str):
        environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", TAKE, what, *uuids], env=environment, **pipes)

    def took(self) -> list[str]:
        """Wait until it has what it wants."""
        return self.process.stdout.readline().split()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def test_each_job_takes_a_free_gpu_and_waits_where_there_is_none(tmp_path):
    first, second = Job(tmp_path, "one", "a", "b"), Job(tmp_path, "one", "a", "b")
    assert sorted([*first.took(), *second.took()]) == ["a", "b"]
    third = Job(tmp_path, "all", "b", "a")
    with pytest.raises(subprocess.TimeoutExpired):
        third.process.wait(2)
    first.end()
    second.end()
    assert sorted(third.took()) == ["a", "b"]
    third.end()


def test_the_others_are_hidden_unless_all_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_turns.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpu_turns, "_held", [])
    monkeypatch.setattr(hardware, "gpus", lambda: [{"uuid": "GPU-aa"}, {"uuid": "GPU-bb"}])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpu_turns.take() == ["GPU-aa"] and os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpu_turns.take() == ["GPU-bb"]
    while gpu_turns._held:
        os.close(gpu_turns._held.pop())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cc")
    assert gpu_turns.take() == [] and os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-cc"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert gpu_turns.take(all_gpus=True) == ["GPU-aa", "GPU-bb"] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    while gpu_turns._held:
        os.close(gpu_turns._held.pop())


def test_a_run_starts_four_jobs_for_each_gpu_unless_it_says(tmp_path, host, monkeypatch):
    host("13.0")
    (tmp_path / "torch/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = Folder(tmp_path / "project", CONFIG)
    assert re.search(r"Provided resources: .*gpu.*8", folder.run("--cores", "1", "work/sources/log"))
    fewer = folder.run("--cores", "1", "work/sources/log", "--forceall", "--resources", "gpu=1")
    assert re.search(r"Provided resources: .*gpu.*1", fewer)
