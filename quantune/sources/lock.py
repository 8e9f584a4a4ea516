"""The lock file: what each name on the hub stood for when it was first asked for. It belongs under version control.

A source that is locked is never asked for again: the same commit, files and hashes on every machine, and no network
needed to plan. `make update-lock` moves it on.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError
from quantune.sources import download, hub, selection

Entry = dict[str, Any]
KEPT = ": kept: "  # in the line of an entry that could not be updated


class Lock:
    """The entries of a lock file, by kind ("models", "datasets") and `repository@revision`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries = self._read()

    def has_model(self, repository: str, revision: str) -> bool:
        """Return whether a model is locked."""
        return f"{repository}@{revision}" in self.entries["models"]

    def has_dataset(self, repository: str, revision: str, patterns: list[str]) -> bool:
        """Return whether a dataset is locked with these patterns."""
        entry = self.entries["datasets"].get(f"{repository}@{revision}", {"patterns": {}})
        return set(patterns) <= set(entry["patterns"])

    def model(self, repository: str, revision: str, key: str) -> Entry:
        """Return a model's `commit`, `licence`, `files` (name -> size and hash) and `config` (its config.json).

        Args:
            repository: `owner/name` on the hub.
            revision: branch, tag or commit.
            key: of the configuration, for errors.

        Raises:
            ConfigError: if it is not locked and cannot be, or has no safetensors weights.
        """
        if not self.has_model(repository, revision):
            self._add("models", repository, revision, self._asked(key, _model, repository, revision))
        return self.entries["models"][f"{repository}@{revision}"]

    def dataset(self, repository: str, revision: str, patterns: list[str], key: str) -> Entry:
        """Return a dataset's `commit`, `licence`, `patterns` (pattern -> file names) and `files`; otherwise as `model`.

        New patterns of a locked dataset are looked up at its locked commit.
        """
        if not self.has_dataset(repository, revision, patterns):
            known = self.entries["datasets"].get(f"{repository}@{revision}", {"commit": revision, "patterns": {}})
            wanted = sorted({*known["patterns"], *patterns})
            entry = self._asked(key, _dataset, repository, known["commit"], wanted, key)
            self._add("datasets", repository, revision, entry)
        return self.entries["datasets"][f"{repository}@{revision}"]

    def update(self) -> Iterator[str]:
        """Ask the hub for every entry again; yield what changed, or what went wrong, line by line."""
        for kind, entries in self.entries.items():
            for name, before in list(entries.items()):
                repository, _, revision = name.partition("@")
                try:
                    if kind == "models":
                        after = _model(repository, revision)
                    else:
                        after = _dataset(repository, revision, list(before["patterns"]), name)
                except QuantuneError as error:
                    yield f"{kind} {name}{KEPT}{error}"
                    continue
                self._add(kind, repository, revision, after)
                yield f"{kind} {name}: {_moved(before, after)}"

    def _asked(self, key: str, resolve, repository: str, revision: str, *more) -> Entry:
        """Ask the hub, if that is allowed."""
        if hub.offline():
            raise ConfigError(
                f"{key}: '{repository}' at '{revision}' is not in the lock file '{self.path}', and HF_HUB_OFFLINE "
                "forbids to ask the hub; unset it for one dry run (`snakemake -n`), which adds it"
            )
        try:
            entry = resolve(repository, revision, *more)
        except ConfigError:
            raise
        except QuantuneError as error:
            raise ConfigError(f"{key}: {error}") from error
        terms = f"licence: {entry['licence'] or 'none named'}{', gated' if entry['gated'] else ''}"
        print(f"{self.path}: locked {repository}@{revision} at {entry['commit']} ({terms})", file=sys.stderr)
        return entry

    def _add(self, kind: str, repository: str, revision: str, entry: Entry) -> None:
        """Write an entry to the file as it is now, in one step."""
        self.entries = self._read()
        self.entries[kind][f"{repository}@{revision}"] = entry
        text = json.dumps(self.entries, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        partial.write_text(text)
        partial.replace(self.path)

    def _read(self) -> dict[str, dict[str, Entry]]:
        try:
            found = json.loads(self.path.read_text())
            return {kind: dict(found[kind]) for kind in ("models", "datasets")}
        except FileNotFoundError:
            return {"models": {}, "datasets": {}}
        except (ValueError, KeyError, TypeError) as error:
            what = f"lock: '{self.path}' is not a lock file ({error})"
            raise ConfigError(f"{what}; restore it from version control, or delete it to lock anew") from None


def _model(repository: str, revision: str) -> Entry:
    """Resolve a model: one request for the listing, one for its config.json."""
    found = hub.listing("model", repository, revision)
    where = hub.described("model", repository, revision)
    remedy = f"look for a conversion under {hub.page('model', repository)}/discussions, to be named as 'refs/pr/N' in "
    remedy += "'revision'"
    names = selection.model_names([name for name in found["files"] if "/" not in name], where, remedy)
    files = {name: found["files"][name] for name in selection.one_set_of_weights(names)}
    config = files["config.json"]
    remote = download.of_hub(
        "model",
        repository,
        found["commit"],
        "config.json",
        digest=download.identity(config),
        size=config["size"],
        licence=found["licence"],
    )
    with tempfile.TemporaryDirectory() as folder:
        download.file(remote, Path(folder))
        config = selection.model_config(Path(folder, "config.json"), where)
    return {**found, "files": files, "config": config}


def _dataset(repository: str, revision: str, patterns: list[str], key: str) -> Entry:
    """Resolve a dataset: one request for the listing."""
    found = hub.listing("dataset", repository, revision)
    where = hub.described("dataset", repository, revision)
    matched = {pattern: selection.matching(list(found["files"]), pattern, where, key) for pattern in patterns}
    chosen = {name for names in matched.values() for name in names}
    return {**found, "files": {name: found["files"][name] for name in sorted(chosen)}, "patterns": matched}


def _moved(before: Entry, after: Entry) -> str:
    """Return what an update changed."""
    if before == after:
        return f"unchanged at {after['commit']}"
    changes = [f"{before['commit']} -> {after['commit']}"]
    if before["licence"] != after["licence"]:
        changes.append(f"licence {before['licence']} -> {after['licence']}")
    old, new = before["files"], after["files"]
    told = {
        "changed": [name for name in new if name in old and old[name] != new[name]],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
    }
    changes += [f"{how}: {', '.join(names)}" for how, names in told.items() if names]
    return "; ".join(changes)


def update(path: str = "sources.lock.json") -> None:
    """Refresh a lock file and print what changed (`make update-lock`); exit with 1 if an entry could not be."""
    lines = []
    for line in Lock(path).update():
        lines.append(line)
        print(line, flush=True)
    if any(KEPT in line for line in lines):
        sys.exit(1)
