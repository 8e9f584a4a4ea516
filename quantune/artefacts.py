"""What is made, what it was made from, and whether it is still what the configuration asks for.

An artefact is a folder with a `provenance.json`. Its digest is SHA-256 over the canonical JSON of its stage, the
stage's version, its recipe, its sources' content hashes and its parents' digests. The configuration alone gives the
digest that is expected; the artefact records the one it was made with. Equal digests mean interchangeable artefacts, on
any machine, branch or date.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from quantune import hashes

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


class State(Enum):
    """How what lies on disk compares with what is asked for."""

    MISSING = "missing"
    CURRENT = "current"
    STALE = "stale"


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


def other_bits(path: str | Path) -> str | None:
    """Return something an artefact on disk was made from that has been made again since with other bits, or None.

    Other bits of the same recipe come from another machine, other package versions, or without `deterministic`.
    """
    for then in _parents(recorded(path) or {}):
        there = recorded(then["path"])
        if there is None or there["digest"] != then["digest"] or "content" not in then:
            continue
        if content(there) != then["content"]:
            return then["path"]
        if changed := other_bits(then["path"]):
            return changed
    return None


def state(artefact: Artefact) -> State:
    """Compare what lies at the artefact's path with what the configuration asks for, by content. Dates play no part."""
    if not os.path.lexists(artefact.path):
        return State.MISSING
    found = recorded(artefact.path)
    if found is None or found["digest"] != artefact.digest or damage(artefact.path, found, _known(artefact)):
        return State.STALE
    return State.STALE if other_bits(artefact.path) else State.CURRENT


def _known(artefact: Artefact) -> hashes.Hashes | None:
    return hashes.of(artefact.options["work"]) if "work" in artefact.options else None


def differences(artefact: Artefact) -> list[str]:
    """Return, in words, why the artefact on disk is not the one asked for: which key changed, from what to what."""
    if not os.path.lexists(artefact.path):
        return []
    found = recorded(artefact.path)
    if found is None:
        return [f"{artefact.path} has no readable {PROVENANCE}"]
    wanted, changes = artefact.order(), []
    if found.get("stage") != wanted["stage"]:
        changes.append(f"stage: {found.get('stage')} -> {wanted['stage']}")
    elif found.get("version") != wanted["version"]:
        changes.append(f"version of the stage {wanted['stage']}: {found.get('version')} -> {wanted['version']}")
    changes += list(_changed("", found.get("recipe", {}), wanted["recipe"]))
    changes += [f"source {change}" for change in _changed("", found.get("sources", {}), wanted["sources"])]
    before, after = ({item["path"]: item["digest"] for item in _parents(known)} for known in (found, wanted))
    changes += [f"made anew: {path}" for path in after if path in before and before[path] != after[path]]
    changes += [f"now made from: {path}" for path in after if path not in before]
    changes += [f"no longer made from: {path}" for path in before if path not in after]
    if not changes and found["digest"] != artefact.digest:
        changes.append("what it is made from comes in another order")
    if broken := damage(artefact.path, found, _known(artefact)):
        changes.append(broken)
    if not changes and (changed := other_bits(artefact.path)):
        changes.append(f"made again with other bits: {changed}")
    return changes


def _parents(known: dict[str, Any]) -> list[dict[str, str]]:
    """Return what a provenance, or an order, says it is made from: each with path and digest."""
    return [item for made_from in known.get("parents", {}).values() for item in made_from]


def _changed(prefix: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            was, now = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from _changed(f"{prefix}.{key}" if prefix else key, was, now)
    elif before != after:
        yield f"{prefix}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def marker(artefact: Artefact, work: str) -> str:
    """Return a folder just newer than the stale artefact; as an input it makes the job run.

    A folder, because a file would be compared by checksum with that of the last run; one for each artefact and just
    newer than it, because a shared or future-dated one would make fresh artefacts look old.
    """
    folder = Path(work, ".stale", os.path.relpath(artefact.path, work).replace("/", "@"))
    stamps = [path for path in (artefact.path, f"{artefact.path}/.snakemake_timestamp") if os.path.lexists(path)]
    newest, now = max(os.lstat(path).st_mtime_ns for path in stamps), time.time_ns()
    if newest > now - 1_000_000_000:  # dated in the future, or just now: Snakemake would fail the job that follows
        newest = now - 1_000_000_000
        for path in stamps:
            os.utime(path, ns=(newest, newest), follow_symlinks=False)
    newer = newest + 1_000_000
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder, ns=(newer, newer))
    return str(folder)


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
