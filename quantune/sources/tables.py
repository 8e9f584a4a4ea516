"""Tables from outside, read row by row: JSON, JSON lines, CSV, TSV, Parquet. Errors name file, line and column."""

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.sources import text_files
from quantune.sources.text_files import CHUNK, COMPRESSED, LARGEST

SPACE = re.compile(r"[ \t\r\n]*")
BATCH_BYTES = 2**24  # about the bytes of the Parquet rows that are decoded at once
BATCH_ROWS = 32  # the most rows, because a few may be much longer than the mean
csv.field_size_limit(LARGEST)


def rows(
    path: Path,
    kind: str,
    needed: Iterable[str],
    more: Iterable[str] = (),
    nested: Iterable[str] = (),
    keys: str = "'column'",
) -> Iterator[tuple[str, dict]]:
    """Yield the rows of a table: the place ("line 3", "row 3") and column -> value.

    Args:
        path: the file.
        kind: json, csv, tsv or parquet.
        needed: columns that must exist; a row of JSON may lack some.
        more: columns that are read, too, if they exist (Parquet reads no others).
        nested: those of them that may hold lists; all others hold text.
        keys: the dataset's keys that name columns, for errors.

    Raises:
        QuantuneError: naming file, line and problem, if the file cannot be read or has no such column.
    """
    needed = list(needed)
    if kind == "parquet":
        for number, (_, _, row) in enumerate(parquet(path, needed, more, nested, keys), 1):
            yield f"row {number}", row
    else:
        yield from _json(path, needed, keys) if kind == "json" else _separated(path, kind, needed, keys)


def text(value: Any, path: Path, place: str, column: str) -> str:
    """Return a cell that must be text; "" for null.

    Raises:
        QuantuneError: naming file, line, column and value, if it is not text, or not text that UTF-8 can hold.
    """
    if value is None:
        return ""
    where = f"'{path}', {place}, column '{column}'"
    if not isinstance(value, str):
        remedy = "write it in quotes, or set the dataset's keys to columns of text"
        raise QuantuneError(f"{where}: text expected, found {type(value).__name__} ({value!a:.40}); {remedy}")
    require_characters(value, where)
    return value


def require_characters(value: str, where: str) -> None:
    """Raise QuantuneError if a text holds half of a surrogate pair, which is no character."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])
            raise QuantuneError(f"{where}: {half} is half of a surrogate pair; write the whole character") from None


def no_column(path: Path, column: str, columns: Iterable[str], keys: str = "'column'") -> QuantuneError:
    """Return the error for a missing column."""
    names = [str(name).encode("utf-8", "backslashreplace").decode() for name in columns][:50]
    return QuantuneError(
        f"'{path}' has no column '{column}'; columns: {listed(names)}{nearest(column, names)}; set the dataset's {keys}"
    )


def columns(path: Path, kind: str) -> list[str]:
    """Return the names of a table's columns; of JSON, those of its first object."""
    if kind == "parquet":
        with _parquet_file(path) as opened:
            return opened.schema_arrow.names
    if kind == "json":
        return list(next(_json(path, []), ("", {}))[1])
    return _header(path, kind, csv.reader(text_files.lines(path), **_dialect(kind)))


def _json(path: Path, needed: list[str], keys: str = "'column'") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file: one a line, one after the other, or in one array."""
    seen: dict[str, None] = {}
    for number, row in _objects(path):
        if len(seen) < 10_000:
            seen.update(dict.fromkeys(row))
        yield f"line {number}", row
    for column in [name for name in needed if name not in seen]:
        raise no_column(path, column, seen, keys)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line and value of each JSON object; only the present one and about a megabyte are in memory."""
    decode = json.JSONDecoder().raw_decode
    buffer, position, line, objects, ended = "", 0, 1, 0, False
    opened = closed = comma = False  # whether the array has begun, has ended, and whether a comma is due

    def fail(reason: str, at: int) -> QuantuneError:
        return QuantuneError(
            f"'{path}' cannot be read as json: line {line + buffer.count(chr(10), position, at)}: {reason}"
        )

    with text_files.opened(path, newline="\n") as file:
        while True:
            start = SPACE.match(buffer, position).end()
            if start == len(buffer) and not ended:
                line += buffer.count("\n", position)
                buffer, position = file.read(CHUNK), 0
                ended = not buffer
                continue
            if start == len(buffer):
                if opened and not closed:
                    raise fail("the array is not closed; the file is cut off", start)
                if not objects:
                    raise QuantuneError(f"'{path}' cannot be read as json: it is empty")
                return
            letter = buffer[start]
            if closed:
                raise fail(f"unexpected {letter!a} after the end of the array", start)
            if letter == "[" and not opened and not objects:
                line, position, opened = line + buffer.count("\n", position, start), start + 1, True
                continue
            if (opened and letter == "]") or (comma and letter == ","):
                line, position = line + buffer.count("\n", position, start), start + 1
                closed, comma = letter == "]", False
                continue
            if comma:
                raise fail(f"',' or ']' is expected, found {letter!a}", start)
            if letter != "{":
                raise fail(f'an object such as {{"text": "..."}} is expected, found {letter!a}', start)
            try:
                value, end = decode(buffer, start)
            except RecursionError:
                raise fail("its lists or objects are nested too deeply", start) from None
            except ValueError as error:
                at = getattr(error, "pos", start)
                cut = at >= len(buffer) - 16 or str(error).startswith("Unterminated string")
                if ended or not cut:
                    raise fail(str(getattr(error, "msg", error)), min(at, len(buffer))) from None
                if len(buffer) - start > LARGEST:
                    raise text_files.too_long(path, f"line {line}") from None
                line += buffer.count("\n", position, start)
                more = file.read(max(CHUNK, len(buffer) - start))
                buffer, position, ended = buffer[start:] + more, 0, not more
                continue
            line += buffer.count("\n", position, start)
            objects += 1
            yield line, value
            line += buffer.count("\n", start, end)
            position, comma = end, opened


