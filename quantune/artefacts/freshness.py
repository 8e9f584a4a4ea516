"""Whether an artefact on disk is still the one that the configuration describes, and if not, why."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from quantune.artefacts import hashes, layout
from quantune.artefacts.record import ABSENT, PROVENANCE, Artefact, by_role, content_digest, damage, read_provenance


class State(Enum):
    """How the artefact on disk compares with the one that the configuration describes."""

    MISSING = "missing"
    CURRENT = "current"
    STALE = "stale"


def changed_ancestor(path: str | Path) -> str | None:
    """Return the path of the first ancestor that was rebuilt with different bytes since then, or None.

    The same recipe gives different bytes on another machine, with other packages, or without `deterministic`.
    """
    for parent in _parents(read_provenance(path) or {}):
        now = read_provenance(parent["path"])
        if now is None or now["digest"] != parent["digest"] or "content" not in parent:
            continue
        if content_digest(now) != parent["content"]:
            return parent["path"]
        if changed := changed_ancestor(parent["path"]):
            return changed
    return None


def state(artefact: Artefact) -> State:
    """Compare the artefact on disk with the one that the configuration describes: by content, never by date."""
    if not os.path.lexists(artefact.path):
        return State.MISSING
    record = read_provenance(artefact.path)
    if record is None or record["digest"] != artefact.digest or damage(artefact.path, record, _known(artefact)):
        return State.STALE
    return State.STALE if changed_ancestor(artefact.path) else State.CURRENT


@dataclass(frozen=True)
class Needs:
    """The inputs of the job that makes an artefact."""

    inputs: dict[str, list[str]]
    """Role -> paths."""
    dated: bool
    """Whether the job runs if an input is newer than its output."""


def needs(artefact: Artefact, state: State, forced: bool = False) -> Needs:
    """Return the inputs of the job that makes an artefact.

    Missing or stale: all inputs. Current: the inputs that exist, without regard to dates, so that the job does not run.
    A missing parent is left out: Snakemake would make it, and then the artefact again.

    Args:
        artefact: the artefact to be made.
        state: how it compares with the one on disk.
        forced: whether the command line forces jobs: then a current artefact needs all its parents.
    """
    artefacts = {**by_role(artefact.parents), **artefact.reads}
    inputs = {role: [item.path for item in items] for role, items in artefacts.items()}
    inputs["outside"] = list(artefact.outside)
    if state is not State.CURRENT:
        return Needs(inputs, dated=True)
    present = {role: [path for path in paths if forced or os.path.lexists(path)] for role, paths in inputs.items()}
    return Needs(present, dated=False)


def _known(artefact: Artefact) -> hashes.Hashes | None:
    return hashes.work_hashes(artefact.options["work"]) if "work" in artefact.options else None


def differences(artefact: Artefact) -> list[str]:
    """Return, in words, how the artefact on disk differs from the one that the configuration describes."""
    if not os.path.lexists(artefact.path):
        return []
    provenance = read_provenance(artefact.path)
    if provenance is None:
        return [f"{artefact.path} has no readable {PROVENANCE}"]
    order, changes = artefact.order(), []
    if provenance.get("stage") != order["stage"]:
        changes.append(f"stage: {provenance.get('stage')} -> {order['stage']}")
    elif provenance.get("version") != order["version"]:
        changes.append(f"version of the stage {order['stage']}: {provenance.get('version')} -> {order['version']}")
    changes += list(_changed("", provenance.get("recipe", {}), order["recipe"]))
    changes += [f"source {change}" for change in _changed("", provenance.get("sources", {}), order["sources"])]
    before, after = ({item["path"]: item["digest"] for item in _parents(record)} for record in (provenance, order))
    changes += [f"made anew: {path}" for path in after if path in before and before[path] != after[path]]
    changes += [f"now made from: {path}" for path in after if path not in before]
    changes += [f"no longer made from: {path}" for path in before if path not in after]
    if not changes and provenance["digest"] != artefact.digest:
        changes.append("its parents come in another order")
    if broken := damage(artefact.path, provenance, _known(artefact)):
        changes.append(broken)
    if not changes and (changed := changed_ancestor(artefact.path)):
        changes.append(f"ancestor rebuilt with different bytes: {changed}")
    return changes


def _parents(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return the parents that a provenance or an order names, each with path and digest."""
    return [item for parents in record.get("parents", {}).values() for item in parents]


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
    """Create and return a folder that is 1 ms newer than the stale artefact; as an input it makes the job run.

    Snakemake would compare a file by checksum with that of the last run, so a folder is used. A folder that several
    artefacts share, or that is dated in the future, would make fresh artefacts look old.
    """
    folder = layout.marker(work, artefact.path)
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
