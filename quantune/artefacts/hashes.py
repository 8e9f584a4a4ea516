"""SHA-256 of files, kept in a cache file, so that an unchanged file is read once."""

import atexit
import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from quantune.artefacts import layout, sealed

LARGE = 1 << 30  # bytes above which the reading of a file is announced
SAVE_INTERVAL = 1.0  # seconds between two writes of the cache file
CACHE = TypeAdapter(dict[str, dict[str, list[int | str]]])


class Hashes:
    """SHA-256 of files, cached by path, size, inode, and times of change (of the content, and of the inode)."""

    def __init__(self, cache_file: str | Path):
        self.cache_file, self.saved = Path(cache_file), None
        self.known = self._read()

    def file(self, path: str | Path) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal."""
        path = os.path.realpath(path)
        return self.real_file(path, os.stat(path))

    def real_file(self, path: str, status: os.stat_result) -> str:
        """Return the SHA-256 of a file's content, given its path without links and its status."""
        stamp = _stamp(status)
        known = self.known.get(path)
        if known is not None and known[:-1] == stamp:
            return known[-1]
        if stamp[0] > LARGE:
            print(f"reading {path} ({stamp[0] / 1e9:.1f} GB) to check its SHA-256", file=sys.stderr)
        digest = file_sha256(path)
        if _settled(stamp[1]):
            self._keep(path, [*stamp, digest])
        return digest

    def remember(self, path: str | Path, digest: str) -> None:
        """Store the SHA-256 of a file that this process has just made."""
        path = os.path.realpath(path)
        self._keep(path, [*_stamp(os.stat(path)), digest])

    def combined(self, root: Path, paths: list[Path]) -> str:
        """Return one SHA-256 over the names and contents of files below a folder; a missing file is marked so."""
        stamped = [(path.relative_to(root).as_posix(), path, _stamp_of(path)) for path in sorted(set(paths))]
        stamp = hashlib.sha256(json.dumps([(name, stamp) for name, _, stamp in stamped]).encode()).hexdigest()
        key = f"{os.path.realpath(root)}/*"
        if self.known.get(key, [])[:1] == [stamp]:
            return self.known[key][1]
        digest = hashlib.sha256()
        for name, path, stamp_of_file in stamped:
            digest.update(f"{name}\0{file_sha256(path) if stamp_of_file else 'missing'}\n".encode())
        if all(_settled(item[1]) for _, _, item in stamped if item):
            self._keep(key, [stamp, digest.hexdigest()])
        return digest.hexdigest()

    def _keep(self, key: str, value: list[Any]) -> None:
        """Store a value; write the cache file now and then, and at the process's end."""
        self.known[key] = value
        if self.saved is None:
            atexit.register(self._save)
        if self.saved is None or time.monotonic() - self.saved > SAVE_INTERVAL:
            self._save()

    def _read(self) -> dict[str, list[Any]]:
        try:
            return (sealed.read(self.cache_file, CACHE) or {}).get("files", {})
        except sealed.DamagedError as error:
            print(f"{self.cache_file} {error}; the files are read again", file=sys.stderr)
            return {}

    def _save(self) -> None:
        """Write the cache file, with the entries that other processes have added meanwhile.

        Without permission or room to write, the entries last as long as this process.
        """
        self.known, self.saved = self._read() | self.known, time.monotonic()
        partial = self.cache_file.with_suffix(f".{os.getpid()}")
        try:
            self.cache_file.parent.mkdir(parents=True, exist_ok=True)
            sealed.write(partial, {"files": self.known}, indent=None)
            partial.replace(self.cache_file)
        except OSError:
            with suppress(OSError):
                partial.unlink()


@cache
def work_hashes(work: str | Path) -> Hashes:
    """Return the cached hashes of a work folder, one object for each process."""
    return Hashes(layout.hash_cache(work))


def real_folder(path: str) -> str:
    """Return the path of an artefact's folder without links; the folders above it are looked up once."""
    above, name = os.path.split(path)
    path = os.path.join(_real(above), name)
    return os.path.realpath(path) if os.path.islink(path) else path


@cache
def _real(path: str) -> str:
    return os.path.realpath(path)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settled(changed: int) -> bool:
    """Return whether a file changed at least 2 s ago, given its time of change in nanoseconds.

    Within the clock's granularity a second change would keep the same time.
    """
    return time.time_ns() - changed > 2_000_000_000


def _stamp_of(path: str | Path) -> list[int] | None:
    """Return the stamp of a file; None if it does not exist."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _stamp(status: os.stat_result) -> list[int]:
    """Return size, times of change and inode of a file.

    No program can set the inode's time of change, so it shows even a change that restored the content's time.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
