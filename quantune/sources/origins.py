"""Where a model's or a dataset's files come from (a local path, the hub, URLs), and what identifies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantune.artefacts.hashes import Hashes
from quantune.sources import clips, download, selection
from quantune.sources.lock import Lock

if TYPE_CHECKING:
    from quantune.sources.entries import Dataset, Model


@dataclass(frozen=True)
class Origin:
    """The files from outside that an artefact is made from."""

    files: Any
    """Paths, or split -> paths; relative to the folder for downloads if there is a `download`."""
    digests: dict[str, str]
    """Name -> SHA-256, or git blob id after `git:`."""
    download: dict[str, Any] | None = None
    """What `quantune.sources.download.fetched` needs to know."""

    def options(self) -> dict[str, Any]:
        """Return what the job is told beyond the digests."""
        return {"files": self.files} | ({"download": self.download} if self.download else {})


def model(entry: Model, key: str, lock: Lock, hashes: Hashes) -> Origin:
    """Return where a model's files come from; raises ConfigError naming the key if they cannot be had."""
    if entry.hub:
        locked = lock.model(entry.hub, entry.revision, f"{key}.hub")
        return _of_hub("model", entry, locked, list(locked["files"]), list(locked["files"]))
    paths = selection.model_files(selection.resolve(entry.path, f"{key}.path"), f"{key}.path").values()
    return Origin([str(path) for path in paths], {path.name: hashes.file(path) for path in paths})


def model_sizes(entry: Model, key: str, lock: Lock) -> dict[str, int]:
    """Return name -> bytes of a model's files."""
    if entry.hub:
        files = lock.model(entry.hub, entry.revision, f"{key}.hub")["files"]
        return {name: file["size"] for name, file in files.items()}
    paths = selection.model_files(selection.resolve(entry.path, f"{key}.path"), f"{key}.path").values()
    return {path.name: path.stat().st_size for path in paths}


def dataset_bytes(entry: Dataset, key: str, lock: Lock) -> int | None:
    """Return the size of a dataset's files, or None for URLs, which do not tell it beforehand."""
    names = [name for found in dataset_files(entry, key, lock).values() for name in found]
    if entry.hub:
        files = lock.dataset(entry.hub, entry.revision, patterns(entry), key)["files"]
        return sum(files[name]["size"] for name in names)
    if entry.urls:
        return None
    found = [path for path in clips.files(entry, dataset_files(entry, key, lock)) if path.exists()]
    return sum(path.stat().st_size for path in [*names, *found])


def dataset(entry: Dataset, key: str, lock: Lock, hashes: Hashes) -> Origin:
    """Return where a dataset's files come from; raises ConfigError naming the key if they cannot be had."""
    files = dataset_files(entry, key, lock)
    names = [name for found in files.values() for name in found]
    if entry.hub:
        locked = lock.dataset(entry.hub, entry.revision, patterns(entry), key)
        return _of_hub("dataset", entry, locked, files, names)
    if entry.urls:
        urls = {name: entry.urls[name].url for name in names}
        return Origin(files, {name: entry.urls[name].sha256 for name in names}, {"urls": urls})
    root = selection.resolve(entry.path, f"{key}.path")
    base = root if root.is_dir() else root.parent
    paths = [path for found in files.values() for path in found]
    digests = {path.relative_to(base).as_posix(): hashes.file(path) for path in paths}
    if found := clips.files(entry, files):
        digests["clips"] = hashes.together(base, found)
    return Origin({split: [str(path) for path in found] for split, found in files.items()}, digests)


def dataset_files(entry: Dataset, key: str, lock: Lock) -> dict[str, list]:
    """Return split -> files, without reading them: local paths, or names in the repository or among the URLs."""
    if entry.path and entry.track == "speech":
        return clips.local_tables(entry, selection.resolve(entry.path, f"{key}.path"), key)
    if entry.path:
        return selection.split_files(selection.resolve(entry.path, f"{key}.path"), entry.splits, key)
    if entry.urls and getattr(entry, "layout", None) == "common-voice":
        return {"": list(entry.urls)}
    if entry.hub:
        matched = lock.dataset(entry.hub, entry.revision, patterns(entry), key)["patterns"]
    else:
        there = list(entry.urls)
        matched = {pattern: selection.matching(there, pattern, f"'{key}.urls'", key) for pattern in patterns(entry)}
    splits = selection.split_patterns(entry.splits)
    return {split: [name for pattern in found for name in matched[pattern]] for split, found in splits.items()}


def patterns(entry: Dataset) -> list[str]:
    """Return the patterns of file names that a dataset's splits need."""
    return [pattern for found in selection.split_patterns(entry.splits).values() for pattern in found]


def _of_hub(kind: str, entry: Model | Dataset, locked: dict[str, Any], files: Any, names: list[str]) -> Origin:
    facts = {"hub": entry.hub, "kind": kind, "revision": entry.revision}
    facts |= {"commit": locked["commit"], "licence": locked["licence"]}
    sizes = {name: locked["files"][name]["size"] for name in names}
    return Origin(files, {name: download.identity(locked["files"][name]) for name in names}, {**facts, "sizes": sizes})
