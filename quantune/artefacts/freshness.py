"""Whether what lies on disk is still what the configuration asks for, and if not, why."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from quantune.artefacts import hashes, layout
from quantune.artefacts.record import ABSENT, PROVENANCE, Artefact, content, damage, recorded, roles


class State(Enum):
    """How what lies on disk compares with what is asked for."""

    MISSING = "missing"
    CURRENT = "current"
    STALE = "stale"


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


@dataclass(frozen=True)
class Needs:
    """The inputs of the job that makes an artefact."""

    inputs: dict[str, list[str]]
    """Role -> paths."""
    dated: bool
    """Whether the job shall run where an input is newer than its output."""


def needs(artefact: Artefact, state: State, forced: bool = False) -> Needs:
    """Return the inputs of the job that makes an artefact.

    Missing or stale: all that it is made from. Current: what of that exists, without regard to dates, so that the job
    does not run. A missing parent is left out: Snakemake would make it, and then the artefact again.

    Args:
        artefact: what is to be made.
        state: how it compares with what lies on disk.
        forced: whether the command line asks for jobs that need not run: then a current one needs all its parents.
    """
    made_from = {**roles(artefact.parents), **artefact.reads}
    inputs = {role: [item.path for item in items] for role, items in made_from.items()}
    inputs["outside"] = list(artefact.outside)
    if state is not State.CURRENT:
        return Needs(inputs, dated=True)
    present = {role: [path for path in paths if forced or os.path.lexists(path)] for role, paths in inputs.items()}
    return Needs(present, dated=False)


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
