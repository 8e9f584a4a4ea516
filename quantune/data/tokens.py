"""Documents as tokens, with the bytes and words of each token; long documents in pieces.

A document of at most `PIECE` bytes is tokenized at once. A longer one is tokenized in pieces that overlap. Two pieces
are joined at a place of their overlap around which both gave the same tokens. The result is exact, the tokens of the
whole document, if the tokenizer divides text before it merges tokens (at spaces, line ends or punctuation) and such a
place is in the overlap. A longer run without one, such as a million letters without a space, is cut after a token; the
number of these cuts is printed.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from quantune.core.errors import QuantuneError
from quantune.data import workers

SCHEMA = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in ("ids", "bytes", "words")])
ROWS = 1024  # documents in one record batch
PIECE = 2**18  # bytes of the longest text that is tokenized at once
OVERLAP = 2**12  # bytes that two pieces share
AGREED = 16  # tokens before and after a join that both pieces must share
BATCH = 2**18  # bytes of short documents that are tokenized together
MOST = 2**31 - 1  # tokens in one record batch
SPACE = numpy.array([chr(code).isspace() for code in range(0x3002)])  # by code; no later one is a space


def encode(texts: list[str], tokenizer) -> dict[str, list]:
    """Tokenize documents without special tokens.

    Returns:
        For each document: ids, and for each token how many UTF-8 bytes of the text it ends (bytes) and how many
        whitespace-separated words begin in it (words). Their sums over a document are its exact bytes and words, so
        bits per byte and word perplexity of any window are exact.

    Raises:
        QuantuneError: if the tokenizer gives no offsets (a slow tokenizer).
    """
    columns = {name: [] for name in SCHEMA.names}
    for part in _whole(texts, tokenizer):
        for name, values in part.items():
            columns[name].append(values.tolist())
    return columns


def write(documents: Iterable[memoryview], tokenizer, path: Path, processes: int = 1) -> tuple[int, int]:
    """Tokenize documents and write them as an Arrow file; memory holds a few pieces, whatever a document's length.

    Args:
        documents: the UTF-8 bytes of each document.
        tokenizer: a fast tokenizer.
        path: the file to write: one row for each document, with the columns of `SCHEMA`.
        processes: that tokenize; the result is the same whatever their number.

    Returns:
        The number of documents and the number of tokens.

    Raises:
        QuantuneError: if the tokenizer gives no offsets (a slow tokenizer).
    """
    count = 0
    with writer(path, SCHEMA) as rows, workers.pool(partial(_short, tokenizer=tokenizer), processes) as mapped:
        for short, batches in groupby(_batches(documents), lambda batch: isinstance(batch, list)):
            if short:
                for parts in mapped(batches):
                    for part in parts:
                        rows.append([part])
                    count += len(parts)
            else:
                for document in batches:
                    rows.append(_in_pieces(document, tokenizer))
                    count += 1
        return count, rows.close()


def _short(batch: list[bytes], tokenizer) -> list[dict[str, numpy.ndarray]]:
    """Return the columns of each document of a batch, as 32-bit integers."""
    parts = _whole([str(text, "utf-8") for text in batch], tokenizer)
    return [{name: values.astype("<i4") for name, values in part.items()} for part in parts]


def _batches(documents: Iterable[memoryview]) -> Iterator[list[bytes] | memoryview]:
    """Yield lists of short documents, and long documents one by one, in their order."""
    short, size = [], 0
    for document in documents:
        if short and (len(document) > PIECE or size + len(document) > BATCH or len(short) == ROWS):
            yield short
            short, size = [], 0
        if len(document) > PIECE:
            yield document
        else:
            short.append(bytes(document))
            size += len(document)
    if short:
        yield short


class Rows:
    """Rows of an Arrow file that grow piece by piece; the values of one batch lie in files until it is written."""

    def __init__(self, folder: Path, writer: Any, schema: pyarrow.Schema):
        self.files = {name: (folder / name).open("w+b") for name in schema.names}
        self.writer, self.schema, self.ends, self.total = writer, schema, [0], 0

    def append(self, parts: Iterable[dict[str, numpy.ndarray]]) -> None:
        """Append a document, given as its pieces."""
        size = 0
        for part in parts:
            size += len(part["ids"])
            for name, values in part.items():
                self.files[name].write(values.astype("<i4").tobytes())
        self.ends.append(self.ends[-1] + size)
        if len(self.ends) > ROWS or self.ends[-1] > MOST // 2:
            self._flush()

    def close(self) -> int:
        """Write the last batch; return the number of all tokens."""
        self._flush()
        for file in self.files.values():
            file.close()
        return self.total

    def _flush(self) -> None:
        if len(self.ends) == 1:
            return
        offsets, columns = pyarrow.array(self.ends, pyarrow.int32()), []
        for file in self.files.values():
            file.flush()
            values = numpy.memmap(file, "<i4", "r") if self.ends[-1] else numpy.empty(0, "<i4")
            columns.append(pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values, pyarrow.int32())))
        self.writer.write_batch(pyarrow.record_batch(columns, schema=self.schema))
        self.total += self.ends[-1]
        self.ends = [0]
        for file in self.files.values():
            file.seek(0)
            file.truncate()


@contextmanager
def writer(path: Path, schema: pyarrow.Schema) -> Iterator[Rows]:
    """Open an Arrow file whose rows are documents: lists of numbers in each column."""
    with (
        pyarrow.OSFile(str(path), "wb") as sink,
        pyarrow.ipc.new_file(sink, schema) as opened,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        yield Rows(Path(folder), opened, schema)


def tokenized(texts: list[str], tokenizer) -> Iterator[tuple[numpy.ndarray, numpy.ndarray]]:
    """Yield ids and offsets (begin and end in characters, shape (tokens, 2)) of each text."""
    if not tokenizer.is_fast:
        raise QuantuneError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    encoded = tokenizer(texts, return_offsets_mapping=True, verbose=False, **options)
    for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        places = numpy.fromiter(chain.from_iterable(offsets), "int64", 2 * len(offsets))
        yield numpy.array(ids, "int64"), places.reshape(-1, 2)


def _whole(texts: list[str], tokenizer) -> Iterator[dict[str, numpy.ndarray]]:
    """Yield ids, bytes and words of each text, tokenized at once."""
    for text, (ids, offsets) in zip(texts, tokenized(texts, tokenizer), strict=True):
        ends = numpy.maximum.accumulate(offsets[:, 1])
        ends[-1:] = len(text)
        yield {"ids": ids, **Positions(text).counts(ends, 0)}


class Positions:
    """Bytes and words before each character of a text, and before its end."""

    def __init__(self, text: str, after_space: bool = True):
        codes = numpy.frombuffer(text.encode("utf-32-le"), "<u4")
        widths = 1 + (codes > 0x7F).astype("int64") + (codes > 0x7FF) + (codes > 0xFFFF)
        spaces = numpy.concatenate([[after_space], SPACE[numpy.minimum(codes, len(SPACE) - 1)]])
        self.bytes = numpy.concatenate([[0], numpy.cumsum(widths)])
        self.words = numpy.concatenate([[0], numpy.cumsum(spaces[:-1] & ~spaces[1:])])

    def counts(self, ends: numpy.ndarray, before: int) -> dict[str, numpy.ndarray]:
        """Return the bytes and words of each token, from the characters at which tokens end and the first begins."""
        return {
            "bytes": numpy.diff(self.bytes[ends], prepend=self.bytes[before]),
            "words": numpy.diff(self.words[ends], prepend=self.words[before]),
        }


class _Piece:
    """A part of a document, and its tokens."""

    def __init__(self, document: memoryview, begin: int, end: int, tokenizer):
        self.begin, self.end = begin, end
        text = str(document[begin:end], "utf-8")
        ((self.ids, offsets),) = tokenized([text], tokenizer)
        before = bytes(document[max(0, begin - 4) : begin]).decode("utf-8", "ignore")
        self.at, self.length = Positions(text, not before or before[-1].isspace()), len(text)
        self.ends = numpy.maximum.accumulate(offsets[:, 1])
        places = (begin + self.at.bytes[offsets[:, 0]], begin + self.at.bytes[self.ends])
        self.tokens = numpy.stack([self.ids, *places], axis=1)
        """Id, begin and end of each token; in bytes of the document."""

    def counts(self, ends: numpy.ndarray, done: int) -> dict[str, numpy.ndarray]:
        """Return bytes and words up to each of the ends, counted from byte `done` of the document on."""
        before = int(numpy.searchsorted(self.at.bytes, done - self.begin))
        return self.at.counts(numpy.maximum(ends, before), before)


def _in_pieces(document: memoryview, tokenizer) -> Iterator[dict[str, numpy.ndarray]]:
    """Yield ids, bytes and words of a long document, piece by piece."""
    size, cuts, first, done = len(document), 0, 0, 0
    missed = {"bytes": 0, "words": 0}  # of text that has no token; it belongs to the next token
    piece, part = _Piece(document, 0, _edge(document, PIECE), tokenizer), None
    while True:
        following, begin, last, stop = None, 0, len(piece.ids), piece.end
        if piece.end < size:
            place = piece.end - OVERLAP
            following = _Piece(document, _edge(document, place), _edge(document, place + PIECE), tokenizer)
            joined = _join(piece, following, first)
            if joined:
                last, begin = joined
            else:
                cuts, following = cuts + 1, None
                inside = int(numpy.searchsorted(piece.tokens[:, 2], piece.end - OVERLAP // 2, "right"))
                if inside > first and piece.tokens[inside - 1, 2] > (piece.begin + piece.end) // 2:
                    last = inside
            if last > first and (joined or last < len(piece.ids)):
                stop = int(piece.tokens[last - 1, 2])
        if last > first:
            if part is not None:
                yield part
            ends = piece.ends[first:last].copy()
            if stop == piece.end:
                ends[-1] = piece.length
            part = {"ids": piece.ids[first:last], **piece.counts(ends, done)}
            for name in missed:
                part[name][0] += missed[name]
                missed[name] = 0
        else:
            for name, value in piece.counts(numpy.array([piece.length]), done).items():
                missed[name] += int(value[0])
        done = stop
        if stop == size:
            break
        piece, first = following or _Piece(document, stop, _edge(document, stop + PIECE), tokenizer), begin
    if part is not None:
        for name in missed:
            part[name][-1] += missed[name]
        yield part
    if cuts:
        print(f"a document of {size:,} bytes: {cuts} cuts in runs without spaces; the tokens beside them may differ")


def _edge(document: memoryview, place: int) -> int:
    """Return the last byte, not far before a place, at which a word begins after a space; or a character begins."""
    if place >= len(document):
        return len(document)
    near = bytes(document[max(0, place - OVERLAP // 4) : place])
    for mark in (b"\n", b" "):
        at = near.rfind(mark)
        if at > 0 and near[at - 1 : at] not in (b"\n", b" ", b"\r", b"\t"):
            return place - len(near) + at
    while document[place] & 0xC0 == 0x80:  # inside a character
        place -= 1
    return place


def _join(left: _Piece, right: _Piece, first: int) -> tuple[int, int] | None:
    """Return the number of a token of the left piece, and of the same token of the right piece, at which to go over.

    The token is the nearest to the middle of the overlap for which `AGREED` tokens before and after are the same in
    both pieces; None if there is none.
    """
    ours, theirs = left.tokens, right.tokens
    low = max(first, AGREED, int(numpy.searchsorted(ours[:, 2], right.begin)))
    candidates = numpy.arange(low, len(ours) - AGREED + 1)
    middle = (right.begin + left.end) // 2
    for number in candidates[numpy.argsort(abs(ours[candidates, 1] - middle), kind="stable")]:
        other = int(numpy.searchsorted(theirs[:, 2], ours[number - 1, 2], "right"))
        same = ours[number - AGREED : number + AGREED]
        if other >= AGREED and numpy.array_equal(same, theirs[other - AGREED : other + AGREED]):
            return int(number), other
    return None
