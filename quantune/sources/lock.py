"""The lock file: the commit, files and hashes of each repository on the hub. It belongs under version control.

A locked source is never requested again: every machine uses the same commit, files and hashes, and planning needs no
network. `make update-lock` moves the lock to the present commits.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantune.core.errors import ConfigError, QuantuneError, nearest
from quantune.models import config_values, stored
from quantune.models.foreign import gguf_config, gguf_files
from quantune.sources import download, hub, selection

LockEntry = dict[str, Any]
LARGEST = 2**24  # bytes of a config.json
HEADER, MOST_HEADER = 2**22, 2**28  # bytes of a GGUF file's header that are requested at first, and at most
KEPT = ": kept: "  # marks the line of an entry that could not be updated


class Lock:
    """The entries of a lock file, by kind ("models", "datasets") and `repository@revision`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries = self._read()

    def has_model(self, repository: str, revision: str, gguf_file: str | None = None) -> bool:
        """Return whether a model is locked."""
        return _named(repository, revision, gguf_file) in self.entries["models"]

    def has_dataset(self, repository: str, revision: str, patterns: list[str]) -> bool:
        """Return whether a dataset is locked with these patterns."""
        entry = self.entries["datasets"].get(f"{repository}@{revision}", {"patterns": {}})
        return set(patterns) <= set(entry["patterns"])

    def model(self, repository: str, revision: str, key: str, gguf_file: str | None = None) -> LockEntry:
        """Return a model's `commit`, `licence`, `files` (name -> size and hash) and `config` (its config.json).

        Of a GGUF file, `config` is made of its header, and `values` is the number of values in its tensors.

        Args:
            repository: `owner/name` on the hub.
            revision: branch, tag or commit.
            key: the key in the configuration, for errors.
            gguf_file: the GGUF file in the repository that is the model.

        Raises:
            ConfigError: if it is not locked and cannot be locked, or has no weights, or a config.json that cannot
                be used.
        """
        name = _named(repository, revision, gguf_file)
        if name not in self.entries["models"]:
            self._add("models", name, self._resolve(key, _model, repository, revision, gguf_file))
        entry = self.entries["models"][name]
        try:
            config_values.check(entry["config"])
            if gguf_file:
                return entry
            loaded = stored.selected(list(entry["files"]))  # older lock files name more than one set of weights
        except QuantuneError as error:
            raise ConfigError(f"{key}: '{repository}' at '{revision}': {error}") from None
        return {**entry, "files": {name: entry["files"][name] for name in loaded}}

    def dataset(self, repository: str, revision: str, patterns: list[str], key: str) -> LockEntry:
        """Return a dataset's `commit`, `licence`, `patterns` (pattern -> file names) and `files`; otherwise as `model`.

        New patterns of a locked dataset are resolved at its locked commit.
        """
        if not self.has_dataset(repository, revision, patterns):
            known = self.entries["datasets"].get(f"{repository}@{revision}", {"commit": revision, "patterns": {}})
            needed = sorted({*known["patterns"], *patterns})
            entry = self._resolve(key, _dataset, repository, known["commit"], needed, key)
            self._add("datasets", f"{repository}@{revision}", entry)
        return self.entries["datasets"][f"{repository}@{revision}"]

    def update(self) -> Iterator[str]:
        """Resolve every entry again; yield one line for each, with its changes or its error."""
        for kind, entries in self.entries.items():
            for name, before in list(entries.items()):
                repository, _, rest = name.partition("@")
                revision, _, file = rest.partition("#")
                try:
                    if kind == "models":
                        after = _model(repository, revision, file or None)
                    else:
                        after = _dataset(repository, revision, list(before["patterns"]), name)
                except QuantuneError as error:
                    yield f"{kind} {name}{KEPT}{error}"
                    continue
                self._add(kind, name, after)
                yield f"{kind} {name}: {_changes(before, after)}"

    def _resolve(self, key: str, resolve, repository: str, revision: str, *more) -> LockEntry:
        """Return a new entry from the hub; raises ConfigError if that fails or HF_HUB_OFFLINE is set."""
        if hub.offline():
            raise ConfigError(
                f"{key}: '{repository}' at '{revision}' is not in the lock file '{self.path}', and HF_HUB_OFFLINE "
                "forbids requests to the hub; unset it for one dry run (`snakemake -n`), which adds it"
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

    def _add(self, kind: str, name: str, entry: LockEntry) -> None:
        """Read the file again, add an entry, and replace the file in one step."""
        self.entries = self._read()
        self.entries[kind][name] = entry
        text = json.dumps(self.entries, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            partial.write_text(text)
            partial.replace(self.path)
        except OSError as error:
            raise ConfigError(f"lock: '{self.path}' cannot be written ({error.strerror}); name another file") from None

    def _read(self) -> dict[str, dict[str, LockEntry]]:
        try:
            entries = json.loads(self.path.read_text())
            return {kind: dict(entries[kind]) for kind in ("models", "datasets")}
        except FileNotFoundError:
            return {"models": {}, "datasets": {}}
        except OSError as error:
            raise ConfigError(f"lock: '{self.path}' cannot be read ({error.strerror}); name a file") from None
        except (ValueError, KeyError, TypeError) as error:
            problem = f"lock: '{self.path}' is not a lock file ({error})"
            raise ConfigError(f"{problem}; restore it from version control, or delete it to lock anew") from None


def _named(repository: str, revision: str, gguf_file: str | None) -> str:
    """Return the name of a model's entry."""
    return f"{repository}@{revision}" + (f"#{gguf_file}" if gguf_file else "")


def _model(repository: str, revision: str, gguf_file: str | None = None) -> LockEntry:
    """Resolve a model: one request for the listing, one for its config.json, or some for the header of a GGUF file."""
    listing = hub.listing("model", repository, revision)
    where = hub.describe("model", repository, revision)
    if gguf_file:
        return _gguf(repository, listing, gguf_file, where)
    names = selection.model_names([name for name in listing["files"] if "/" not in name], where)
    files = {name: listing["files"][name] for name in names}
    config = files["config.json"]
    if config["size"] > LARGEST:
        raise QuantuneError(f"{where}: config.json has {config['size']:,} bytes; at most {LARGEST:,} are read")
    remote = download.hub_file(
        "model",
        repository,
        listing["commit"],
        "config.json",
        digest=download.identity(config),
        size=config["size"],
        licence=listing["licence"],
    )
    with tempfile.TemporaryDirectory() as folder:
        download.fetch(remote, Path(folder))
        config = selection.model_config(Path(folder, "config.json"), where)
    return {**listing, "files": files, "config": config}


def _gguf(repository: str, listing: dict[str, Any], name: str, where: str) -> LockEntry:
    """Resolve a GGUF file: only its header is requested."""
    names = [item for item in listing["files"] if item.endswith(".gguf")]
    if name not in names:
        raise QuantuneError(f"{where} has no file '{name}'{nearest(name, names)}")
    file, begin = listing["files"][name], HEADER
    more = {"digest": download.identity(file), "size": file["size"], "licence": listing["licence"]}
    remote = download.hub_file("model", repository, listing["commit"], name, **more)
    while True:
        content = download.beginning(remote, min(begin, file["size"]))
        try:
            header = gguf_files.parse(content, file["size"], name)
            break
        except gguf_files.CutOffError:
            if begin >= min(file["size"], MOST_HEADER):
                raise
            begin *= 4
    config = gguf_config.config(header)
    config_values.check(config)
    return {**listing, "files": {name: file}, "config": config, "values": header.values()}


def _dataset(repository: str, revision: str, patterns: list[str], key: str) -> LockEntry:
    """Resolve a dataset: one request for the listing."""
    listing = hub.listing("dataset", repository, revision)
    where = hub.describe("dataset", repository, revision)
    matched = {pattern: selection.matching(list(listing["files"]), pattern, where, key) for pattern in patterns}
    chosen = {name for names in matched.values() for name in names}
    return {**listing, "files": {name: listing["files"][name] for name in sorted(chosen)}, "patterns": matched}


def _changes(before: LockEntry, after: LockEntry) -> str:
    """Return, in words, the changes of an update."""
    if before == after:
        return f"unchanged at {after['commit']}"
    changes = [f"{before['commit']} -> {after['commit']}"]
    if before["licence"] != after["licence"]:
        changes.append(f"licence {before['licence']} -> {after['licence']}")
    old, new = before["files"], after["files"]
    groups = {
        "changed": [name for name in new if name in old and old[name] != new[name]],
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
    }
    changes += [f"{how}: {', '.join(names)}" for how, names in groups.items() if names]
    return "; ".join(changes)


def update(path: str = "sources.lock.json") -> None:
    """Update a lock file and print the changes (`make update-lock`); exit with 1 if an entry could not be updated."""
    lines = []
    for line in Lock(path).update():
        lines.append(line)
        print(line, flush=True)
    if any(KEPT in line for line in lines):
        sys.exit(1)