def _dialect(kind: str) -> dict[str, Any]:
    """Return the options of `csv.reader`; quotation marks in a TSV belong to the text."""
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == "tsv" else {}


def _header(path: Path, kind: str, reader: Iterator[list[str]]) -> list[str]:
    names = next(reader, [])
    while names and not names[-1].strip():
        names.pop()  # the header, too, may end with a separator
    if not names:
        raise QuantuneError(f"'{path}' cannot be read as {kind}: it has no header; name the columns in its first line")
    return names


def _separated(path: Path, kind: str, needed: list[str], keys: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV or TSV file; a row must have one field for each name of the header."""
    taken: list[str] = []  # the lines of the present row

    def lines() -> Iterator[str]:
        for line in text_files.lines(path):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), **_dialect(kind))
    try:
        names = _header(path, kind, reader)
        for column in needed:
            if names.count(column) != 1:
                twice = f"'{path}' has two columns '{column}'; rename one"
                raise QuantuneError(twice) if column in names else no_column(path, column, names, keys)
        taken.clear()
        for fields in reader:
            place = f"line {reader.line_num - len(taken) + 1}"
            if kind == "csv" and sum(line.count('"') for line in taken) % 2:
                _require_closed(path, place, taken)
            taken.clear()
            while len(fields) > len(names) and not fields[-1].strip():
                fields.pop()  # the row ends with a separator
            if len(fields) == len(names):
                yield place, dict(zip(names, fields, strict=True))
            elif any(field.strip() for field in fields):
                remedy = "quote a field that holds a comma" if kind == "csv" else "a field must not hold a tab"
                raise QuantuneError(
                    f"'{path}', {place}: {len(fields)} fields, but the header has {len(names)}"
                    f" ({listed(names)}); {remedy}"
                )
    except csv.Error as error:
        problem = f"'{path}' cannot be read as {kind}: line {reader.line_num}: {error}"
        raise QuantuneError(
            f"{problem}; is a quotation mark not closed?" if "limit" in str(error) else problem
        ) from None


def _require_closed(path: Path, place: str, lines: list[str]) -> None:
    """Raise QuantuneError if a quotation mark is open at the end of the file."""
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            problem = f"'{path}', {place}: a quotation mark is not closed before the end of the file"
            raise QuantuneError(f'{problem}; close it, or write "" for a mark inside a field') from None


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """Open a Parquet file; raises QuantuneError, also while it is read, if it is damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix in COMPRESSED:
            with tempfile.TemporaryFile() as plain, text_files.binary(path) as packed:
                shutil.copyfileobj(packed, plain)
                yield pyarrow.parquet.ParquetFile(plain, page_checksum_verification=True)
        else:
            if reason := text_files.problem(path):
                raise QuantuneError(f"'{path}' {reason}")
            with pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK, page_checksum_verification=True) as opened:
                yield opened
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        reason = next(iter(str(error).split("\n")), "")
        raise QuantuneError(f"'{path}' cannot be read as parquet: {reason}; is the file whole?") from None


def parquet(
    path: Path, needed: list[str], more: Iterable[str] = (), nested: Iterable[str] = (), keys: str = "'column'"
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield row group, row in the group and column -> text of each row of a Parquet file; `nested` columns hold lists.

    Raises:
        QuantuneError: if the file is damaged, a needed column is missing, or a column does not hold text.
    """
    import pyarrow

    with _parquet_file(path) as opened:
        schema = opened.schema_arrow
        for column in needed:
            if column not in schema.names:
                raise no_column(path, column, schema.names, keys)
        chosen = [*dict.fromkeys([*needed, *(name for name in more if name in schema.names)])]
        for column in chosen:
            if schema.names.count(column) != 1:
                raise QuantuneError(f"'{path}' has two columns '{column}'; rename one")
            kind = schema.field(column).type
            kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if column not in nested and not any(
                getattr(pyarrow.types, f"is_{name}")(kind) for name in ("string", "large_string", "string_view", "null")
            ):
                remedy = "set the dataset's keys to columns of text"
                raise QuantuneError(f"'{path}', column '{column}': text expected, found {kind}; {remedy}")
        done = 0
        for group in range(opened.num_row_groups):
            facts, index = opened.metadata.row_group(group), 0
            size = max(1, min(BATCH_ROWS, BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
            for batch in opened.iter_batches(size, row_groups=[group], columns=chosen):
                try:
                    values = batch.to_pylist()
                except UnicodeDecodeError as error:
                    rows = f"rows {done + index + 1} to {done + index + batch.num_rows}"
                    raise QuantuneError(f"'{path}', {rows}: text that is not UTF-8 ({error.reason})") from None
                for row in values:
                    yield group, index, row
                    index += 1
            done += index
