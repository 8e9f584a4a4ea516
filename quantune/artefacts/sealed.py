"""JSON files that hold a checksum of themselves, and are read through their type.

Such a file may come from another machine, another version or a broken disk. The checksum shows damage and edits. It is
no signature: a program that forges a value can also compute the checksum.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

START = '{"check": "%s",'  # the checksum covers all bytes after this
LENGTH = len(START % hashlib.sha256().hexdigest())


class DamagedError(Exception):
    """A file that is not as it was written; the message says how, and follows the file's name in a sentence."""


def write(path: str | Path, value: dict[str, Any], indent: int | None = 1) -> None:
    """Write a value that is not empty, after its checksum."""
    rest = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False).removeprefix("{") + "\n"
    Path(path).write_bytes((START % _sha256(rest.encode()) + rest).encode())


def read(path: str | Path, kind: TypeAdapter) -> Any:
    """Return the value in a file, or None if there is no such file.

    Raises:
        DamagedError: if the file cannot be read, does not match its checksum, or holds other types.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedError(f"cannot be read ({error.strerror})") from None
    start, rest = content[:LENGTH], content[LENGTH:]
    if start != (START % _sha256(rest)).encode():
        raise DamagedError("was changed: it does not match its checksum")
    try:
        return kind.validate_json(b"{" + rest, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedError(f"holds other types: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
