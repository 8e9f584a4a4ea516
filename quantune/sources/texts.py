"""Documents on disk: memory holds one document, and eight bytes for each of them."""

import json
import mmap
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from quantune.core.errors import QuantuneError

LARGEST = 2**31 - 1  # bytes of one document, and of one chunk of an Arrow column
BUFFER = 2**20  # bytes that are read at once
BATCH_BYTES = 2**24  # about the bytes of the documents that are decoded at once
ROWS = 32  # the most of these documents, because a few may be much longer than the mean


class Texts:
    """Documents: their UTF-8 bytes one after the other in a file; the index of each document's end in memory."""

    def __init__(self, path: Path):
        """Create an empty file."""
        self.path, self.ends = path, array("q", [0])
        self.characters = 0
        self.blank = 0
        """Documents that were left out because they hold nothing but space."""
        self._file = path.open("wb")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def append(self, parts: Iterable[str]) -> None:
        """Append a document, given as its parts one after the other; a blank one is only counted.

        Raises:
            QuantuneError: if it has 2 GiB or more.
        """
        size, characters, blank = 0, 0, True
        for part in parts:
            size += self._file.write(part.encode())
            characters += len(part)
            blank = blank and not part.strip()
            if size > LARGEST:
                raise QuantuneError(f"a document has more than {LARGEST:,} bytes; divide it, or leave out 'join'")
        if blank:
            self.blank += 1
            self._file.seek(self.ends[-1])
            self._file.truncate()
        else:
            self.ends.append(self.ends[-1] + size)
            self.characters += characters

    def __iter__(self) -> Iterator[str]:
        self._file.flush()
        with self.path.open("rb") as file:
            for number in range(len(self)):
                yield file.read(self.ends[number + 1] - self.ends[number]).decode()

    def chosen(self, numbers: Any, path: Path) -> "Texts":
        """Return some of the documents, in a file of their own; `numbers` is an array of integers."""
        self._file.flush()
        other = Texts(path)
        with self.path.open("rb") as file:
            for number in numbers:
                file.seek(self.ends[number])
                other.append((file.read(self.ends[number + 1] - self.ends[number]).decode(),))
        return other

    def write_parquet(self, path: Path) -> None:
        """Write the documents as the column `text` of a Parquet file, from the mapped file; there must be some."""
        import numpy
        import pyarrow
        import pyarrow.parquet

        self._file.flush()
        ends, chunks, begin = numpy.frombuffer(self.ends, "int64"), [], 0
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = pyarrow.py_buffer(mapped)
            while begin < len(self):
                end = int(numpy.searchsorted(ends, ends[begin] + LARGEST, side="right")) - 1
                offsets = pyarrow.py_buffer((ends[begin : end + 1] - ends[begin]).astype("int32"))
                part = data.slice(int(ends[begin]), int(ends[end] - ends[begin]))
                chunks.append(pyarrow.StringArray.from_buffers(end - begin, offsets, part))
                begin = end
            pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.chunked_array(chunks)}), path)
            del data, part, chunks

    def write_messages(self, path: Path) -> None:
        """Write conversations, given as JSON, as the column `messages` of a Parquet file; a few are in memory."""
        import pyarrow
        import pyarrow.parquet

        message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
        schema = pyarrow.schema([("messages", pyarrow.list_(message))])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            rows, size = [], 0
            for text in self:
                rows.append(json.loads(text))
                size += len(text)
                if size > BATCH_BYTES:
                    writer.write_table(pyarrow.table({"messages": rows}, schema=schema))
                    rows, size = [], 0
            if rows:
                writer.write_table(pyarrow.table({"messages": rows}, schema=schema))


def holds_messages(path: Path) -> bool:
    """Return whether a Parquet file holds conversations, as `Texts.write_messages` writes them."""
    import pyarrow.parquet

    return "messages" in pyarrow.parquet.read_schema(path).names


def read_parquet(path: Path) -> Iterator[memoryview]:
    """Yield the UTF-8 bytes of each document of a file that `Texts.write_parquet` wrote."""
    return (memoryview(value.as_buffer()) for value in _read(path, "text"))


def read_messages(path: Path) -> Iterator[list[dict[str, str]]]:
    """Yield the messages of each conversation of a file that `Texts.write_messages` wrote."""
    return (value.as_py() for value in _read(path, "messages"))


def _read(path: Path, column: str) -> Iterator[Any]:
    """Yield the values of a column, with a bar of progress; some rows are in memory."""
    import pyarrow.parquet
    from tqdm import tqdm

    with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER) as opened:
        facts = opened.metadata
        total = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        size = max(1, min(ROWS, BATCH_BYTES * facts.num_rows // max(1, total)))
        with tqdm(total=facts.num_rows, desc=path.stem, unit="document") as bar:
            for batch in opened.iter_batches(size, columns=[column]):
                yield from batch.column(0)
                bar.update(batch.num_rows)
