"""Write and change the records of artefacts as the project does: with their checksum."""

import json
from collections.abc import Callable
from pathlib import Path

from quantune.artefacts import sealed

RAN = {
    "started": "2026-01-02T03:04:05Z",
    "seconds": 1.5,
    "command": "snakemake",
    "commit": "",
    "deterministic": True,
    "threads": 1,
    "hardware": {"cpu": "a processor", "cores": 2, "memory_bytes": 10**9},
    "platform": "Linux",
}


def write(folder: Path, provenance: dict, run: dict | None = None) -> None:
    """Write the provenance and the record of the run of an artefact."""
    sealed.write(folder / "provenance.json", provenance)
    sealed.write(folder / "run.json", RAN | {"digest": provenance["digest"]} | (run or {}))


def change(path: Path, edit: Callable[[dict], object]) -> None:
    """Change a record so that it matches its checksum again."""
    record = json.loads(path.read_text())
    del record["check"]
    edit(record)
    sealed.write(path, record)
