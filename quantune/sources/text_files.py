"""Text files from outside, read part by part: UTF-8, plain, or compressed with gzip or Zstandard. Errors name file and
line.
"""

import codecs
import gzip
import io
import os
import shlex
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from quantune.core.errors import QuantuneError

COMPRESSED = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
"""Ending of a compressed file -> the program that unpacks it, and the first bytes."""
CHUNK = 2**20  # characters, or bytes, that are read at once
LARGEST = 2**29  # characters of the longest document, field or JSON object
SAMPLE = 2**16  # bytes whose encoding is guessed
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
ENCODINGS = ("cp1252", "cp932", "gb18030", "big5", "euc_jp", "cp949", "cp1251", "koi8_r", "cp1250", "cp1253", "cp1256")


def problem(path: Path) -> str | None:
    """Return, in words, why a path is no file that can be read; None if it is a regular file, also through a link."""
    try:
        str(path).encode()
        mode = path.stat().st_mode
    except UnicodeEncodeError:
        return "has a name that is not UTF-8; rename it"
    except ValueError:
        return "has a NUL character in its name; rename it"
    except FileNotFoundError:
        linked = path.is_symlink()
        return f"is a link to '{os.readlink(path)}', which does not exist" if linked else "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe (FIFO)", stat.S_ISSOCK: "a socket"}
    return f"is {next((name for test, name in kinds.items() if test(mode)), 'a device')}; a file is expected"


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file; `newline` is that of `open`. A byte-order mark is left out.

    Raises:
        QuantuneError: also while the file is read, if it is no regular file, not UTF-8 or damaged.
    """
    try:
        with binary(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError:
        raise QuantuneError(_not_utf8(path)) from None


@contextmanager
def binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed if it ends with `.gz` or `.zst`; a stream that is read to its end is
    verified.

    Raises:
        QuantuneError: also while the file is read, if it is no regular file, or not intact.
    """
    if reason := problem(path):
        raise QuantuneError(f"'{path}' {reason}")
    try:
        with {".gz": gzip.open, ".zst": _zstandard}.get(path.suffix, open)(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:  # that of pyarrow
            raise _damaged(path, error) from None
        raise QuantuneError(f"'{path}' cannot be read ({error})") from None


def _zstandard(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), mode), "zstd")


def _damaged(path: Path, error: Exception) -> QuantuneError:
    """Return the error for a compressed file that is damaged, or that is not compressed."""
    program, mark = COMPRESSED[path.suffix]
    with open(path, "rb") as file:
        known = file.read(len(mark)) == mark
    state = "is damaged" if known else f"is not compressed with {program}"
    return QuantuneError(f"'{path}' {state} ({error}); download it again, or rename it if it is no {program}")


def chunks(path: Path) -> Iterator[str]:
    """Yield the text of a file in chunks, lines ended by a line feed; raises as `opened`, or for a NUL character."""
    line = 1
    with opened(path) as file:
        while chunk := file.read(CHUNK):
            if "\0" in chunk:
                raise _nul(path, line + chunk.count("\n", 0, chunk.index("\0")))
            line += chunk.count("\n")
            yield chunk


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends: line feed, carriage return, or both. Raises as `chunks`."""
    with opened(path, newline="") as file:
        number = 0
        while line := file.readline(LARGEST + 1):
            number += 1
            if "\0" in line:
                raise _nul(path, number)
            if len(line) > LARGEST:
                raise too_long(path, f"line {number}")
            yield line


def too_long(path: Path, place: str) -> QuantuneError:
    """Return the error for a document, field or object that does not fit into memory."""
    return QuantuneError(
        f"'{path}', {place}: one document has more than {LARGEST:,} characters; divide it into smaller documents"
    )


def _nul(path: Path, line: int) -> QuantuneError:
    """Return the error for a NUL character in a text."""
    with binary(path) as file:
        fitting = _fitting(file.read(SAMPLE))
    remedy = _remedy(path, fitting) if fitting else "it is binary or damaged; give a text file"
    return QuantuneError(f"'{path}', line {line}: a NUL character is no text; {remedy}")


def _not_utf8(path: Path) -> str:
    """Return the error for a file that is not UTF-8: the first wrong byte, and the encoding that fits."""
    decoder, line, offset = codecs.getincrementaldecoder("utf-8")(), 1, 0
    with binary(path) as file:
        head = sample = file.read(CHUNK)
        chunk = head
        while True:
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                bad, start = error.object, error.start
                break
            offset += len(chunk)
            chunk = file.read(CHUNK)
    line += bad.count(b"\n", 0, start)
    if start >= SAMPLE or offset:
        begin = max(bad.rfind(b"\n", 0, start) + 1, start - SAMPLE // 2)
        sample = bad[begin:]
    fitting = _fitting(sample[:SAMPLE], head)
    remedy = _remedy(path, fitting) if fitting else "convert it, for example with iconv"
    return f"'{path}' is not UTF-8 text: line {line}, byte 0x{bad[start]:02x}; {remedy}"


def _remedy(path: Path, encoding: str) -> str:
    compressed = path.suffix in COMPRESSED
    source = f"{COMPRESSED[path.suffix][0]} -dc {shlex.quote(str(path))} | " if compressed else ""
    given = "" if source else f" {shlex.quote(str(path))}"
    return f"it looks like {encoding}; convert it: {source}iconv -f {encoding} -t UTF-8{given} > new.txt"


def _fitting(sample: bytes, head: bytes = b"") -> str | None:
    """Return the name, for iconv, of the encoding that a sample of bytes fits; None if none is likely."""
    for mark, name in MARKS.items():
        if (head or sample).startswith(mark):
            return name
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) > len(sample) // 8:  # ASCII in two bytes
        return "UTF-16LE" if odd > even else "UTF-16BE"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(ENCODINGS), enable_fallback=False).best()
    if best is None:
        return None
    encoding = next(name for name in (*ENCODINGS, best.encoding) if name in best.could_be_from_charset)
    names = {"big5": "BIG5", "euc_jp": "EUC-JP", "gb18030": "GB18030", "koi8_r": "KOI8-R"}
    return names.get(encoding, encoding.upper())
