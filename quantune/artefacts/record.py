"""Artefacts: their recipes, sources and parents, their digests, and the provenance on disk.

An artefact is a folder with a `provenance.json`. Its digest is SHA-256 over the canonical JSON of its stage, the
stage's version, its recipe, its sources' content hashes and its parents' digests. The configuration alone gives the
expected digest; the provenance holds the digest of the artefact on disk. Artefacts with equal digests are
interchangeable, on any machine, branch or date. `run.json` beside it holds what differs from run to run.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from quantune.artefacts import hashes, layout, sealed

PROVENANCE = "provenance.json"
RUN = "run.json"
RUN_NUMBERS = ("seconds", "peak_memory_bytes", "peak_device_bytes")
"""Numbers that every run records; on a CPU there is no device."""
ABSENT = object()
UNRECORDED = {PROVENANCE, RUN, ".snakemake_timestamp"}


class File(TypedDict):
    """A file of an artefact; its path is relative to the artefact's folder."""

    path: str
    size: int
    sha256: str


class Parent(TypedDict):
    """A parent, as the artefact was made from it; `content` is the digest of its bytes."""

    path: str
    digest: str
    content: NotRequired[str]


class Provenance(TypedDict):
    """What an artefact is: it follows from the recipe and the packages alone."""

    digest: str
    stage: str
    version: int
    recipe: dict[str, Any]
    sources: dict[str, str]
    parents: dict[str, list[Parent]]
    facts: dict[str, Any]
    packages: dict[str, str | None]
    files: list[File]


class Hardware(TypedDict):
    """The machine of a run."""

    cpu: str
    cores: int | None
    memory_bytes: int
    gpu: NotRequired[str]


class Run(TypedDict):
    """When, where and how an artefact was made; stages add numbers of their own."""

    __pydantic_config__ = ConfigDict(extra="allow")

    digest: str
    started: str
    seconds: int | float
    command: str
    commit: str
    deterministic: bool
    threads: int
    hardware: Hardware
    platform: str
    cuda: NotRequired[str | None]
    predicted: NotRequired[dict[str, int | float] | None]
    peak_memory_bytes: NotRequired[int | float | None]
    peak_device_bytes: NotRequired[int | float | None]
    real_time_factor: NotRequired[int | float | None]
    audio_seconds: NotRequired[int | float | None]


_PROVENANCE, _RUN = TypeAdapter(Provenance), TypeAdapter(Run)


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artefact:
    """One artefact: its path, its recipe, its parents and its sources."""

    path: str
    stage: str
    version: int
    recipe: dict[str, Any]
    parents: dict[str, "Artefact | tuple[Artefact, ...]"] = field(default_factory=dict)
    """Role -> the artefacts whose digests are part of its digest."""
    sources: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the files from outside that it is made from."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of how it is made or shown; they do not change the result."""
    reads: dict[str, "tuple[Artefact, ...]"] = field(default_factory=dict)
    """Role -> more artefacts that must be on disk; the digests of the parents already cover theirs."""

    @cached_property
    def digest(self) -> str:
        """The recipe digest."""
        parents = {role: [item.digest for item in items] for role, items in by_role(self.parents).items()}
        return recipe_digest(self.stage, self.version, self.recipe, self.sources, parents)

    @cached_property
    def place(self) -> layout.Place:
        """The folder and the names in its path below the work folder."""
        return layout.parse(self.path, self.options["work"])

    @property
    def outside(self) -> list[str]:
        """The files from outside, on this machine, that the job reads; none for a download."""
        return outside(self.options)

    def order(self) -> dict[str, Any]:
        """Return the order for a job: all that the job needs to make the artefact, as plain data."""
        return {
            "path": self.path,
            "stage": self.stage,
            "version": self.version,
            "recipe": self.recipe,
            "options": self.options,
            "sources": self.sources,
            "parents": {
                role: [{"path": item.path, "digest": item.digest} for item in items]
                for role, items in by_role(self.parents).items()
            },
            "reads": {role: [item.path for item in items] for role, items in self.reads.items()},
            "digest": self.digest,
        }


def outside(options: dict[str, Any]) -> list[str]:
    """Return the files from outside, on this machine, that the options of an artefact name; none for a download."""
    if "download" in options:
        return []
    files = options.get("files", [])
    return [path for paths in files.values() for path in paths] if isinstance(files, dict) else files


def by_role(parents: dict[str, Any]) -> dict[str, tuple[Artefact, ...]]:
    """Return role -> parents, always as a tuple."""
    return {role: item if isinstance(item, tuple) else (item,) for role, item in parents.items()}


def recipe_digest(stage: str, version: int, recipe: dict, sources: dict, parents: dict[str, list[str]]) -> str:
    """Return the digest of an artefact, in hexadecimal; `parents` is role -> digests."""
    return sha256(canonical_json([stage, version, recipe, sources, parents]))


def read_provenance(path: str | Path) -> Provenance | None:
    """Return the provenance in a folder, or None if it is missing or damaged."""
    return _readable(f"{path}/{PROVENANCE}", _PROVENANCE)


def read_run(path: str | Path) -> Run | None:
    """Return the record of the run that made the artefact in a folder, or None if it is missing or damaged."""
    return _readable(f"{path}/{RUN}", _RUN)


def _readable(path: str, kind: TypeAdapter) -> Any:
    try:
        return sealed.read(path, kind)
    except sealed.DamagedError:
        return None


def problem(path: str | Path) -> str | None:
    """Return, in words, why the provenance, or the record of the run, in a folder cannot be used, or None."""
    try:
        provenance = sealed.read(f"{path}/{PROVENANCE}", _PROVENANCE)
    except sealed.DamagedError as error:
        return f"{PROVENANCE} {error}"
    return _problem_of_run(path, provenance) if provenance else f"{PROVENANCE} is missing"


def _problem_of_run(path: str | Path, provenance: Provenance) -> str | None:
    try:
        run = sealed.read(f"{path}/{RUN}", _RUN)
    except sealed.DamagedError as error:
        return f"{RUN} {error}"
    if run is None:
        return f"{RUN} is missing"
    return None if run["digest"] == provenance["digest"] else f"{RUN} is of another artefact"


def damage(path: str | Path, provenance: Provenance, known: hashes.Hashes | None = None) -> str | None:
    """Return, in words, the first file that is missing or differs from what was made, or None.

    Sizes are compared first. SHA-256 is compared only if `known` is given, which reads each file once.
    """
    if broken := _problem_of_run(path, provenance):
        return broken
    folder, statuses = hashes.real_folder(str(path)), []
    for item in provenance["files"]:
        try:
            statuses.append(os.stat(f"{folder}/{item['path']}"))
        except OSError:
            return f"{item['path']} is missing"
        if statuses[-1].st_size != item["size"]:
            return f"{item['path']} has {statuses[-1].st_size} bytes, not {item['size']}"
    for item, status in zip(provenance["files"], statuses, strict=True) if known else ():
        if known.real_file(f"{folder}/{item['path']}", status) != item["sha256"]:
            return f"{item['path']} is not the file that was made"
    return None


def content_digest(provenance: Provenance) -> str:
    """Return one SHA-256 for the bytes of an artefact: over the names and contents of its files."""
    return sha256(canonical_json([[item["path"], item["sha256"]] for item in provenance["files"]]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; if another process holds the lock, print this and wait.

    A killed Snakemake can leave its job running; the job that replaces it waits until that job has ended.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is making this artefact (left over from a killed run?); waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
