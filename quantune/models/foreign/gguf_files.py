"""GGUF files, the format of llama.cpp: metadata and the table of tensors, read and checked without torch.

A file is: magic, version, counts, metadata (key -> typed value), a table of tensors, and their data, aligned
(ggml's docs/gguf.md). Everything comes from outside, so every count and length is bounded by the bytes of the file.
`quantune.models.foreign.gguf_config` makes a config.json of the metadata.
"""

import mmap
import os
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from quantune.core.errors import QuantuneError
from quantune.models import stored

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TYPES = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34)},
    **{10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176)},
    **{14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98)},
    **{19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82)},
    **{23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66)},
    39: ("MXFP4", 32, 17),
}
"""Number of a type of ggml -> its name, values in a block, bytes of a block; the library `gguf` dequantizes them."""
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that hold values instead of blocks -> dtype of torch."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST_TENSORS, MOST_KEYS, MOST_DIMENSIONS = 100_000, 100_000, 4
KEPT = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
"""Keys whose lists of texts a tokenizer needs; of other lists of texts only the length is kept."""


class CutOffError(QuantuneError):
    """The bytes end before the table of tensors does."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a GGUF file."""

    kind: str
    """Type of ggml, such as Q4_K."""
    shape: tuple[int, ...]
    """In the order of torch: (outputs, inputs)."""
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The metadata and the tensors of a GGUF file."""

    name: str
    """File name, for errors."""
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def values(self) -> int:
        """Return the number of values in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def read(path: Path, texts: bool = False) -> Header:
    """Return the header of a file; with `texts`, also tokens and merges.

    Raises:
        QuantuneError: if the file is damaged, cut off, or of another version.
    """
    stored.require_file(path)
    state = os.stat(path)
    return _read(path, state.st_size, state.st_mtime_ns, texts)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, _: int, texts: bool) -> Header:
    if size < 24:
        raise QuantuneError(f"{path.name}: has {size} bytes, which is no GGUF file; {stored.AGAIN}")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return parse(content, size, path.name, texts)


def raw(path: Path, tensor: Tensor) -> bytes:
    """Return the bytes of a tensor in a file."""
    with path.open("rb") as file:
        file.seek(tensor.begin)
        return file.read(tensor.end - tensor.begin)


def parse(content: Any, size: int, name: str, texts: bool = False) -> Header:
    """Return the header in the first bytes of a file of `size` bytes.

    Raises:
        CutOffError: if `content` ends before the header does.
        QuantuneError: if it is damaged, or the file is too short for its tensors.
    """
    cursor = _Cursor(content, name)
    if cursor.take(4) != MAGIC:
        raise QuantuneError(f"{name}: is no GGUF file (its first bytes are {bytes(content[:4])!r}); {stored.AGAIN}")
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise QuantuneError(f"{name}: is GGUF of version {version}; allowed: 2, 3; convert it with llama.cpp's scripts")
    count, keys = cursor.scalar("Q"), cursor.scalar("Q")
    if not (0 < count <= MOST_TENSORS and 0 < keys <= MOST_KEYS):
        raise cursor.damaged(f"it has {count:,} tensors and {keys:,} keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("I"), texts and key in KEPT)
    table = [_entry(cursor) for _ in range(count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.damaged(f"'general.alignment' is {alignment!r:.40}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for label, kind, shape, offset in table:
        _, values, width = next(entry for entry in TYPES.values() if entry[0] == kind)
        begin = start + offset
        end = begin + prod(shape) // values * width
        if label in tensors or shape[-1] % values or offset % alignment:
            raise cursor.damaged(f"'{label:.90}' is there twice, or its shape {list(shape)} has no whole blocks")
        if end > size:
            raise QuantuneError(f"{name}: is cut off: '{label:.90}' ends at byte {end:,} of {size:,}; {stored.AGAIN}")
        tensors[label] = Tensor(kind, shape, begin, end)
    return Header(name, metadata, tensors)


def _entry(cursor: "_Cursor") -> tuple[str, str, tuple[int, ...], int]:
    """Return name, type, shape and offset of the next tensor in the table."""
    label, dimensions = cursor.text(), cursor.scalar("I")
    if not 0 < dimensions <= MOST_DIMENSIONS:
        raise cursor.damaged(f"'{label:.90}' has {dimensions} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    if number not in TYPES:
        names = ", ".join(name for name, _, _ in TYPES.values())
        raise QuantuneError(
            f"{cursor.name}: '{label:.90}' has the type {number} of ggml; allowed: {names}; convert the file with "
            "llama.cpp's `llama-quantize`"
        )
    if not all(0 < item < 2**40 for item in shape) or offset >= 2**60:
        raise cursor.damaged(f"'{label:.90}' has the shape {list(shape)}")
    return label, TYPES[number][0], shape, offset


class _Cursor:
    """Reads values one after another; each is checked against the end of the bytes."""

    def __init__(self, content: Any, name: str):
        self.content, self.name, self.position, self.end = content, name, 0, len(content)

    def damaged(self, why: str) -> QuantuneError:
        return QuantuneError(f"{self.name}: is damaged: {why}; {stored.AGAIN}")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        begin, self.position = self.position, self.position + count
        if self.position > self.end:
            raise CutOffError(f"{self.name}: is damaged or cut off: its header does not end; {stored.AGAIN}")
        return bytes(self.content[begin : self.position])

    def scalar(self, form: str) -> Any:
        """Return the next number, little-endian."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        """Return the next text: its length and UTF-8."""
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{raw[:40]!r} is no UTF-8") from None

    def value(self, kind: int, keep: bool) -> Any:
        """Return the next value of metadata; a list of texts that is not kept is returned as its length."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise self.damaged(f"its metadata have a value of type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            width = struct.calcsize(f"<{SCALARS[inner]}")
            return list(struct.unpack(f"<{count}{SCALARS[inner]}", self.take(count * width)))
        if inner != TEXT:
            raise self.damaged(f"its metadata have a list of type {inner}")
        if keep:
            return [self.text() for _ in range(count)]
        self._skip(count)
        return count

    def _skip(self, count: int) -> None:
        """Move behind a number of texts."""
        length, content, position = struct.Struct("<Q").unpack_from, self.content, self.position
        for _ in range(count):
            if position + 8 > self.end:
                break
            position += 8 + length(content, position)[0]
        else:
            self.position = position
            return
        self.take(self.end + 1)  # raises
