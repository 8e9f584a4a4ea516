"""Data files from outside, broken in every way: each gives one line with place and remedy, or the right value."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import load, resources
from quantune.planning.plan import Plan
from quantune.sources import audio, documents, download, draw, leaks, lock, selection
from quantune.sources import hub as sources_hub
from quantune.sources.texts import Texts
from tests.voices import gather, plan, release, row, sound

ROOT = Path(__file__).parents[2]
SAID = "text expected, found"


@pytest.fixture(autouse=True)
def no_waiting():
    """Fail instead of waiting for ever, as the opening of a pipe does."""

    def fail(*_):
        raise AssertionError("waited too long")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def texts(path: Path, **recipe) -> list[str]:
    recipe = {"column": "text", "document": "paragraph", "format": None, "first": None, "join": None} | recipe
    return ["".join(parts) for parts in documents.read_documents(path, recipe)]


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


ROWS = b'{"text": "One"}\n{"text": "Two"}\n'
LINES = "".join(
    json.dumps({"text": f"Row {number} {hashlib.sha256(bytes([number])).hexdigest()}"}) + "\n" for number in range(99)
)
WORDS = "Der Wächter hörte die Glocke läuten und öffnete die Tür des großen Hauses. "
CHINESE = "港口的钟声在雾散之前响了三次，守塔人记下了时间和风向。"
JAPANESE = "港の鐘は霧が晴れる前に三回鳴りました。番人は時刻と風向きを書き留めた。"
RUSSIAN = "Смотритель маяка записал в журнал направление ветра и время прибытия. "

BAD = {
    # JSON lines
    "a number": (
        "a.jsonl",
        b'{"text": "One"}\n{"text": 17}\n',
        rf"a.jsonl', line 2, column 'text': {SAID} int \(17\); ",
    ),
    "a fraction": ("a.jsonl", b'{"text": 1.5}\n', rf"line 1, column 'text': {SAID} float \(1.5\)"),
    "true": ("a.jsonl", b'{"text": true}\n', rf"line 1, column 'text': {SAID} bool \(True\)"),
    "a list": ("a.jsonl", b'{"text": ["One"]}\n', rf"line 1, column 'text': {SAID} list"),
    "an object": ("a.jsonl", b'{"text": {"en": "One"}}\n', rf"line 1, column 'text': {SAID} dict"),
    "half a pair": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "b \\ud83d"}\n',
        r"line 2, column 'text': '\\ud83d' is half of a",
    ),
    "the other half": (
        "a.jsonl",
        b'{"text": "\\ude00 b"}\n',
        r"line 1, column 'text': '\\ude00' is half of a surrogate",
    ),
    "half a pair in a key": ("a.jsonl", b'{"\\ud83d": "a"}\n', r"no column 'text'; columns: \\ud83d; set"),
    "a row that is a list": ("a.jsonl", b'["One"]\n', r"line 1: an object such as .* is expected, found '\"'"),
    "a row that is a text": ("a.jsonl", b'{"text": "a"}\n"One"\n', r"line 2: an object such as .* is expected, found"),
    "a row that is a number": ("a.jsonl", b"12\n", r"line 1: an object such as"),
    "null as a row": ("a.jsonl", b'{"text": "a"}\n\nnull\n', r"line 3: an object such as"),
    "not closed": (
        "a.jsonl",
        b'{"text": "One"}\n{"text": "Two"\n{"text": "Three"}\n',
        r"line 3: Expecting ',' delimiter",
    ),
    "cut off": ("a.jsonl", b'{"text": "One"}\n{"text": "Tw', r"line 2: Unterminated string"),
    "cut off between": ("a.jsonl", b'{"text": "One"}\n{"text": ', r"line 2: Expecting value"),
    "a line end in a text": ("a.jsonl", b'{"text": "One\ntwo"}\n', r"line 1: Invalid control character"),
    "NUL in JSON": ("a.jsonl", b'{"text": "One\0two"}\n', r"line 1: Invalid control character"),
    "NULs after JSON": ("a.jsonl", ROWS + bytes(64), r"line 3: an object such as .*found '\\x00'"),
    "single quotes": ("a.jsonl", b"{'text': 'One'}\n", r"line 1: Expecting property name"),
    "nested too deeply": (
        "a.jsonl",
        b'{"text": ' + b"[" * 200_000,
        r"line 1: its lists or objects are nested too deeply",
    ),
    "a huge integer": ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"line 1: Exceeds the limit"),
    "an escape cut off": ("a.jsonl", b'{"text": "\\u12"}\n', r"line 1: Invalid \\uXXXX escape"),
    "an empty file": ("a.jsonl", b"", r"a.jsonl' cannot be read as json: it is empty"),
    "blank lines": ("a.jsonl", b"\n\n  \n", r"cannot be read as json: it is empty"),
    "an array not closed": ("a.json", b'[{"text": "One"}, {"text": "Two"}', r"line 1: the array is not closed"),
    "an array without commas": ("a.json", b'[{"text": "One"}\n {"text": "Two"}]', r"line 2: ',' or '\]' is expected"),
    "text after an array": ("a.json", b'[{"text": "One"}]\n{"text": "Two"}', r"line 2: unexpected '{' after the end"),
    "an array of texts": ("a.json", b'["One", "Two"]', r"line 1: an object such as"),
    "no column": ("a.jsonl", b'{"txt": "One"}\n', r"a.jsonl' has no column 'text'; columns: txt; did you mean 'txt'\?"),
    # CSV and TSV
    "a field more": (
        "a.csv",
        b"text,n\nOne,1\nTwo, too,2\n",
        r"a.csv', line 3: 3 fields, but the header has 2 \(text, n\)",
    ),
    "a field fewer": ("a.csv", b"n,text\n1,One\n2\n", r"line 3: 1 fields, but the header has 2 \(n, text\); quote"),
    "a tab more": ("a.tsv", b"text\tn\nOne\tmore\t1\n", r"a.tsv', line 2: 3 fields, .*a field must not hold a tab"),
    "a tab fewer": ("a.tsv", b"n\ttext\nOne\n", r"a.tsv', line 2: 1 fields, but the header has 2"),
    "a row after a long one": ("a.csv", b'text,n\n"One\ntwo",1\nTwo\n', r"line 4: 1 fields"),
    "a mark not closed": (
        "a.csv",
        b'text,n\n"One,1\nTwo,2\n',
        r"line 2: a quotation mark is not closed before the end",
    ),
    "a mark not closed at the end": ("a.csv", b'n,text\n1,"One', r"line 2: a quotation mark is not closed"),
    "two columns of one name": ("a.csv", b"text,text\nOne,Two\n", r"a.csv' has two columns 'text'; rename one"),
    "no header": ("a.csv", b"", r"a.csv' cannot be read as csv: it has no header"),
    "a header of separators": ("a.csv", b",,\nOne,1,2\n", r"it has no header"),
    "another column": ("a.tsv", b"txt\tn\nOne\t1\n", r"no column 'text'; columns: txt, n; did you mean 'txt'\?"),
    "NUL in CSV": ("a.csv", b"text,n\nOne,1\nT\0wo,2\n", r"a.csv', line 3: a NUL character is no text; it is binary"),
    "NUL in TSV": ("a.tsv", b"text\tn\nO\0ne\t1\n", r"a.tsv', line 2: a NUL character is no text"),
    # Parquet
    "Parquet of numbers": ("a.parquet", parquet(text=[1, 2]), rf"a.parquet', column 'text': {SAID} int64; set"),
    "Parquet of fractions": ("a.parquet", parquet(text=[1.0]), rf"column 'text': {SAID} double"),
    "Parquet of lists": ("a.parquet", parquet(text=[["One"]]), rf"column 'text': {SAID} list"),
    "Parquet of bytes": ("a.parquet", parquet(text=[b"One"]), rf"column 'text': {SAID} binary"),
    "Parquet of objects": ("a.parquet", parquet(text=[{"en": "One"}]), rf"column 'text': {SAID} struct"),
    "Parquet without the column": ("a.parquet", parquet(txt=["One"]), r"no column 'text'; columns: txt; did you mean"),
    "Parquet cut off": ("a.parquet", parquet(text=["One"] * 99)[:-9], r"a.parquet' cannot be read as parquet: .*whole"),
    "Parquet of its beginning": ("a.parquet", b"PAR1", r"cannot be read as parquet: "),
    "Parquet of nothing": ("a.parquet", b"", r"cannot be read as parquet: "),
    "Parquet that is text": ("a.parquet", b"One\n" * 99, r"cannot be read as parquet: "),
    "Parquet with wrong UTF-8": (
        "a.parquet",
        parquet(
            text=pyarrow.StringArray.from_buffers(
                1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
            )
        ),
        r"a.parquet', rows 1 to 1: text that is not UTF-8",
    ),
    # gzip
    "gzip cut off": ("a.txt.gz", gzip.compress(LINES.encode())[:-20], r"a.txt.gz' is damaged \(Compressed file ended"),
    "gzip without its checksum": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-8], r"a.jsonl.gz' is damaged .*again"),
    "gzip with a flipped checksum": (
        "a.jsonl.gz",
        flipped(gzip.compress(LINES.encode()), -6),
        r"is damaged \(CRC check",
    ),
    "gzip with a flipped length": (
        "a.csv.gz",
        flipped(gzip.compress(b"text\nOne\n"), -2),
        r"is damaged \(Incorrect len",
    ),
    "gzip with a flipped bit": (
        "a.jsonl.gz",
        flipped(gzip.compress(LINES.encode()), 900),
        r"a.jsonl.gz' (is damaged|cannot)",
    ),
    "gzip that is text": ("a.txt.gz", b"One\n", r"a.txt.gz' is not compressed with gzip"),
    "gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), r"it is empty"),
    "Parquet in gzip, cut off": (
        "a.parquet.gz",
        gzip.compress(parquet(text=["One"]))[:-9],
        r"a.parquet.gz' is damaged",
    ),
    # encodings
    "UTF-16 with a mark": (
        "a.txt",
        WORDS.encode("utf-16"),
        r"a.txt' is not UTF-8 text: line 1, byte 0xff; .*iconv -f UTF-16 -t",
    ),
    "UTF-16, big-endian": (
        "a.csv",
        b"\xfe\xff" + WORDS.encode("utf-16-be"),
        r"looks like UTF-16; convert it: iconv -f UTF-16",
    ),
    "UTF-16 without a mark": (
        "a.txt",
        b"The wind rose. ".decode().encode("utf-16-le"),
        r"NUL character.*like UTF-16LE",
    ),
    "UTF-32": ("a.jsonl", "[{}]".encode("utf-32"), r"is not UTF-8 text: .*looks like UTF-32; convert"),
    "Latin": (
        "a.txt",
        ("Ja.\n" + WORDS * 9).encode("cp1252"),
        r"a.txt' is not UTF-8 text: line 2, byte 0xe4; .*-f CP1252 -t UTF-8",
    ),
    "Shift-JIS": ("a.csv", ("text\n" + JAPANESE * 9).encode("cp932"), r"line 2, byte .*looks like CP932; convert it"),
    "GB18030": ("a.tsv", ("text\n" + CHINESE * 9).encode("gb18030"), r"line 2, byte .*looks like (GB18030|BIG5|CP949)"),
    "Cyrillic": ("a.jsonl", ('{"text": "' + RUSSIAN * 9 + '"}').encode("cp1251"), r"line 1, byte .*looks like CP1251"),
    "Latin in gzip": (
        "a.txt.gz",
        gzip.compress((WORDS * 9).encode("cp1252")),
        r"gzip -dc \S+a.txt.gz'? \| iconv -f CP1252",
    ),
    "a character cut off": ("a.txt", "Größe ü".encode()[:-1], r"a.txt' is not UTF-8 text: line 1, byte 0xc3"),
    "an image": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"a.txt' is not UTF-8 text: line 1, byte 0x89"),
    "a hole of NULs": ("a.txt", b"One.\n\nTwo.\n" + bytes(4096), r"a.txt', line 4: a NUL character is no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gives_one_line(tmp_path, case):
    name, content, message = BAD[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(QuantuneError, match=message) as caught:
        texts(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 500 and line.isprintable()
    assert [item.name for item in tmp_path.iterdir()] == [name] and path.read_bytes() == content


GOOD = {
    "a separator at the end of rows": ("a.csv", b'text,n\n"One, two",1,\nThree,2,\n', {}, ["One, two", "Three"]),
    "a separator at the end of all": ("a.csv", b"text,n,\nOne,1,\nTwo,2,\n", {}, ["One", "Two"]),
    "numbers in CSV are text": ("a.csv", b"text,n\n007,1\n1.50,2\nNA,3\n", {}, ["007", "1.50", "NA"]),
    "blank lines in CSV": ("a.csv", b"text,n\n\nOne,1\n  \n", {}, ["One"]),
    "line ends in CSV": ("a.csv", b'text,n\r\n"One\r\ntwo",1\r\nThree,2\r\n', {}, ["One\r\ntwo", "Three"]),
    "old line ends in CSV": ("a.csv", b"text,n\rOne,1\rTwo,2\r", {}, ["One", "Two"]),
    "a mark before each format": ("a.csv", "\ufefftext,n\nOne,1\n".encode(), {}, ["One"]),
    "a mark in TSV": ("a.tsv", "\ufefftext\tn\nOne\t1\n".encode(), {}, ["One"]),
    "a mark in JSON": ("a.jsonl", "\ufeff".encode() + ROWS, {}, ["One", "Two"]),
    "a mark in text": ("a.txt", "\ufeffOne.\n\nTwo.".encode(), {}, ["One.", "Two."]),
    "a mark in gzip": ("a.txt.gz", gzip.compress("\ufeffOne.".encode()), {}, ["One."]),
    "separators in JSON": (
        "a.jsonl",
        '{"text": "a\u2028b\u2029c\x85d"}\n{"text": "e\\u001cf\\u000bg"}\n'.encode(),
        {},
        ["a\u2028b\u2029c\x85d", "e\x1cf\x0bg"],
    ),
    "separators in CSV": ("a.csv", "text,n\na\u2028b\x1c\x0b\x0c\x85c,1\n".encode(), {}, ["a\u2028b\x1c\x0b\x0c\x85c"]),
    "separators in TSV": (
        "a.tsv",
        "text\tn\na\u2028b\x1c\x0b\x0c\x85c\t1\n".encode(),
        {},
        ["a\u2028b\x1c\x0b\x0c\x85c"],
    ),
    "separators in text": ("a.txt", "a\u2028b\n\x0cc".encode(), {"document": "line"}, ["a\u2028b", "\x0cc"]),
    "NUL written as an escape": ("a.jsonl", b'{"text": "a\\u0000b"}\n', {}, ["a\0b"]),
    "a whole pair": ("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', {}, ["\U0001f600"]),
    "objects over several lines": ("a.json", b'{\n "text":\n "One"}\n{"text": "Two"}', {}, ["One", "Two"]),
    "an array over several lines": ("a.json", b'\n[\n{"text": "One"},\n{"text": "Two"}\n]\n', {}, ["One", "Two"]),
    "an empty array": ("a.json", b'[{"text": "One"}, ]', {}, ["One"]),
    "nulls": ("a.jsonl", b'{"text": null}\n{}\n{"text": "One"}\n', {}, ["", "", "One"]),
    "nulls in Parquet": ("a.parquet", parquet(text=["One", None]), {}, ["One", ""]),
    "categories in Parquet": (
        "a.parquet",
        parquet(text=pyarrow.array(["a", "b", "a"]).dictionary_encode()),
        {},
        ["a", "b", "a"],
    ),
    "long strings in Parquet": ("a.parquet", parquet(text=pyarrow.array(["a"], pyarrow.large_string())), {}, ["a"]),
    "Parquet in gzip": ("a.parquet.gz", gzip.compress(parquet(text=["One"])), {}, ["One"]),
    "the first before a wrong row": ("a.jsonl", ROWS + b"not json", {"first": 2}, ["One", "Two"]),
    "a field longer than csv allows": ("a.csv", b"text,n\n" + b"word " * 60_000 + b",1\n", {}, ["word " * 60_000]),
    "more blank lines": ("a.txt", b"a\n\n\n\nb\n \n\tc\n\n", {}, ["a", "", "b", "\tc", ""]),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_a_file_gives_its_documents_wherever_it_is_cut(tmp_path, monkeypatch, case, chunk):
    name, content, recipe, expected = GOOD[case]
    monkeypatch.setattr("quantune.sources.text_files.CHUNK", chunk)
    monkeypatch.setattr("quantune.sources.tables.CHUNK", chunk)
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name, **recipe) == expected


def test_the_first_documents_are_read_without_the_rest(tmp_path):
    """Documented: with `first`, the rest of a file is neither read nor verified."""
    content = gzip.compress("".join(f'{{"text": "{number}"}}\n' for number in range(200_000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(content[:-8])
    assert texts(tmp_path / "a.jsonl.gz", first=3) == ["0", "1", "2"]
    with pytest.raises(QuantuneError, match="is damaged"):
        texts(tmp_path / "a.jsonl.gz")


def test_a_document_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("quantune.sources.text_files.LARGEST", 1000)
    monkeypatch.setattr("quantune.sources.text_files.CHUNK", 400)
    monkeypatch.setattr("quantune.sources.tables.LARGEST", 1000)
    monkeypatch.setattr("quantune.sources.tables.CHUNK", 400)
    for name, content in (
        ("a.txt", "x" * 9000),
        ("a.jsonl", '{"text": "' + "x" * 9000),
        ("a.csv", "text\n" + "x" * 9000),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(QuantuneError, match=rf"{name}', .*more than 1,000 characters; divide it"):
            texts(tmp_path / name)


def make(path: Path, kind: str) -> None:
    """Make something that is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path must be short
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere.txt")
    elif kind == "loop":
        path.symlink_to(path.name)


