"""Paths below the work folder. No other module builds or parses them; the rules repeat them for readers."""

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
    "exports": ("VARIANT", "FORMAT"),
    "report": (),
}
"""Folder -> kinds of the names in the paths below it."""
PATTERNS = ", ".join("/".join([folder, *names]) for folder, names in FOLDERS.items())
"""The patterns of all paths of artefacts, for errors."""

LONGEST = 255
"""Bytes that a file system allows for a name."""
LONGER = len("0123456789abcdef..lock")
"""Bytes that the lock of a build folder has more than the artefact's name."""


@dataclass(frozen=True)
class Place:
    """The place of an artefact below the work folder."""

    folder: str
    """One of `FOLDERS`."""
    names: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        """The artefact's variant; the model of prepared data; empty for a source or the report.

        `evaluations/opt-2m+rtn-w4/radio` belongs to `opt-2m+rtn-w4`.
        """
        kinds = dict(zip(FOLDERS[self.folder], self.names, strict=True))
        return kinds.get("VARIANT", kinds.get("MODEL", ""))

    @property
    def last(self) -> str:
        """The last name, or the folder if there is no name."""
        return self.names[-1] if self.names else self.folder


def path(work: str | Path, folder: str, *names: str) -> str:
    """Return the path of an artefact."""
    return "/".join([str(work), folder, *names])


def names(path: str | Path, folder: str) -> tuple[str, ...]:
    """Return the names in the path of an artefact of this folder, for any work folder."""
    parts = Path(path).parts
    return parts[len(parts) - len(FOLDERS[folder]) :]


def parse(path: str | Path, work: str | Path) -> Place | None:
    """Return the place that a path names; None if no artefact lies at such a path."""
    folder, *names = os.path.relpath(path, work).split("/")
    return Place(folder, tuple(names)) if folder in FOLDERS and len(names) == len(FOLDERS[folder]) else None


def too_long(path: str) -> str | None:
    """Return why no artefact can be made at a path: a file name in its making is too long; None if all names fit."""
    longest = len(Path(path).name) + LONGER
    return f"needs a file name of {longest} bytes, and file systems allow {LONGEST}" if longest > LONGEST else None


def artefact_folders(work: str | Path) -> Iterator[Path]:
    """Yield the folders that exist at paths of artefacts, complete or not."""
    for folder, names in FOLDERS.items():
        paths = Path(work, folder).glob("/".join("*" * len(names))) if names else [Path(work, folder)]
        yield from sorted(item for item in paths if item.is_dir())


def unfinished(work: str | Path) -> Path:
    """Return the folder in which artefacts are built."""
    return Path(work, "tmp")


def build_folder(work: str | Path, digest: str, name: str) -> Path:
    """Return the folder in which the artefact with this digest is built; the name of its lock ends in `.lock`."""
    return unfinished(work) / f"{digest[:16]}.{name}"


def lock(folder: Path) -> Path:
    """Return the file that a process locks while it builds in a folder."""
    return folder.with_name(folder.name + ".lock")


def digest_of(folder: Path) -> str:
    """Return the first 16 digits of the digest of the artefact that is built in a folder."""
    return folder.name[:16]


def logs(work: str | Path) -> Path:
    """Return the folder of the jobs' logs."""
    return Path(work, "logs")


def hash_cache(work: str | Path) -> Path:
    """Return the file that caches the SHA-256 of files."""
    return Path(work, ".hashes.json")
