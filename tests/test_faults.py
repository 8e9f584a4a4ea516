"""Kill -9 at any moment loses at most the steps since the last saved state, and changes not one bit of the result."""

import random
import time

import pytest

from tests.workflow import Folder, kill, processes, wait_for, weights

TARGET = "work/checkpoints/opt+lora"


@pytest.fixture
def untrained(finished, tmp_path):
    """A folder where all that the training needs is made, and the training itself is not."""
    folder = finished.copy(tmp_path / "project")
    (folder.work / "checkpoints/opt+lora").rename(tmp_path / "expected")
    return folder, weights(tmp_path / "expected")


def state(folder: Folder) -> bool:
    return any(folder.work.glob("tmp/*/scratch/state.pt"))


def test_a_killed_training_job_goes_on(untrained):
    folder, expected = untrained
    running = folder.start(TARGET, "--cores", "1")
    wait_for(lambda: state(folder))
    for process in processes(r"scripts/tmp.*train\.py", folder.path):
        kill(process)
    assert running.wait(120) != 0
    folder.run(TARGET, "--cores", "1")
    assert "resuming from step" in (folder.work / "logs/train/opt+lora.log").read_text()
    assert weights(folder.path / TARGET) == expected
    assert not any(folder.work.glob("tmp/*"))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_snakemake_goes_on_after_unlock(untrained, seed):
    """The orphaned job may still be at work: the new one waits for it and takes over what it made."""
    folder, expected = untrained
    running = folder.start(TARGET, "--cores", "1")
    wait_for(lambda: any(folder.work.glob("tmp/*/scratch")))
    time.sleep(random.Random(seed).uniform(0, 6))
    kill(running.pid)
    running.wait()
    folder.run("--unlock")
    folder.run(TARGET, "--cores", "1")
    assert weights(folder.path / TARGET) == expected
    assert folder.planned(TARGET) == set()


def test_a_half_written_state_is_never_used(untrained):
    folder, expected = untrained
    running = folder.start(TARGET, "--cores", "1")
    wait_for(lambda: state(folder))
    for process in [running.pid, *processes(r"scripts/tmp.*train\.py", folder.path)]:
        kill(process)
    running.wait()
    (scratch,) = folder.work.glob("tmp/*/scratch")
    (scratch / "state.partial").write_bytes(b"half")
    folder.run("--unlock")
    folder.run(TARGET, "--cores", "1")
    assert weights(folder.path / TARGET) == expected


def test_a_failing_evaluation_leaves_the_others_and_what_is_finished_is_kept(finished, tmp_path):
    """One job evaluates a variant: the current evaluations stay as they are, and a finished one is not made twice."""
    folder = finished.copy(tmp_path / "project")
    more = {"kind": "perplexity", "dataset": "general", "length": 64, "max_windows": 2}
    few = {"kind": "perplexity", "dataset": "few", "length": 1024, "split": "test"}
    folder.config["evaluations"] |= {"more": more, "few": few}
    (tmp_path / "few.txt").write_text("Three words only.")
    folder.config["datasets"]["few"] = {"path": str(tmp_path / "few.txt"), "splits": {"test": 1.0}}
    folder.write(folder.config)
    current, log = folder.work / "evaluations/opt/log", folder.work / "logs/evaluate/opt.text.log"
    before = {path.name: path.read_bytes() for path in current.iterdir() if path.name != ".snakemake_timestamp"}
    target = "work/evaluations/opt/few"
    assert folder.planned(target) >= {"evaluations/opt/more", "evaluations/opt/few"}
    assert not folder.planned(target) & {"evaluations/opt/log", "evaluations/opt/general"}
    printed = folder.run(target, "--cores", "1", check=False)
    assert "too few for one window of 1024; lower 'length'" in printed and "Traceback" not in log.read_text()
    assert {path.name: path.read_bytes() for path in current.iterdir() if path.name in before} == before

    folder.change(evaluations={"few": {"length": 2}})
    folder.run(target, "--cores", "1")
    assert f"finished by a job that was interrupted later: {folder.config.get('work', 'work')}" in log.read_text()
    assert (folder.work / "evaluations/opt/more/result.json").exists()
    assert folder.planned(target) == set() and not list(folder.work.glob("tmp/*more"))


def test_a_benchmark_is_planned(finished, tmp_path):
    folder = finished.copy(tmp_path / "project")
    folder.write(folder.config | {"benchmark": {"prompt_lengths": [16], "new_tokens": 8}})
    assert "Job" in folder.run("work/benchmarks/opt+nf4", "--dry-run")
