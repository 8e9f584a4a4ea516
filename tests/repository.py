"""The project as its users have it: a git repository with DVC, whose work folder already holds a finished small run."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workflow import CONFIG, ROOT, Folder, _outputs, made_once

LEFT_OUT = ("tests/", "docs/", "benchmarks/", "experiments/", "assets/speech/", "assets/models/whisper")
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    **{f"GIT_{who}_{what}": f"{who}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    **{f"GIT_CONFIG_{part}": "/dev/null" for part in ("GLOBAL", "SYSTEM")},
    "DVC_NO_ANALYTICS": "1",
}
# with the tests' own Python as `.venv`, which is not to be set up
MAKE = ["make", "--no-print-directory", "-o", ".venv/ready-for-dvc", "-o", ".venv/ready"]


class Repository(Folder):
    """A clone of the project, with a small configuration of its own."""

    def __init__(self, path: Path, config: dict):
        self.path, self.work, self.config = path, path / "work", copy.deepcopy(config)

    def write(self, config: dict) -> None:
        """Write the configuration, a second after git did: once DVC has written its index, git sees whole seconds."""
        path = self.path / "config.yaml"
        if path.exists():
            time.sleep(max(0.0, path.stat().st_mtime + 1 - time.time()))
        super().write(config)

    def tell(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command in it, with the tests' Python first on the path; return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.path,
            env=os.environ | ENVIRONMENT | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
        return done.stdout

    def begin(self, *command: str) -> subprocess.Popen:
        """Start a command in it, in a session of its own."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        return subprocess.Popen(command, cwd=self.path, env=os.environ | ENVIRONMENT, **quiet)

    def run(self, *arguments: str, check: bool = True) -> str:
        return self.tell("snakemake", *arguments, check=check)

    def make(self, target: str, *variables: str, check: bool = True) -> str:
        return self.tell(*MAKE, target, *variables, check=check)

    def commit(self, message: str) -> None:
        self.tell("git", "add", "--all")
        self.tell("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def clone(self, path: Path) -> "Repository":
        """Return a git clone, in which nothing has been pulled."""
        self.tell("git", "clone", "--quiet", str(self.path), str(path))
        clone = Repository(path, self.config)
        clone.link_environment()
        return clone

    def link_environment(self) -> None:
        """Make the tests' Python the one that the make targets find."""
        (self.path / ".git/info/exclude").write_text("/.venv\n")
        (self.path / ".venv").symlink_to(BIN.parent)

    def clean(self) -> bool:
        """Return whether DVC has nothing to record."""
        return "Data and pipelines are up to date." in self.tell("dvc", "status")

    def metrics(self) -> dict:
        return json.loads((self.work / "report/metrics.json").read_text())


def made(printed: str) -> set[str]:
    """Return the outputs, below the work folder, of the jobs that Snakemake says it runs."""
    jobs = re.findall(r"^Job \d+: (.*?)(?: \[made again.*)?$", printed, re.MULTILINE)
    return {made for job in jobs for made in _outputs(job)}


@pytest.fixture(scope="session")
def origin(finished, tmp_path_factory) -> Repository:
    """A repository with a finished run that DVC keeps, pushed to a remote that is a folder."""
    place = made_once(tmp_path_factory, "story", lambda path: _make_origin(path, finished))
    return Repository(place / "origin", relative(CONFIG))


def _make_origin(place: Path, finished: Folder) -> None:
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in names.split("\0"):
        if name and not name.startswith(LEFT_OUT) and name != "dvc.lock" and (ROOT / name).is_file():
            target = place / "origin" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    repository = Repository(place / "origin", relative(CONFIG))
    repository.write(repository.config)
    shutil.copytree(finished.work, repository.work, symlinks=True)
    repository.tell("git", "init", "--quiet", "--initial-branch", "main")
    repository.link_environment()
    repository.tell("dvc", "remote", "add", "--default", "store", str(place / "store"))
    repository.make("commit")
    repository.commit("A finished run")
    repository.make("push")


@pytest.fixture
def pulled(origin, tmp_path) -> Repository:
    """A fresh clone, with everything pulled."""
    clone = origin.clone(tmp_path / "clone")
    clone.make("pull")
    return clone


def relative(config: dict) -> dict:
    """Return a configuration with the paths of its sources below the repository."""
    config = copy.deepcopy(config)
    for entry in [*config["models"].values(), *config["datasets"].values()]:
        entry["path"] = str(Path(entry["path"]).relative_to(ROOT))
    return config
