"""Whether an artefact on disk is still the one that the configuration describes, and if not, why."""

import json
import os
import time
from collections.abc import Iterator
from enum import Enum
from functools import cache
from itertools import chain
from typing import Any

from quantune.artefacts import hashes
from quantune.artefacts.record import (
    ABSENT,
    Artefact,
    Provenance,
    by_role,
    content_digest,
    damage,
    problem,
    read_provenance,
)


class State(Enum):
    """How the artefact on disk compares with the one that the configuration describes."""

    MISSING = "missing"
    CURRENT = "current"
    STALE = "stale"


class Disk:
    """The artefacts on disk as they are now: whatever is read is read once and remembered as long as this object."""

    def __init__(self):
        for method in ("provenance", "content", "changed_ancestor", "_damage", "_state"):
            setattr(self, method, cache(getattr(self, method)))
        self._hidden: dict[str, frozenset[str]] = {}

    def provenance(self, path: str) -> Provenance | None:
        """Return the provenance in a folder, or None if it is missing or damaged."""
        return read_provenance(path)

    def content(self, path: str) -> str:
        """Return the digest of the bytes of the artefact in a folder that has a provenance."""
        return content_digest(self.provenance(path))

    def changed_ancestor(self, path: str) -> str | None:
        """Return the path of the first ancestor that was rebuilt with different bytes since then, or None.

        The same recipe gives different bytes on another machine, with other packages, or without `deterministic`.
        """
        for parent in _parents(self.provenance(path) or {}):
            now = self.provenance(parent["path"])
            if now is None or now["digest"] != parent["digest"] or "content" not in parent:
                continue
            if self.content(parent["path"]) != parent["content"]:
                return parent["path"]
            if changed := self.changed_ancestor(parent["path"]):
                return changed
        return None

    def state(self, artefact: Artefact) -> State:
        """Compare the artefact on disk with the one that the configuration describes: by content, never by date."""
        return self._state(artefact.path, artefact.digest, artefact.options.get("work"))

    def differences(self, artefact: Artefact) -> list[str]:
        """Return, in words, how the artefact on disk differs from the one that the configuration describes."""
        if self.state(artefact) is not State.STALE:
            return []
        provenance = self.provenance(artefact.path)
        if provenance is None:
            return [f"{artefact.path}/{problem(artefact.path)}"]
        if provenance["digest"] != artefact.digest:
            return changes(provenance, artefact.order()) or ["its parents come in another order"]
        changed = self.changed_ancestor(artefact.path)
        broken = self._damage(artefact.path, artefact.options.get("work"))
        return [broken or f"ancestor rebuilt with different bytes: {changed}"]

    def stale_behind_current(self, artefact: Artefact) -> frozenset[str]:
        """Return the paths of the stale ancestors of an artefact that it is parted from by current ones.

        They are made again, but Snakemake does not carry this on through a current artefact. It skips the jobs behind
        such an ancestor unless they have it as an input.
        """
        if artefact.path not in self._hidden:
            stale = set()
            for parent in chain(*_made_from(artefact).values()):
                if self.state(parent) is State.CURRENT:
                    stale |= self.stale_behind_current(parent)
                    grandparents = chain(*_made_from(parent).values())
                    stale |= {item.path for item in grandparents if self.state(item) is State.STALE}
            self._hidden[artefact.path] = frozenset(stale)
        return self._hidden[artefact.path]

    def _state(self, path: str, digest: str, work: str | None) -> State:
        if not os.path.lexists(path):
            return State.MISSING
        record = self.provenance(path)
        if record is None or record["digest"] != digest or self._damage(path, work) or self.changed_ancestor(path):
            return State.STALE
        return State.CURRENT

    def _damage(self, path: str, work: str | None) -> str | None:
        return damage(path, self.provenance(path), hashes.work_hashes(work) if work else None)


def needs(artefact: Artefact, state: State, forced: bool = False) -> dict[str, list[str]]:
    """Return the inputs of the job that makes an artefact: role -> paths.

    Missing or stale: all inputs. Current: the inputs that exist. A missing parent is left out: Snakemake would make it,
    and then the artefact again. Files from outside that are dated in the future are left out: Snakemake would fail the
    job after its work, because its output is older.

    Args:
        artefact: the artefact to be made.
        state: how it compares with the one on disk.
        forced: whether the command line forces jobs: then a current artefact needs all its parents.
    """
    inputs = {role: [item.path for item in items] for role, items in _made_from(artefact).items()}
    if state is State.CURRENT and not forced:
        inputs = {role: [path for path in paths if os.path.lexists(path)] for role, paths in inputs.items()}
    return inputs | {"outside": [path for path in artefact.outside if os.stat(path).st_mtime <= time.time()]}


def _made_from(artefact: Artefact) -> dict[str, tuple[Artefact, ...]]:
    """Return role -> the parents of an artefact and the artefacts that it reads."""
    return {**by_role(artefact.parents), **artefact.reads}


def date_now(paths: list[str]) -> None:
    """Give artefacts that are dated in the future the present date: Snakemake would fail the jobs that read them."""
    for stamp in (stamp for path in paths for stamp in (path, f"{path}/.snakemake_timestamp")):
        if os.path.lexists(stamp) and os.lstat(stamp).st_mtime > time.time():
            os.utime(stamp, follow_symlinks=False)


def changes(provenance: Provenance, order: dict[str, Any]) -> list[str]:
    """Return, in words, how the recipe, sources and parents of an order differ from those in a provenance."""
    texts = []
    if provenance["stage"] != order["stage"]:
        texts.append(f"stage: {provenance['stage']} -> {order['stage']}")
    elif provenance["version"] != order["version"]:
        texts.append(f"version of the stage {order['stage']}: {provenance['version']} -> {order['version']}")
    texts += list(changed("", provenance["recipe"], order["recipe"]))
    texts += [f"source {change}" for change in changed("", provenance["sources"], order["sources"])]
    before, after = ({item["path"]: item["digest"] for item in _parents(record)} for record in (provenance, order))
    texts += [f"made anew: {path}" for path in after if path in before and before[path] != after[path]]
    texts += [f"now made from: {path}" for path in after if path not in before]
    return texts + [f"no longer made from: {path}" for path in before if path not in after]


def _parents(record: dict[str, Any]) -> list[dict[str, str]]:
    """Return the parents that a provenance or an order names, each with path and digest."""
    return [item for parents in record.get("parents", {}).values() for item in parents]


def changed(prefix: str, before: Any, after: Any) -> Iterator[str]:
    """Yield, in words, how one value differs from another, key by key: `bits: 3 -> 4`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            was, now = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from changed(f"{prefix}.{key}" if prefix else key, was, now)
    elif before != after:
        yield f"{prefix}: {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = "absent" if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
