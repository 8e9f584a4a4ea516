"""Two runs compared: `snakemake compare`."""

import shutil
import subprocess
from pathlib import Path

import pandas
import pytest

from quantune.core.errors import ConfigError, QuantuneError
from quantune.report import gather, history, history_text
from quantune.upkeep import runs
from tests import records
from tests.reports import Work


def run(folder: Path, rough: float, bits: int = 2, size: int = 300, windows: int = 0) -> Path:
    """Write a run with a report: a model and a quantized variant whose loss is `rough` nats."""
    work = Work(folder)
    model = work.checkpoint("m", "model", {"model.safetensors": 1000})
    recipe = {"bits": bits, "group_size": 32, "symmetric": True}
    files = {"model.safetensors": size}
    work.checkpoint("m+rough", "quantize/rtn", files, parents={"parent": model}, recipe=recipe)
    work.perplexity("m", "home", 5.0)
    work.perplexity("m+rough", "home", rough, 1.0)
    for made in work.evaluated if windows else ():
        items = pandas.read_parquet(Path(made["path"], "items.parquet")).head(windows)
        items.to_parquet(Path(made["path"], "items.parquet"))
    order = work.order()
    provenance = {"digest": "digest of the report", "stage": "report", "version": 1, "recipe": order["recipe"]}
    provenance |= {"sources": {}, "facts": {}, "files": [], "packages": {}, "parents": order["parents"]}
    (folder / "report").mkdir()
    records.write(folder / "report", provenance)
    return folder


def test_a_significant_change_is_told_with_its_recipe(tmp_path):
    before, now = run(tmp_path / "a", 5.2), run(tmp_path / "b", 5.1, bits=3, size=400)
    text = runs.compared(str(before), str(now))
    assert "  checkpoints/m+rough: bits: 2 -> 3" in text
    assert "m+rough: size on disk 300 bytes -> 400 bytes" in text
    (line,) = (line for line in text.split("\n") if line.startswith("  m+rough  home"))
    assert line.split()[2:5] == ["perplexity", "181", "164"] and line.endswith("p < 0.001: better")
    assert "−9.5" in line and "1 evaluation the same in every item." in text
    assert "  m: m (as before)" in text or "  m: m+rough (as before)" in text


def test_the_same_run_has_no_change(tmp_path):
    before = run(tmp_path / "a", 5.2)
    text = runs.compared(str(before), str(before))
    assert "Recipes: none changed." in text and "Numbers: 2 evaluations the same in every item." in text
    assert "->" not in text


def test_other_windows_are_not_tested(tmp_path):
    before, now = run(tmp_path / "a", 5.2, windows=30), run(tmp_path / "b", 5.1)
    assert runs.compared(str(before), str(now)).count("not tested: the windows are not the same") == 2


def test_a_moved_work_folder_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("work"), 5.2)
    Path("elsewhere").mkdir()
    Path("work").rename("elsewhere/work")
    now = run(Path("work"), 5.1)
    text = runs.compared("elsewhere", str(now))  # the folder that holds `work`
    assert "better" in text and text.startswith("work, compared with elsewhere")


def test_only_one_run_has_a_variant(work, tmp_path):
    gathered = gather.gather(work.order())
    before = gather.gather(Work.order(work) | {"path": "old/report"})
    del before.variants["m+tune"]
    changes = history.compare(before, gathered)
    assert changes.added == ["m+tune"] and "only now: m+tune" in history_text.text(changes, "old", "work")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "name the run to compare with: snakemake compare --config 'with=<git revision or folder>'"),
        (1234567, "with: 1234567 is read as a number; put it in quotes: --config 'with=\"1234567\"'"),
        ("no-such-revision", "with: 'no-such-revision' is neither a folder nor a git revision"),
        ("--help", "with: '--help' is neither a folder nor a git revision"),
        (".", "with: '.' holds no report; run snakemake there first"),
    ],
)
def test_what_is_no_run_is_one_clear_line(tmp_path, monkeypatch, given, problem):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(ConfigError) as caught:
        runs.require(given)
    assert str(caught.value).startswith(problem)


def test_a_run_whose_report_is_older_than_its_inputs_is_refused(tmp_path):
    before = run(tmp_path / "a", 5.2)
    records.change(before / "checkpoints/m/provenance.json", lambda record: record.update(digest="another"))
    with pytest.raises(QuantuneError, match="is not the one of the report beside it; run snakemake again"):
        runs.compared(str(before), str(run(tmp_path / "b", 5.2)))


def test_a_git_revision_is_read_from_dvc(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "Nothing is kept yet"], check=True)
    run(Path("work"), 5.2)
    Repo.init().add("work")
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "A run"], check=True)
    shutil.rmtree("work")
    run(Path("work"), 5.1, bits=3)
    text = runs.compared(runs.require("HEAD"), "work")
    assert text.startswith("work, compared with HEAD") and "checkpoints/m+rough: bits: 2 -> 3" in text
    assert "better" in text
    with pytest.raises(QuantuneError, match="'HEAD~1' has no results in DVC below 'work'; `make commit` keeps those"):
        runs.compared("HEAD~1", "work")
