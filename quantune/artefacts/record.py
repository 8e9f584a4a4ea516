"""What is made, what it was made from, and whether it is still what the configuration asks for.

An artefact is a folder with a `provenance.json`. Its digest is SHA-256 over the canonical JSON of its stage, the
stage's version, its recipe, its sources' content hashes and its parents' digests. The configuration alone gives the
digest that is expected; the artefact records the one it was made with. Equal digests mean interchangeable artefacts, on
any machine, branch or date.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quantune.artefacts import hashes, layout

PROVENANCE = "provenance.json"
RUN = "run.json"
ABSENT = object()
UNRECORDED = {PROVENANCE, RUN, ".snakemake_timestamp"}


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artefact:
    """One thing to be made: where it lies, what it is made from and how."""

    path: str
    stage: str
    version: int
    recipe: dict[str, Any]
    parents: dict[str, "Artefact | tuple[Artefact, ...]"] = field(default_factory=dict)
    """Role -> the artefacts that its digest rests on."""
    sources: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the files from outside that it is made from."""
    options: dict[str, Any] = field(default_factory=dict)
    """What changes how it is made or shown, but not what it is."""
    reads: dict[str, "tuple[Artefact, ...]"] = field(default_factory=dict)
    """Role -> artefacts that must be on disk too, and whose digests the parents' already cover."""

    @cached_property
    def digest(self) -> str:
        """The recipe digest."""
        parents = {role: [item.digest for item in made_from] for role, made_from in roles(self.parents).items()}
        return recipe_digest(self.stage, self.version, self.recipe, self.sources, parents)

    @property
    def place(self) -> layout.Place:
        """Where it lies below the work folder."""
        return layout.parse(self.path, self.options["work"])

    @property
    def outside(self) -> list[str]:
        """The files on this machine, from outside, that it is read from; downloads are none of them."""
        if "download" in self.options:
            return []
        files = self.options.get("files", [])
        return [path for paths in files.values() for path in paths] if isinstance(files, dict) else files

    def order(self) -> dict[str, Any]:
        """Return all that a job needs to make it, as plain data."""
        return {
            "path": self.path,
            "stage": self.stage,
            "version": self.version,
            "recipe": self.recipe,
            "options": self.options,
            "sources": self.sources,
            "parents": {
                role: [{"path": item.path, "digest": item.digest} for item in made_from]
                for role, made_from in roles(self.parents).items()
            },
            "reads": {role: [item.path for item in read] for role, read in self.reads.items()},
            "digest": self.digest,
        }


def roles(parents: dict[str, Any]) -> dict[str, tuple[Artefact, ...]]:
    """Return the parents with every role's value as a tuple."""
    return {role: item if isinstance(item, tuple) else (item,) for role, item in parents.items()}


def recipe_digest(stage: str, version: int, recipe: dict, sources: dict, parents: dict[str, list[str]]) -> str:
    """Return the digest of an artefact from what it is made from."""
    return sha256(canonical([stage, version, recipe, sources, parents]))


def recorded(path: str | Path) -> dict[str, Any] | None:
    """Return the provenance that lies in a folder, or None where there is none that can be read."""
    try:
        found = json.loads((Path(path) / PROVENANCE).read_text())
        return found if isinstance(found, dict) and "digest" in found else None
    except (OSError, ValueError):
        return None


def damage(path: str | Path, provenance: dict[str, Any], known: hashes.Hashes | None = None) -> str | None:
    """Return the first listed file that is missing or not what was made, or None.

    Sizes are compared first; contents only where hashes are given, which read each file once.
    """
    listed = [(Path(path) / item["path"], item) for item in provenance.get("files", [])]
    for file, item in listed:
        try:
            size = os.stat(file).st_size
        except OSError:
            return f"{item['path']} is missing"
        if size != item["size"]:
            return f"{item['path']} has {size} bytes, not {item['size']}"
    for file, item in listed if known else ():
        if known.file(file) != item["sha256"]:
            return f"{item['path']} is not the file that was made"
    return None


def content(provenance: dict[str, Any]) -> str:
    """Return one SHA-256 for an artefact's bytes: of the names and contents of its files."""
    return sha256(canonical([[item["path"], item["sha256"]] for item in provenance.get("files", [])]))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; wait for another process that holds it, and say so.

    A killed Snakemake can leave its job running; the job that takes its place waits here until that one is done.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process is making this already (left over from a killed run?); waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
