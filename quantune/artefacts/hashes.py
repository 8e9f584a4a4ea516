"""SHA-256 of files, remembered, so that what has not changed is read once."""

import atexit
import hashlib
import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from quantune.artefacts import layout

LARGE = 1 << 30  # bytes of a file whose reading is announced
EVERY = 1.0  # seconds between two times that the memory is written


class Hashes:
    """SHA-256 of files, remembered by path, size, and times of change (of the content, and of the file's record)."""

    def __init__(self, memory: str | Path):
        self.memory, self.saved = Path(memory), None
        self.known = self._read()

    def file(self, path: str | Path) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal."""
        path = os.path.realpath(path)
        stamp = _stamp(path)
        if stamp is not None and self.known.get(path, [])[:-1] == stamp:
            return self.known[path][-1]
        if stamp is not None and stamp[0] > LARGE:
            print(f"reading {path} ({stamp[0] / 1e9:.1f} GB) to see whether it is as recorded", file=sys.stderr)
        digest = file_sha256(path)
        if _settled(stamp[1]):
            self._keep(path, [*stamp, digest])
        return digest

    def learn(self, path: str | Path, digest: str) -> None:
        """Remember the SHA-256 of a file that this process has just made."""
        path = os.path.realpath(path)
        self._keep(path, [*_stamp(path), digest])

    def together(self, root: Path, paths: list[Path]) -> str:
        """Return one SHA-256 for many files below a folder: of their names and contents; missing ones count as such."""
        found = [(path.relative_to(root).as_posix(), path, _stamp(path)) for path in sorted(set(paths))]
        stamp = hashlib.sha256(json.dumps([(name, stamp) for name, _, stamp in found]).encode()).hexdigest()
        key = f"{os.path.realpath(root)}/*"
        if self.known.get(key, [None])[0] == stamp:
            return self.known[key][1]
        digest = hashlib.sha256()
        for name, path, there in found:
            digest.update(f"{name}\0{file_sha256(path) if there else 'missing'}\n".encode())
        if all(_settled(there[1]) for _, _, there in found if there):
            self._keep(key, [stamp, digest.hexdigest()])
        return digest.hexdigest()

    def _keep(self, key: str, value: list[Any]) -> None:
        """Remember; write the memory now and then, and at the process's end."""
        self.known[key] = value
        if self.saved is None:
            atexit.register(self._save)
        if self.saved is None or time.monotonic() - self.saved > EVERY:
            self._save()

    def _read(self) -> dict[str, list[Any]]:
        try:
            known = json.loads(self.memory.read_text())
        except (OSError, ValueError):
            known = None
        return known if isinstance(known, dict) else {}

    def _save(self) -> None:
        """Write the memory, with what other processes have added meanwhile."""
        self.known = self._read() | self.known
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        partial = self.memory.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self.known))
        partial.replace(self.memory)
        self.saved = time.monotonic()


@cache
def of(work: str | Path) -> Hashes:
    """Return the hashes remembered in a work folder."""
    return Hashes(layout.remembered_hashes(work))


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settled(changed: int) -> bool:
    """Return whether a file changed long enough ago, given when in nanoseconds.

    Within the clock's granularity of being read it could change again unseen.
    """
    return time.time_ns() - changed > 2_000_000_000


def _stamp(path: str | Path) -> list[int] | None:
    """Return what changes when a file changes; None if it is not there.

    The time of the record's change is no program's to set: it tells even of a change that restored the content's time.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