KINDS = {
    "pipe": r"is a pipe \(FIFO\); a file is expected",
    "socket": "is a socket; a file is expected",
    "device": "is a device; a file is expected",
    "folder": "is a folder; a file is expected",
    "dangling": "is a link to 'nowhere.txt', which does not exist",
    "loop": r"cannot be read \(Too many levels",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_named_before_any_job(tmp_path, kind):
    (tmp_path / "a.txt").write_text("One.")
    make(tmp_path / "b.txt", kind)
    with pytest.raises(ConfigError, match=rf"^datasets.log.path: '\S+b.txt' {KINDS[kind]}"):
        selection.split_files(tmp_path, {}, "datasets.log")
    with pytest.raises(QuantuneError, match=KINDS[kind]):
        texts(tmp_path / "b.txt")
    if kind != "folder":
        with pytest.raises(ConfigError, match=rf"^datasets.log.splits.train: '\S+b.txt' {KINDS[kind]}"):
            selection.split_files(tmp_path, {"train": "*.txt"}, "datasets.log")
        with pytest.raises(ConfigError, match=KINDS[kind]):
            selection.resolve(str(tmp_path / "b.txt"), "datasets.log.path")


@pytest.mark.parametrize("pattern", ["/etc/*.conf", "", "**x/a"])
def test_a_pattern_that_is_none_is_named(tmp_path, pattern):
    with pytest.raises(ConfigError, match=r"^datasets.log.splits.train: .*'(;|$)"):
        selection.split_files(tmp_path, {"train": pattern}, "datasets.log")


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "caf\udce9.txt"])
def test_a_name_that_no_file_has(tmp_path, path):
    with pytest.raises(ConfigError, match=r"^key: '.*' (has a name|has a NUL|cannot be read|does not exist)"):
        selection.resolve(str(tmp_path / path), "key")


