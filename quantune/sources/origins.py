"""The origin of a model's or a dataset's files (a local path, the hub, URLs), and the hashes that identify them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantune.artefacts.hashes import Hashes
from quantune.sources import clips, download, model_sources, selection
from quantune.sources.lock import Lock
from quantune.sources.text_files import COMPRESSED

if TYPE_CHECKING:
    from quantune.sources.entries import Dataset, Model


@dataclass(frozen=True)
class Origin:
    """The files from outside that an artefact is made from."""

    files: Any
    """Paths, or split -> paths; relative to the folder for downloads if `download` is given."""
    digests: dict[str, str]
    """Name -> SHA-256, or git blob id after `git:`."""
    download: dict[str, Any] | None = None
    """The options of `quantune.sources.download.fetch_sources`; None for local files."""
    root: str | None = None
    """The folder that must hold the files that tables name; None if there are no such tables."""
    texts: list[str] | None = None
    """The documents, if the configuration holds them."""

    def options(self) -> dict[str, Any]:
        """Return the options of the job: files, download, root and texts."""
        more = {"download": self.download, "root": self.root, "texts": self.texts}
        return {"files": self.files} | {name: value for name, value in more.items() if value}


def model(entry: Model, key: str, lock: Lock, hashes: Hashes) -> Origin:
    """Return the origin of a model's files; raises ConfigError naming the key if they are not available."""
    if entry.hub:
        locked = lock.model(entry.hub, entry.revision, f"{key}.hub", entry.gguf_file)
        return _of_hub("model", entry, locked, list(locked["files"]), list(locked["files"]))
    paths = model_sources.local_files(entry, key).values()
    return Origin([str(path) for path in paths], {path.name: hashes.file(path) for path in paths})


def dataset_bytes(entry: Dataset, key: str, lock: Lock) -> int | None:
    """Return the bytes of a dataset's files, or None for URLs, whose sizes are not known before the download."""
    names = [name for group in dataset_files(entry, key, lock).values() for name in group]
    if entry.hub:
        files = lock.dataset(entry.hub, entry.revision, patterns(entry), key)["files"]
        return sum(files[name]["size"] for name in names)
    if entry.urls:
        return None
    if texts := getattr(entry, "texts", []):
        return sum(len(text.encode()) for text in texts)
    audio = clips.audio_files(entry, dataset_files(entry, key, lock), root(entry, key))
    return sum(path.stat().st_size for path in [*names, *audio] if path.is_file())


def dataset_sizes(entry: Dataset, key: str, lock: Lock) -> list[tuple[int, bool]]:
    """Return the bytes of each of a dataset's tables and texts, and whether it is compressed; empty for URLs."""
    names = [name for group in dataset_files(entry, key, lock).values() for name in group]
    if entry.urls:
        return []
    if texts := getattr(entry, "texts", []):
        return [(len(text.encode()), False) for text in texts]
    if entry.hub:
        files = lock.dataset(entry.hub, entry.revision, patterns(entry), key)["files"]
        sizes = [files[name]["size"] for name in names]
    else:
        sizes = [path.stat().st_size for path in names]
    return [(size, str(name).endswith((*COMPRESSED, ".parquet"))) for name, size in zip(names, sizes, strict=True)]


def dataset(entry: Dataset, key: str, lock: Lock, hashes: Hashes) -> Origin:
    """Return the origin of a dataset's files; raises ConfigError naming the key if they are not available."""
    files = dataset_files(entry, key, lock)
    names = [name for group in files.values() for name in group]
    if entry.hub:
        locked = lock.dataset(entry.hub, entry.revision, patterns(entry), key)
        return _of_hub("dataset", entry, locked, files, names)
    if entry.urls:
        urls = {name: entry.urls[name].url for name in names}
        return Origin(files, {name: entry.urls[name].sha256 for name in names}, {"urls": urls})
    if texts := getattr(entry, "texts", []):
        return Origin(files, {"texts": sha256(json.dumps(texts).encode()).hexdigest()}, texts=texts)
    source = selection.resolve(entry.path, f"{key}.path")
    base = source if source.is_dir() else source.parent
    paths = [path for group in files.values() for path in group]
    digests = {path.relative_to(base).as_posix(): hashes.file(path) for path in paths}
    held = root(entry, key) if entry.track == "speech" else None
    if audio := clips.audio_files(entry, files, held):
        if any(".." in path.parts or path.is_absolute() != base.is_absolute() for path in audio):
            base, audio = Path(os.path.abspath(base)), [Path(os.path.abspath(path)) for path in audio]
        if held == Path("/"):
            base = Path(os.path.commonpath([base, *audio]))
        digests["clips"] = hashes.combined(base, audio)
    files = {split: [str(path) for path in group] for split, group in files.items()}
    return Origin(files, digests, root=held and os.path.abspath(held))


def root(entry: Dataset, key: str) -> Path:
    """Return the folder that must hold the files that tables of a dataset on this machine name."""
    if getattr(entry, "absolute_paths", False):
        return Path("/")
    path = selection.resolve(entry.path, f"{key}.path")
    return path if path.is_dir() else path.parent


def dataset_files(entry: Dataset, key: str, lock: Lock) -> dict[str, list]:
    """Return split -> files, without reading them: local paths, or names in the repository or among the URLs."""
    if entry.path and entry.track == "speech":
        return clips.local_tables(entry, selection.resolve(entry.path, f"{key}.path"), key)
    if entry.path:
        return selection.split_files(selection.resolve(entry.path, f"{key}.path"), entry.splits, key)
    if getattr(entry, "texts", []):
        return {"": []}
    if entry.urls and getattr(entry, "layout", None) == "common-voice":
        return {"": list(entry.urls)}
    if entry.hub:
        matched = lock.dataset(entry.hub, entry.revision, patterns(entry), key)["patterns"]
    else:
        names = list(entry.urls)
        matched = {pattern: selection.matching(names, pattern, f"'{key}.urls'", key) for pattern in patterns(entry)}
    splits = selection.split_patterns(entry.splits)
    return {split: [name for pattern in group for name in matched[pattern]] for split, group in splits.items()}


def patterns(entry: Dataset) -> list[str]:
    """Return the patterns of file names that a dataset's splits need."""
    return [pattern for group in selection.split_patterns(entry.splits).values() for pattern in group]


def _of_hub(kind: str, entry: Model | Dataset, locked: dict[str, Any], files: Any, names: list[str]) -> Origin:
    facts = {"hub": entry.hub, "kind": kind, "revision": entry.revision}
    facts |= {"commit": locked["commit"], "licence": locked["licence"]}
    sizes = {name: locked["files"][name]["size"] for name in names}
    return Origin(files, {name: download.identity(locked["files"][name]) for name in names}, {**facts, "sizes": sizes})
