"""The work folder as others leave it: read-only, dated in the future, damaged; hostile text in its configuration."""

import os
import re
import shutil
import subprocess
import time

import pytest

from tests import records
from tests.workflow import ROOT

HOUR = 3600
READ_ONLY = "mount -o bind {0} {0} && mount -o remount,ro,bind {0} || exit 77; cd {1}; {2}"


def read_only(project, command: str) -> str:
    """Return what a shell command prints while the work folder is mounted read-only."""
    line = READ_ONLY.format(project.work, project.path, command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "bash", "-c", line], text=True, env=environment, capture_output=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this machine allows no mounts")
    return done.stdout + done.stderr


def test_a_read_only_work_folder_is_planned_and_checked(project):
    project.change(quantizations={"rtn-a": {"bits": 3}})
    (project.work / ".hashes.json").unlink()
    snakemake = " ".join(map(str, project.command()))
    planned = read_only(project, f"{snakemake} -n")
    assert "[made again because bits: 8 -> 3]" in planned and "Error" not in planned
    table = read_only(project, f"{snakemake} plan --cores 1 --quiet all")
    assert "work/checkpoints/opt+rtn-a" in table and "4 in all" in table
    project.change(quantizations={"rtn-a": {"bits": 8}})
    assert "Nothing to be done" in read_only(project, f"{snakemake} --cores 1")
    check = f"{project.command()[0]} -c \"from quantune.upkeep.verify import check; check('config.yaml')\""
    assert "every file is as recorded" in read_only(project, check)


def test_inputs_dated_in_the_future_fail_no_job(project, tmp_path):
    data = tmp_path / "log"
    shutil.copytree(project.config["datasets"]["log"]["path"], data)
    project.change(datasets={"log": {"path": str(data)}})
    for folder, _, names in [*os.walk(project.work), *os.walk(data)]:
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            os.utime(path, (time.time() + HOUR,) * 2)
    for path in ("sources/log", "prepared/log", "checkpoints/opt+rtn-a"):
        shutil.rmtree(project.work / path)
    kept = ("data", "checkpoints")
    made = {"sources/log", "prepared/log/opt", "checkpoints/opt+rtn-a"}
    assert project.planned(*kept) == made
    project.run(*kept, "--cores", "2")
    assert project.planned(*kept) == set() and project.planned() == set()
    assert max(os.stat(path).st_mtime for path in data.iterdir()) > time.time(), "files from outside stay as they are"


def test_what_is_stale_behind_a_current_artefact_is_made_in_the_same_run(project):
    """The model is damaged, its quantization is current, the evaluation's recipe has changed."""
    project.change(evaluations={"log": {"length": 64}})
    expected = project.planned()
    assert "evaluations/opt+rtn-a/log" in expected
    (project.work / "checkpoints/opt/model.safetensors").unlink()
    assert project.planned() == expected | {"checkpoints/opt"}


def test_an_edited_record_is_made_again_and_the_message_names_it(project):
    path = project.work / "checkpoints/opt+rtn-a/provenance.json"
    path.write_text(re.sub(r'"bits_per_weight": \d', '"bits_per_weight": 1', path.read_text()))
    (project.work / "checkpoints/opt/run.json").write_bytes(b"")
    printed = project.run("--dry-run")
    assert "[made again because work/checkpoints/opt+rtn-a/provenance.json was changed" in printed
    assert "[made again because run.json was changed" in printed
    assert project.planned() == {"checkpoints/opt+rtn-a", "checkpoints/opt"}


def test_no_text_of_the_configuration_runs_in_snakemakes_report(project):
    """A title, and a record whose values the plan repeats as reasons."""
    hostile = "</script><script>alert(1)</script>\x1b[2J"
    project.write(project.config | {"title": hostile})
    recipe = {"title": f"before{hostile}"}
    records.change(
        project.work / "report/provenance.json", lambda record: record["recipe"].update(recipe, other=hostile)
    )
    printed = project.run("--dry-run")
    assert "title: " in printed and "\x1b" not in printed
    project.run("--cores", "1", "report", "--touch", check=False)
    project.run("--report", "r.html", check=False)
    assert "alert(1)" in (project.path / "r.html").read_text(), "the title is in it"
    assert "</script><script>alert" not in (project.path / "r.html").read_text()