def talks(folder: Path, rows: list[dict] | str, name: str = "all.jsonl", **more) -> dict:
    """Write a manifest beside a tone of 0.5 s; return the entry of the dataset."""
    sound(folder / "data/a.wav")
    content = rows if isinstance(rows, str) else "".join(json.dumps(item) + "\n" for item in rows)
    (folder / "data" / name).write_text(content, encoding="utf-8")
    return {"layout": "manifest", "path": folder / "data", "language": "en", **more}


OUT = r"leads out of the folder '\S+'; do not trust .*; for a table of your own, set 'absolute_paths: true'"
CELLS = {
    "a number as the text": ({"path": "a.wav", "text": 5}, rf"all.jsonl', line 1, column 'text': {SAID} int \(5\)"),
    "a list as the text": ({"path": "a.wav", "text": ["x"]}, rf"line 1, column 'text': {SAID} list"),
    "a number as the path": ({"path": 7, "text": "x"}, rf"line 1, column 'path': {SAID} int \(7\)"),
    "an object as the path": ({"path": {}, "text": "x"}, rf"line 1, column 'path': {SAID} dict"),
    "half a pair": (
        {"path": "a.wav", "text": "\ud83d"},
        r"line 1, column 'text': '\\ud83d' is half of a surrogate pair",
    ),
    "half a pair in the path": ({"path": "\ud83d.wav", "text": "x"}, r"line 1, column 'path': '\\ud83d' is half"),
    "no path": ({"file": "a.wav", "text": "x"}, r"no column 'path'; columns: file, text"),
    "an absolute path": ({"path": "/etc/hostname", "text": "x"}, rf"line 1, column 'path': '/etc/hostname' {OUT}"),
    "a path that climbs": ({"path": "../secret.wav", "text": "x"}, rf"'../secret.wav' {OUT}"),
    "a path that ends above": ({"path": "..", "text": "x"}, rf"'..' {OUT}"),
    "a link to a file": ({"path": "link.wav", "text": "x"}, rf"'link.wav', which is '\S+/secret.wav', {OUT}"),
    "a link to a folder": (
        {"path": "up/secret.wav", "text": "x"},
        rf"'up/secret.wav', which is '\S+/secret.wav', {OUT}",
    ),
    "a begin that is text": (
        {"path": "a.wav", "text": "x", "offset": "soon"},
        r"line 1, column 'offset': seconds, 0 or more, .*'soon'",
    ),
    "a begin before the file": (
        {"path": "a.wav", "text": "x", "offset": -1},
        r"column 'offset': seconds, 0 or more, .*found -1",
    ),
    "a length without end": (
        {"path": "a.wav", "text": "x", "offset": 0, "duration": float("inf")},
        r"column 'duration': .*found inf",
    ),
    "a length that is a list": (
        {"path": "a.wav", "text": "x", "offset": 0, "duration": [1]},
        r"column 'duration': .*found \[1\]",
    ),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_bad_cell_of_a_manifest_is_named_before_any_job(tmp_path, case):
    cells, message = CELLS[case]
    entry = talks(tmp_path, [cells])
    sound(tmp_path / "secret.wav")
    (tmp_path / "data/link.wav").symlink_to("../secret.wav")
    (tmp_path / "data/up").symlink_to("..")
    with pytest.raises(QuantuneError, match=message) as caught:
        plan(tmp_path / "work", **entry).dataset("talks")
    assert "\n" not in str(caught.value)
    with pytest.raises(QuantuneError):
        gather(tmp_path / "work", **entry)


@pytest.mark.parametrize("name", ["/etc/hostname", "../../../../secret.wav"])
def test_a_release_and_its_archive_are_held_in_their_folder(tmp_path, name):
    folder = release(tmp_path / "cv", {"train": [row("a.wav", "One.")]})
    table = folder / "en/train.tsv"
    table.write_text(table.read_text() + "\t".join(row(name, "Two.").values()) + "\n")
    sound(tmp_path / "secret.wav")
    with pytest.raises(QuantuneError, match=rf"train.tsv', line 3, column 'path': '{name}'.* leads out of"):
        plan(tmp_path / "work", layout="common-voice", path=folder, splits={"train": "train"}).dataset("talks")
    with tarfile.open(tmp_path / "cv.tar.gz", "w:gz") as file:
        file.add(folder, "cv")
    with pytest.raises(QuantuneError, match=r"train.tsv', line 3, .* leads out of the folder"):
        gather(tmp_path / "three", layout="common-voice", path=tmp_path / "cv.tar.gz", splits={"train": "train"})


def test_the_names_of_ljspeech_are_held_in_their_folder(tmp_path):
    sound(tmp_path / "lj/wavs/a.wav")
    sound(tmp_path / "secret.wav")
    (tmp_path / "lj/metadata.csv").write_text("a|One\u2028more|One\u2028more\n../../secret|Two|Two\n")
    entry = {"layout": "ljspeech", "path": tmp_path / "lj", "language": "en"}
    with pytest.raises(QuantuneError, match=r"metadata.csv', line 2: '../../secret.wav' leads out of"):
        plan(tmp_path / "work", **entry).dataset("talks")


def test_a_manifest_of_ones_own_may_name_absolute_paths(tmp_path):
    rows = [{"path": str(sound(tmp_path / "far/b.wav", 0.7)), "text": "b"}, {"path": "a.wav", "text": "a"}]
    entry = talks(tmp_path, rows, absolute_paths=True)
    first = plan(tmp_path / "work", **entry).dataset("talks").digest
    _, facts = gather(tmp_path / "work", **entry)
    assert facts["splits"]["train"]["clips"] == 2 and facts["splits"]["train"]["longest_seconds"] == 0.7
    sound(tmp_path / "far/b.wav", 0.6)
    assert plan(tmp_path / "work", **entry).dataset("talks").digest != first
    urls = {"all.jsonl": {"url": "https://example.org/all.jsonl", "sha256": "0" * 64}}
    with pytest.raises(ConfigError, match="'absolute_paths' belongs to 'path'"):
        plan(tmp_path / "work", layout="manifest", urls=urls, language="en", absolute_paths=True)


def test_paths_inside_the_folder_may_climb_and_be_absolute(tmp_path):
    (tmp_path / "data/lists").mkdir(parents=True)
    rows = [{"path": "../a.wav", "text": "a"}, {"path": str(tmp_path / "data/a.wav"), "text": "b"}]
    entry = talks(tmp_path, rows, "lists/all.jsonl", splits={"train": "lists/all.jsonl"})
    _, facts = gather(tmp_path / "work", **entry)
    assert facts["splits"]["train"]["clips"] == 2


NO_FILE = {
    "null": (None, "all.jsonl, line 2: the table names no file"),
    "empty": ("", "all.jsonl, line 2: the table names no file"),
    "NUL": ("a\0.wav", "the table names no file"),
    "missing": ("b.wav", "b.wav: the file is missing"),
    "pipe": ("b.wav", r"b.wav: the file is a pipe"),
    "socket": ("b.wav", "b.wav: the file is a socket"),
    "folder": ("b.wav", "b.wav: the file is a folder"),
    "dangling": ("b.wav", "b.wav: the file is a link to 'nowhere.txt', which does not exist"),
    "a long name": ("b" * 300, r"the file cannot be read \(File name too long\)"),
    "text": ("b.wav", "b.wav: "),
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_a_path_without_a_recording_is_a_broken_clip(tmp_path, kind):
    name, message = NO_FILE[kind]
    entry = talks(tmp_path, [{"path": "a.wav", "text": "a"}, {"path": name, "text": "b"}], max_broken=0.5)
    make(tmp_path / "data/b.wav", kind)
    if kind == "text":
        (tmp_path / "data/b.wav").write_text("no audio")
    _, facts = gather(tmp_path / "work", **entry)
    (broken,) = facts["broken_files"]
    assert facts["splits"]["train"]["clips"] == 1 and re.search(message, broken)


PARQUET = {
    "a path alone": ([{"bytes": None, "path": "/etc/hostname"}], "0 bytes"),
    "text": (["/etc/hostname"], "the column 'audio' holds str, not an audio file's bytes"),
    "a number": ([5], "the column 'audio' holds int"),
    "null": (pyarrow.array([None], pyarrow.binary()), "0 bytes"),
    "bytes of something else": ([b"no audio"], "train.parquet:0:0: "),
}


@pytest.mark.parametrize("case", PARQUET)
def test_a_cell_of_parquet_without_a_recording_is_a_broken_clip(tmp_path, case):
    cells, message = PARQUET[case]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.parquet").write_bytes(parquet(audio=cells, text=["x"]))
    with pytest.raises(QuantuneError, match=rf"split 'train' has no clips left \(read 1; 1 broken\); .*{message}"):
        gather(tmp_path / "work", layout="parquet", path=tmp_path / "data", language="en", max_broken=1)


TABLES = {
    "a list of texts": ("all.jsonl", '["a.wav"]', "line 1: an object such as"),
    "cut off": ("all.jsonl", '{"path": "a.wav", "te', "line 1: Unterminated string"),
    "a field more": ("all.csv", "path,text\na.wav,Yes, sir\n", r"line 2: 3 fields, but the header has 2"),
    "a tab fewer": ("all.tsv", "path\ttext\na.wav\n", r"line 2: 1 fields, but the header has 2"),
    "NUL": ("all.tsv", "path\ttext\na.wav\tx\0\n", "line 2: a NUL character is no text"),
    "empty": ("all.tsv", "", "it has no header"),
    "Latin": ("all.csv", ("path,text\na.wav," + WORDS * 9).encode("cp1252"), "line 2, byte 0xe4; it looks like CP1252"),
    "no Parquet": ("all.parquet", "no parquet", "cannot be read as parquet"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_bad_table_of_recordings_is_named(tmp_path, case):
    """Before any job; only Parquet is first read by the job."""
    name, content, message = TABLES[case]
    sound(tmp_path / "data/a.wav")
    (tmp_path / "data" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    entry = {"layout": "parquet" if "parquet" in name else "manifest", "path": tmp_path / "data", "language": "en"}
    with pytest.raises(QuantuneError, match=rf"'\S+{name}'.*{message}"):
        if entry["layout"] == "manifest":
            plan(tmp_path / "work", **entry).dataset("talks")
        else:
            gather(tmp_path / "work", **entry)


@pytest.mark.parametrize("name", ["all.tsv", "all.csv", "all.jsonl"])
def test_separators_and_marks_in_a_manifest_belong_to_the_text(tmp_path, name):
    said = "a\u2028b\x85c\x1cd\x0be"
    content = {
        "all.tsv": f"\ufeffpath\ttext\na.wav\t{said}\n",
        "all.csv": f"\ufeffpath,text\na.wav,{said}\n",
        "all.jsonl": "\ufeff" + json.dumps({"path": "a.wav", "text": said}, ensure_ascii=False),
    }
    folder, _ = gather(tmp_path / "work", **talks(tmp_path, content[name], name))
    assert [item["text"] for item in written(folder)] == [said]


def speech(
    folder: Path, name: str, seconds: float, channels=lambda wave: wave[:, None], rate: int = 16000
) -> numpy.ndarray:
    """Write noise that no two places share; return its samples."""
    wave = 0.2 * numpy.random.default_rng(0).standard_normal(round(seconds * rate)).clip(-3, 3).astype("float32")
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, channels(wave), rate, subtype="PCM_16")
    return soundfile.read(folder / name, dtype="float32", always_2d=True)[0]


def written(folder: Path) -> list[dict]:
    return pyarrow.parquet.read_table(folder / "train.parquet").to_pylist()


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_segments_of_a_recording_are_read_each_by_itself(tmp_path, ending):
    wave = speech(tmp_path / "data", f"talk.{ending}", 9)
    spans = [(0.0, 3.0), (3.0, 2.0), (5.0, 4.0)]
    rows = [
        {"path": f"talk.{ending}", "offset": begin, "duration": length, "text": f"{begin}"} for begin, length in spans
    ]
    folder, facts = gather(
        tmp_path / "work", **talks(tmp_path, [*rows, {"path": f"talk.{ending}", "offset": 7.5, "text": "end"}])
    )
    assert facts["splits"]["train"]["clips"] == 4
    for item, (begin, length) in zip(written(folder), [*spans, (7.5, 1.5)], strict=True):
        samples, rate, _ = audio.decode(item["audio"])
        assert item["seconds"] == length and numpy.array_equal(
            samples, wave[round(begin * rate) :][: round(length * rate), 0]
        )
    assert len({item["id"] for item in written(folder)}) == 4


def test_segments_beyond_the_end_are_broken_and_a_duration_alone_cuts(tmp_path):
    speech(tmp_path / "data", "talk.wav", 3)
    rows = [
        {"path": "talk.wav", "offset": 2.0, "duration": 4.0, "text": "beyond"},
        {"path": "talk.wav", "offset": 8.0, "duration": 1.0, "text": "after"},
        {"path": "talk.wav", "duration": 1.0, "text": "the first second"},
        {"path": "talk.wav", "duration": 2.98, "text": "whole, rounded"},
        {"path": "talk.wav", "offset": None, "duration": None, "text": "whole"},
        {"path": "talk.wav", "duration": "0:03", "text": "whole"},
    ]
    folder, facts = gather(tmp_path / "work", **talks(tmp_path, rows, max_broken=0.5))
    assert facts["broken_files"] == [
        "talk.wav:2+4: the recording ends 3.000 s before the segment's end",
        "talk.wav:8+1: begins at 8 s, but the recording has 3.000 s",
    ]
    assert [item["seconds"] for item in written(folder)] == [1.0, 3.0, 3.0, 3.0]
    whole = (tmp_path / "data/talk.wav").read_bytes()
    assert [item["audio"] == whole for item in written(folder)] == [False, True, True, True]


MIXES = {
    "opposite phase": (lambda wave: numpy.stack([wave, -wave], 1), True),
    "nearly opposite": (lambda wave: numpy.stack([wave, -0.8 * wave], 1), True),
    "same phase": (lambda wave: numpy.stack([wave, wave], 1), False),
    "one silent": (lambda wave: numpy.stack([wave, 0 * wave], 1), False),
    "unrelated": (lambda wave: numpy.stack([wave, wave[::-1]], 1), False),
    "one of eight": (lambda wave: numpy.stack([wave, *[0 * wave] * 7], 1), False),
    "silence": (lambda wave: numpy.stack([0 * wave, 0 * wave], 1), False),
}


@pytest.mark.parametrize("case", MIXES)
def test_channels_in_opposite_phase_do_not_become_silence(tmp_path, capsys, case):
    channels, cancelled = MIXES[case]
    wave = speech(tmp_path / "data", "b.wav", 1, channels)
    folder, facts = gather(tmp_path / "work", **talks(tmp_path, [{"path": "b.wav", "text": "b"}]))
    samples, _, _ = audio.decode(written(folder)[0]["audio"])
    loudest = wave[:, numpy.square(wave, dtype="float64").sum(axis=0).argmax()]
    assert numpy.array_equal(samples, loudest if cancelled else wave.mean(axis=1))
    assert ("the channels cancel each other" in capsys.readouterr().out) == cancelled
    assert facts["splits"]["train"].get("opposite_phase", 0) == int(cancelled)


@pytest.mark.parametrize("place", ["header", "middle", "end", "checksum"])
def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path, place):
    folder = release(tmp_path / "cv", {"train": [row(f"c{number}.wav", "One.") for number in range(3)]})
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as file:
        file.add(folder, "cv")
    packed = gzip.compress(plain.getvalue())
    at = {"header": 11, "middle": len(packed) // 2, "end": len(packed) - 12, "checksum": len(packed) - 7}[place]
    (tmp_path / "cv.tar.gz").write_bytes(flipped(packed, at))
    with pytest.raises(
        QuantuneError, match=r"cv.tar.gz' cannot be unpacked \(.*\); it is damaged, cut off or no archive"
    ):
        gather(tmp_path / "work", layout="common-voice", path=tmp_path / "cv.tar.gz", splits={"train": "train"})
    assert list((tmp_path / "work/made").iterdir()) == []


def test_a_download_ends_at_the_listed_size(hub, tmp_path):
    path = tmp_path / "hub/data/big.txt"
    path.write_bytes(bytes(50_000_000))
    remote = download.Remote("big.txt", f"{hub.url}/files{path}", "git:" + "0" * 40, 41, label="'big.txt' of the model")
    with pytest.raises(
        QuantuneError, match=r"^'big.txt' of the model is not the expected file: .* 41 bytes, and .* more"
    ):
        download.fetch(remote, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_answers_of_a_hub_are_bounded(hub, monkeypatch):
    (hub.repositories["models/a/opt"] / "config.json").write_text('{"model_type": "opt"}' + " " * 2**24)
    with pytest.raises(QuantuneError, match=r"'a/opt' at revision 'main': config.json has 16,777,237 bytes; at most"):
        lock._model("a/opt", "main")
    monkeypatch.setattr(sources_hub, "LARGEST", 100)
    with pytest.raises(QuantuneError, match=r"does not answer like a hub \(.*more than 100 bytes"):
        sources_hub.listing("model", "a/opt", "main")


def naive(train: list[str], text: str) -> bool:
    """Return whether half of a text's runs of three words are in one training document, by definition."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split() or [text.strip()]
        return {tuple(words[index : index + 3]) for index in range(max(1, len(words) - 2))}

    own = runs(text)
    return any(len(own & runs(other)) >= 0.5 * len(own) for other in train)


def test_near_duplicates_are_those_of_the_definition(monkeypatch):
    monkeypatch.setattr(leaks, "PIECE", 40)
    monkeypatch.setattr(leaks, "BATCH", 50)
    draws = numpy.random.default_rng(0)
    train = [" ".join(draws.choice([*"abc"], draws.integers(0, 12))) for _ in range(60)]
    held = [" ".join(draws.choice([*"abcd"], draws.integers(0, 12))) for _ in range(300)]
    held += ["Straße_X", "", "…", "A, b; C!", "ǰ a b"]
    kept = leaks.without_leaks({"train": [*train, "…"], "test": held[:100], "more": held[100:]}, "near")
    exact = leaks.without_leaks({"train": [*train, "…"], "test": held}, "exact")["test"]
    expected = [not naive([*train, "…"], text) for text in held]
    found = numpy.zeros(len(held), bool)
    found[kept["test"]] = found[100 + kept["more"]] = True
    assert found.tolist() == expected and 50 < sum(expected) < 250
    assert set(numpy.flatnonzero(found)) <= set(exact)


def test_shares_of_two_sizes_are_those_of_the_order():
    for count in (0, 1, 9, 1000):
        first = sorted(draw.order(count, 3)[: round(0.7 * count)])
        assert draw.shares(count, {"train": 0.7, "test": 0.3}, 3)["train"].tolist() == first


def test_texts_on_disk_are_those_that_were_appended(tmp_path):
    stored = Texts(tmp_path / "a")
    given = ["One", "", " \n", "zwölf \U0001f600", "a\0b"]
    for text in given:
        stored.append((text,))
    stored.append(["x", "\n\n", "y"])
    assert list(stored) == ["One", "zwölf \U0001f600", "a\0b", "x\n\ny"] and stored.blank == 2
    assert list(stored.chosen([1, 3], tmp_path / "b")) == ["zwölf \U0001f600", "x\n\ny"]
    stored.write_parquet(tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["text"].to_pylist() == list(stored)


SMALL = textwrap.dedent(
    """
    import resource, runpy, sys
    from pathlib import Path
    from unittest.mock import patch
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]) << 20,) * 2)
    bodies = []
    with patch("quantune.artefacts.job.run", lambda snakemake, body, **_: bodies.append(body)):
        runpy.run_path(sys.argv[1], {"snakemake": None})
    work, options = Path(sys.argv[3]), eval(sys.argv[4])
    (work / "made").mkdir()
    (work / "scratch").mkdir()
    recipe = {"format": None, "column": "text", "document": "paragraph", "first": None, "join": None, "seed": 0}
    recipe |= {"remove_leaks": "none", "splits": {}} | options.pop("recipe", {})
    order = {"recipe": recipe, "sources": {}, "options": {"files": options.pop("files", {})}}
    inputs = {role: list(map(Path, paths)) for role, paths in options.items()}
    if len(sys.argv) > 5:
        from quantune.models import loading
        loading.tokenizer(inputs["model"][0])
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(bodies[0](order, inputs, work / "made", work / "scratch"))
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
)


