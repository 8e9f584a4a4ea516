"""Where things lie below the work folder. No other module builds or parses such a path; rules name them for readers."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = {
    "sources": ("DATASET",),
    "prepared": ("DATASET", "MODEL"),
    "checkpoints": ("VARIANT",),
    "evaluations": ("VARIANT", "EVALUATION"),
    "transcripts": ("VARIANT", "RECORDING"),
    "benchmarks": ("VARIANT",),
    "report": (),
}
"""Folder -> what the folders below it are named by."""
EVERYWHERE = ", ".join("/".join([folder, *names]) for folder, names in FOLDERS.items())
"""All places where artefacts lie, for errors."""


@dataclass(frozen=True)
class Place:
    """The place of an artefact below the work folder."""

    folder: str
    """One of `FOLDERS`."""
    names: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """The variant, model included, that the artefact is of: of prepared data the model; empty where there is none.

        `evaluations/opt-2m+rtn-w4/radio` is of `opt-2m+rtn-w4`.
        """
        named = dict(zip(FOLDERS[self.folder], self.names, strict=True))
        return named.get("VARIANT", named.get("MODEL", ""))

    @property
    def last(self) -> str:
        """The last name, or the folder where there is none."""
        return self.names[-1] if self.names else self.folder


def path(work: str | Path, folder: str, *names: str) -> str:
    """Return the path of an artefact."""
    return "/".join([str(work), folder, *names])


def named(path: str | Path, folder: str) -> tuple[str, ...]:
    """Return the names in the path of an artefact in this folder, wherever the work folder is."""
    return Path(path).parts[-len(FOLDERS[folder]) :]


def parse(path: str | Path, work: str | Path) -> Place | None:
    """Return the place that a path names; None if no artefact lies at such a path."""
    folder, *names = os.path.relpath(path, work).split("/")
    return Place(folder, tuple(names)) if folder in FOLDERS and len(names) == len(FOLDERS[folder]) else None


def present(work: str | Path) -> Iterator[Path]:
    """Yield the folders at such places, whole artefacts or not."""
    for folder, names in FOLDERS.items():
        found = Path(work, folder).glob("/".join("*" * len(names))) if names else [Path(work, folder)]
        yield from sorted(item for item in found if item.is_dir())


def unfinished(work: str | Path) -> Path:
    """Return the folder in which artefacts are built."""
    return Path(work, "tmp")


def workplace(work: str | Path, digest: str, name: str) -> Path:
    """Return the folder in which the artefact with this digest is built; its lock lies beside it, ending in `.lock`."""
    return unfinished(work) / f"{digest[:16]}.{name}"


def lock(workplace: Path) -> Path:
    """Return the file that the process which builds in a folder holds locked."""
    return workplace.with_name(workplace.name + ".lock")


def digest_of(workplace: Path) -> str:
    """Return the first 16 digits of the digest of what is built in a folder."""
    return workplace.name[:16]


def logs(work: str | Path) -> Path:
    """Return the folder of the jobs' logs."""
    return Path(work, "logs")


def remembered_hashes(work: str | Path) -> Path:
    """Return the file that remembers the SHA-256 of files."""
    return Path(work, ".hashes.json")


def marker(work: str | Path, path: str) -> Path:
    """Return the folder whose date marks an artefact as stale for Snakemake."""
    return Path(work, ".stale", os.path.relpath(path, work).replace("/", "@"))
