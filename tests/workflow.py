"""A small configuration on the embedded model, run once for all tests that need a finished work folder."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parent.parent
CONFIG = {
    "models": {"opt": {"path": str(ROOT / "assets/models/opt-2m")}},
    "datasets": {
        "log": {
            "path": str(ROOT / "assets/text/saltmere"),
            "splits": {"train": "train.txt", "validation": "validation.txt", "test": "test.txt"},
        },
        "general": {"path": str(ROOT / "assets/text/general"), "splits": {"test": "test.txt"}},
    },
    "quantizations": {
        "rtn-a": {"method": "rtn", "bits": 8, "group_size": 32},
        "rtn-b": {"method": "rtn", "bits": 4, "group_size": 64, "symmetric": False},
        "nf4": {"method": "nf4", "double_quantization": True},
        "int8": {"method": "int8"},
    },
    "finetunings": {
        "lora": {
            "method": "lora",
            "dataset": "log",
            "steps": 12,
            "length": 64,
            "batch_size": 2,
            "dropout": 0.1,
            "learning_rate": 0.003,
            "evaluate_every": 5,
            "save_every": 2,
        }
    },
    "evaluations": {
        "log": {"kind": "perplexity", "dataset": "log", "length": 128, "max_windows": 8},
        "general": {"kind": "perplexity", "dataset": "general", "length": 128, "max_windows": 4, "general": True},
    },
    "variants": ["opt+{rtn-a,rtn-b}", "opt+{lora+merge,nf4+lora}", "opt+lora+merge+rtn-b"],
}


class Folder:
    """A working folder with a configuration, in which the project's Snakefile is run."""

    def __init__(self, path: Path, config: dict):
        self.path, self.work = path, path / "work"
        path.mkdir(parents=True, exist_ok=True)
        self.write(config)

    def write(self, config: dict) -> None:
        self.config = config
        (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def change(self, **sections: dict) -> None:
        """Change keys of entries: `change(quantizations={"rtn-a": {"bits": 3}})`."""
        config = copy.deepcopy(self.config)
        for section, entries in sections.items():
            for name, keys in entries.items():
                config[section][name].update(keys)
        self.write(config)

    def command(self, *arguments: str) -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        return [*snakemake, "--profile", "none", "--workflow-profile", str(ROOT / "profiles/default"), *arguments]

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run Snakemake to its end; return what it printed."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-6000:]}")
        return done.stdout

    def planned(self, *arguments: str) -> set[str]:
        """Return the outputs, below the work folder, of the jobs that a dry run plans."""
        printed = self.run(*arguments, "--dry-run")
        jobs = re.findall(r"^Job \d+: (.*?)(?: \[made again.*)?$", printed, re.MULTILINE)
        if not jobs:
            assert "Nothing to be done" in printed
        return {made for job in jobs for made in _outputs(job)}

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start Snakemake, in a session of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def copy(self, path: Path) -> "Folder":
        """Return a copy, with the dates of its files."""
        shutil.copytree(self.path, path, symlinks=True)
        return Folder.existing(path, self.config)

    @classmethod
    def existing(cls, path: Path, config: dict) -> "Folder":
        """Return a folder whose files are there, and its configuration."""
        folder = cls.__new__(cls)
        folder.path, folder.work, folder.config = path, path / "work", copy.deepcopy(config)
        return folder


MESSAGES = {
    r"Copy the model (.*)": r"checkpoints/\1",
    r"Read the dataset (.*)": r"sources/\1",
    r"Tokenize (.*) for (.*)": r"prepared/\1/\2",
    r"Quantize (.*) with (.*)": r"checkpoints/\1+\2",
    r"Train (.*) on (.*)": r"checkpoints/\2+\1",
    r"Merge the adapter (.*)": r"checkpoints/\1+merge",
    r"Read the recordings of (.*)": r"sources/\1",
    r"Resample (.*) for (.*)": r"prepared/\1/\2",
    r"Transcribe (.*) with (.*)": r"transcripts/\2/\1",
    r"Export (.*) as (.*)": r"exports/\1/\2",
    r"Benchmark (.*)": r"benchmarks/\1",
    r"Write the report": "report",
}


def _outputs(message: str) -> list[str]:
    """Return what a job makes, from its message."""
    if evaluated := re.fullmatch(r"Evaluate (.*): (.*)", message):
        return [f"evaluations/{evaluated[1]}/{name}" for name in evaluated[2].split(", ")]
    return [re.sub(pattern, made, message) for pattern, made in MESSAGES.items() if re.fullmatch(pattern, message)]


def weights(checkpoint: Path) -> dict[str, bytes]:
    """Return name -> content of every file that is part of a checkpoint's identity."""
    skipped = {"run.json", ".snakemake_timestamp"}
    return {path.name: path.read_bytes() for path in sorted(checkpoint.iterdir()) if path.name not in skipped}


def wait_for(condition, seconds: float = 120.0) -> None:
    """Wait until the condition holds."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.05)


def processes(pattern: str, folder: Path) -> list[int]:
    """Return the ids of the processes that work in a folder and whose command line matches."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                here = (entry / "cwd").resolve(strict=True) == folder.resolve()
            except OSError:
                continue
            if here and re.search(pattern, line):
                found.append(int(entry.name))
    return found


def kill(process: int) -> None:
    """Kill -9, if it is still there."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills once; tests of processes that run side by side share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    whole = folder.parent / f"{name}-made"
    with FileLock(folder.parent / f"{name}.lock"):
        if not whole.exists():
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Folder:
    """A folder in which everything has been made. Tests that change something take a copy."""
    folder = made_once(tmp_path_factory, "finished", lambda path: Folder(path / "project", CONFIG).run("--cores", "2"))
    return Folder.existing(folder / "project", CONFIG)


@pytest.fixture
def project(finished, tmp_path) -> Folder:
    """A copy of the finished folder, free to be changed."""
    return finished.copy(tmp_path / "project")