def limited(script: str, megabytes: int, work: Path, **options) -> str:
    """Run a stage in a process that may take so many megabytes of addresses; return what it prints."""
    work.mkdir()
    command = [sys.executable, "-c", SMALL, str(ROOT / "scripts" / script), str(megabytes), str(work), repr(options)]
    command += ["load"] if "model" in options else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("case", ["one line", "gzip bomb", "many documents"])
def test_reading_stays_within_a_few_documents(tmp_path, case):
    recipe = {}
    if case == "one line":
        path, expected = tmp_path / "a.jsonl", "'train': 1}"
        path.write_text(json.dumps({"text": "harbour " * 2_500_000}))
    elif case == "gzip bomb":
        path, expected, recipe = tmp_path / "a.jsonl.gz", "'train': 10}", {"first": 10}
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.writelines(b'{"text": "row"}\n' * 65_536 for _ in range(64))  # a gigabyte
    else:
        path, expected, recipe = tmp_path / "a.txt", "'train': 270000, 'test': 30000}", {"document": "line"}
        path.write_text("".join(f"document {number}\n" for number in range(300_000)))
        recipe["splits"] = {"train": 0.9, "test": 0.1}
    files = {"" if case == "many documents" else "train": [str(path)]}
    assert expected in limited("dataset.py", 900, tmp_path / "work", files=files, recipe=recipe)


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    """A tokenizer of bytes, one that divides at spaces like T5's, and one like Llama's, which divides nothing."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from quantune.models import loading

    log = (ROOT / "assets/text/saltmere/train.txt").read_text().split("\n")
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    options = {"show_progress": False, "special_tokens": ["<unk>"]}
    unigram.train_from_iterator(log, trainers.UnigramTrainer(vocab_size=800, unk_token="<unk>", **options))
    merges = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    merges.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    merges.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    options["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
    merges.train_from_iterator(log, trainers.BpeTrainer(vocab_size=1500, **options))
    merges.pre_tokenizer = None
    found = {
        "opt": loading.tokenizer(ROOT / "assets/models/opt-2m"),
        "unigram": PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>"),
        "llama": PreTrainedTokenizerFast(tokenizer_object=merges, unk_token="<unk>"),
    }
    if real := os.environ.get("REAL"):
        found["smollm2"] = loading.tokenizer(Path(real) / "smollm2-135m-instruct")
    return found


LONG = {
    "lines": (ROOT / "assets/text/saltmere/train.txt").read_text()[:40_000],
    "one line": (ROOT / "assets/text/saltmere/train.txt").read_text()[:40_000].replace("\n", " "),
    "numbers": " ".join(f"{number * 7919 % 100_000 / 7:.9f}" for number in range(1500)),
    "spaces": ("word" + " " * 50 + "next\t\t\tend\n\n\n") * 200,
    "Chinese": CHINESE * 150,
    "emoji": "\U0001f642\U0001f643\U0001f469\u200d\U0001f467 a " * 400,
    "four bytes": "\U0001d518\U0001d52b\U0001d526 \U0001d55e " * 800,
    "marks": "Café naïve, “Größe” e\u0301, कि हिन्दी ไทย. " * 300,
    "added tokens": "</s> looks special <pad> and </s>" * 400,
}


@pytest.mark.parametrize("name", ["opt", "unigram", "llama", "smollm2"])
@pytest.mark.parametrize("case", LONG)
def test_a_document_in_pieces_has_the_tokens_of_the_whole(tokenizers, monkeypatch, tmp_path, name, case):
    if name not in tokenizers:
        pytest.skip("REAL names no folder with it")
    from quantune.data import tokens

    text = LONG[case]
    whole = {key: values[0] for key, values in tokens.encode([text], tokenizers[name]).items()}
    monkeypatch.setattr(tokens, "PIECE", 9000)
    monkeypatch.setattr(tokens, "OVERLAP", 3600)
    given = [b"Short.", text.encode(), b"", "Größe".encode()]
    count, total = tokens.write(map(memoryview, given), tokenizers[name], tmp_path / "a.arrow")
    with pyarrow.memory_map(str(tmp_path / "a.arrow")) as source:
        rows = pyarrow.ipc.open_file(source).read_all().to_pylist()
    assert {key: rows[1][key] for key in whole} == whole
    assert (count, total) == (4, sum(len(item["ids"]) for item in rows)) and rows[2]["ids"] == []
    assert [sum(item["bytes"]) for item in rows] == list(map(len, given))
    assert sum(rows[1]["words"]) == len(text.split())


@pytest.mark.parametrize("name", ["opt", "unigram", "llama"])
@pytest.mark.parametrize("text", ["x" * 30_000, "a b" + " " * 30_000 + "c d", "\u200b" * 9000, " " * 20_000 + "end"])
def test_a_run_without_a_place_to_cut_keeps_its_bytes_and_words(tokenizers, monkeypatch, capsys, name, text):
    from quantune.data import tokens

    monkeypatch.setattr(tokens, "PIECE", 9000)
    monkeypatch.setattr(tokens, "OVERLAP", 3600)
    parts = list(tokens._in_pieces(memoryview(text.encode()), tokenizers[name]))
    assert sum(part["bytes"].sum() for part in parts) == len(text.encode())
    assert sum(part["words"].sum() for part in parts) == len(text.split())


def test_a_long_document_is_tokenized_in_little_memory(tmp_path):
    """Tokenized at once, its two megabytes take half a gigabyte more."""
    source = tmp_path / "source"
    source.mkdir()
    stored = Texts(tmp_path / "texts")
    stored.append(["the harbour bell rang\n" * 100_000])
    stored.write_parquet(source / "train.parquet")
    options = {"dataset": [source], "model": [ROOT / "assets/models/opt-2m"]}
    printed = limited(
        "tokenize.py", 4000, tmp_path / "work", **{key: list(map(str, paths)) for key, paths in options.items()}
    )
    before, after = map(int, re.findall(r"peak (\d+)", printed))
    assert "train: 1 documents" in printed and after - before < 150_000, "kilobytes"


def test_the_memory_that_a_job_asks_for_follows_from_the_files(raw, tmp_path):
    planned = Plan(load.load(raw))
    source, prepared = planned.dataset("news"), planned.prepared("news", "opt")
    wanted = []
    for size in (100, 10**8, 10**9, 10**11):
        os.truncate(tmp_path / "data/news.txt", size)  # a file with holes
        wanted.append([resources.host_bytes(planned, artefact) for artefact in (source, prepared)])
    first, more, most, same = wanted
    assert first[0] < 500_000_000 and [round((b - a) / 10**8) for a, b in zip(first, more, strict=True)] == [4, 2]
    assert more < most == same, "no more than for the longest document"
    os.rename(tmp_path / "data/news.txt", tmp_path / "data/news.txt.gz")
    raw["datasets"]["news"]["path"] += ".gz"
    os.truncate(tmp_path / "data/news.txt.gz", 10**7)
    packed = Plan(load.load(raw))
    assert resources.host_bytes(packed, packed.dataset("news")) > first[0] + 4 * 7 * 10**7, "more when it is unpacked"


def test_a_long_recording_is_not_decoded_to_its_end(tmp_path, monkeypatch):
    entry = talks(tmp_path, [{"path": "a.wav", "text": "a"}, {"path": "long.flac", "text": "b"}])
    sound(tmp_path / "data/long.flac", 90)
    seen, read = [], audio.read

    def watched(*arguments):
        seen.append(len(read(*arguments)[0]))
        return read(*arguments)

    monkeypatch.setattr(audio, "read", watched)
    _, facts = gather(tmp_path / "work", **entry)
    assert facts["splits"]["train"]["dropped"]["too_long"] == 1 and max(seen) == 31 * 16000
