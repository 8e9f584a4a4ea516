"""Documents from every format, splits by file and by share, hashes, and what is said when a source is wrong."""

import gzip
import json
import os
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from quantune.artefacts.hashes import Hashes
from quantune.artefacts.record import sha256
from quantune.core.errors import ConfigError, QuantuneError
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.sources import documents as sources_documents
from quantune.sources import draw, selection
from tests.voices import read

TEXT = "One\ntwo.\n\nThree.\n\n\nFour, \u201cquoted\u201d.\n"
ROWS = [{"quote": "One,\ntwo", "author": "A"}, {"quote": 'Say "three"', "author": "B"}, {"quote": "四", "author": None}]
TEXTS = ["One,\ntwo", 'Say "three"', "四"]


def documents(path, column="text", document="paragraph", format=None, first=None, join=None) -> list[str]:
    recipe = {"column": column, "document": document, "format": format, "first": first, "join": join}
    return ["".join(parts) for parts in sources_documents.read_documents(path, recipe)]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file and returns its path."""

    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", [TEXT]),
        ("paragraph", ["One\ntwo.", "Three.", "Four, “quoted”."]),
        ("line", ["One", "two.", "", "Three.", "", "", "Four, “quoted”.", ""]),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.text", "a.md"])
def test_plain_text_by_document(write, name, document, expected):
    assert documents(write(name, TEXT), document=document) == expected


def test_line_ends_of_other_systems(write):
    assert documents(write("a.txt", "One\r\ntwo.\r\n\r\nThree.\r\n")) == ["One\ntwo.", "Three."]


def test_a_line_of_spaces_is_blank(write):
    assert documents(write("a.txt", "One.\n  \nTwo.\n")) == ["One.", "Two."]


def test_the_format_can_be_given_where_the_ending_says_nothing(write):
    assert documents(write("corpus", TEXT), format="text") == ["One\ntwo.", "Three.", "Four, “quoted”."]
    assert documents(write("rows.data", '{"text": "One"}\n'), format="json") == ["One"]
    with pytest.raises(QuantuneError, match=r"unknown format '.data'; set .*'format' to one of.* csv, json, parquet,"):
        documents(write("more.data", TEXT))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("a.csv", 'quote,author\n"One,\ntwo",A\n"Say ""three""",B\n四,\n'),
    ],
)
def test_a_column_of_rows(write, name, content):
    assert documents(write(name, content), column="quote") == TEXTS


def zstandard(content: bytes) -> bytes:
    """Return a content compressed as two frames, which a file may have."""
    frames = []
    for part in (content[:7], content[7:]):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as file:
            file.write(part)
        frames.append(sink.getvalue().to_pybytes())
    return b"".join(frames)


def test_rows_and_text_compressed_with_zstandard(write):
    content = "\n".join(map(json.dumps, ROWS)).encode()
    assert documents(write("a.jsonl.zst", zstandard(content)), column="quote") == TEXTS
    assert documents(write("a.txt.zst", zstandard(TEXT.encode()))) == documents(write("a.txt", TEXT))
    for name, packed, problem in (
        ("cut.txt.zst", zstandard(TEXT.encode())[:-6], r"cut.txt.zst' is damaged \(Truncated"),
        ("bad.txt.zst", b"not compressed", r"bad.txt.zst' is not compressed with zstd .*rename it if it is no zstd"),
    ):
        with pytest.raises(QuantuneError, match=problem):
            documents(write(name, packed))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_rows_compressed_with_gzip(write, name):
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    assert documents(write(name, gzip.compress(content.encode())), column="quote") == TEXTS


def test_text_compressed_with_gzip(write):
    assert documents(write("a.txt.gz", gzip.compress(TEXT.encode()))) == documents(write("a.txt", TEXT))
    path = write("bad.txt.gz", b"not compressed")
    with pytest.raises(QuantuneError, match=r"bad.txt.gz' is not compressed with gzip"):
        documents(path)


def test_only_the_first_documents(write):
    assert documents(write("a.txt", TEXT), first=2) == ["One\ntwo.", "Three."]
    assert documents(write("a.txt", TEXT), first=9) == documents(write("b.txt", TEXT))


def test_rows_joined_as_the_published_protocol_joins_them(tmp_path):
    rows = ["", " = Title = \n", "", " First paragraph . \n", ""]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "test-0.parquet")
    assert documents(tmp_path / "test-0.parquet", join="\n\n") == ["\n\n".join(rows)]
    assert documents(tmp_path / "test-0.parquet", first=2, join=" ") == ["  = Title = \n"]


def test_a_column_of_tsv(write):
    path = write("a.tsv", "author\tquote\nA\tOne, two\nB\tSay three\n\t四\n")
    assert documents(path, column="quote") == ["One, two", "Say three", "四"]


def test_a_column_of_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", column="quote") == TEXTS
    assert documents(tmp_path / "a.parquet", column="author") == ["A", "B", ""]


def test_a_missing_text_is_an_empty_document(write):
    content = '{"text": "One", "n": 1}\n{"text": null, "n": 2}\n{"n": 3}\n{"text": "", "n": 4}\n'
    assert documents(write("a.jsonl", content)) == ["One", "", "", ""]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"txt": "One", "n": 1}\n'), ("a.csv", "txt,n\nOne,1\n"), ("a.tsv", "txt\tn\nOne\t1\n")],
)
def test_a_missing_column_names_the_file_and_its_columns(write, name, content):
    path = write(name, content)
    with pytest.raises(QuantuneError) as caught:
        documents(path)
    assert str(caught.value) == (
        f"'{path}' has no column 'text'; columns: txt, n; did you mean 'txt'?; set the dataset's 'column'"
    )


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", '{"text": "One"}\n{"text": "Two"\n{"text": "Three"}\n', "json"),
        ("a.jsonl", '{"text": "One"}\nnot json\n', "json"),
        ("a.parquet", "no parquet", "parquet"),
    ],
)
def test_a_broken_file_is_named(write, name, content, kind):
    path = write(name, content)
    with pytest.raises(QuantuneError, match=f"^'{path}' cannot be read as {kind}: [^\n]{{20,}}$"):
        documents(path)


@pytest.mark.parametrize(("value", "kind"), [("1", "int"), ("1.5", "float"), ('["One"]', "list"), ("true", "bool")])
def test_a_column_that_is_not_text_is_refused(write, value, kind):
    path = write("a.jsonl", f'{{"text": {value}}}\n')
    with pytest.raises(QuantuneError, match=rf"^'{path}', line 1, column 'text': text expected, found {kind} \("):
        documents(path)


@pytest.mark.parametrize("content", ['{"text": 0}\n{"text": 2}\n', '{"text": false}\n', '{"text": []}\n'])
def test_a_column_that_is_not_text_but_begins_with_nothing_is_refused(write, content):
    with pytest.raises(QuantuneError, match="text expected"):
        documents(write("a.jsonl", content))


def test_words_that_pandas_takes_for_missing_are_text(write):
    assert documents(write("a.csv", "text,n\nNA,1\nnull,2\nNone,3\n")) == ["NA", "null", "None"]


@pytest.mark.parametrize("sentence", ['"Hello," he said.', '"An open quote'])
def test_quotes_in_tsv_are_text(write, sentence):
    assert documents(write("a.tsv", f"n\ttext\n1\t{sentence}\n2\tNext.\n")) == [sentence, "Next."]


@pytest.mark.parametrize(("name", "content"), [("a.txt", "café".encode("latin-1")), ("a.jsonl", b"")])
def test_an_unreadable_or_empty_file_is_named(write, name, content):
    path = write(name, content)
    with pytest.raises(QuantuneError, match=str(path)):
        documents(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("train-1.txt", "train-2.txt", "test.txt", "notes.pdf", "old/train-0.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    return tmp_path


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": "train-*.txt", "test": "test.txt"}, {"train": ["train-1.txt", "train-2.txt"], "test": ["test.txt"]}),
        ({"train": ["train-2.txt", "old/*.txt"]}, {"train": ["train-2.txt", "old/train-0.txt"]}),
        ({"train": 0.9, "test": 0.1}, {"": ["test.txt", "train-1.txt", "train-2.txt"]}),
        ({}, {"": ["test.txt", "train-1.txt", "train-2.txt"]}),
    ],
)
def test_files_of_splits(folder, splits, expected):
    found = selection.split_files(folder, splits, "datasets.any")
    assert {split: [str(path.relative_to(folder)) for path in paths] for split, paths in found.items()} == expected


def test_a_file_of_its_own_is_divided_or_whole(folder):
    for splits in ({}, {"train": 0.5, "test": 0.5}):
        assert selection.split_files(folder / "test.txt", splits, "any") == {"": [folder / "test.txt"]}


@pytest.mark.parametrize(
    ("where", "splits", "problem"),
    [
        ("", {"train": "tran-*.txt"}, ".splits.train: no file 'tran-*.txt' in '{}'; did you mean 'train-2.txt'?"),
        ("", {"train": "test.txt", "test": ["a", "b"]}, ".splits.test: no file 'a' in '{}'"),
        ("/test.txt", {"train": "a"}, ".path: '{}' is a file; splits by file name need the folder that holds them"),
        ("/empty", {}, ".path: '{}' holds no file of a known format (.txt, .text, .md, .jsonl, "),
    ],
)
def test_wrong_splits_name_their_key(folder, where, splits, problem):
    (folder / "empty").mkdir()
    path = type(folder)(f"{folder}{where}")
    with pytest.raises(ConfigError) as caught:
        selection.split_files(path, splits, "datasets.any")
    assert str(caught.value).startswith("datasets.any" + problem.format(path))


def planned(raw: dict, **entry) -> Plan:
    """Return the plan of a configuration whose dataset `news` is another."""
    raw["datasets"]["news"] = entry
    raw["evaluations"]["news"]["dataset"] = "harbour"
    return Plan(load.load(raw))


def found(folder: Path, split: str = "train") -> list[str]:
    return pyarrow.parquet.read_table(folder / f"{split}.parquet").column("text").to_pylist()


def test_documents_may_be_written_in_the_configuration(raw, tmp_path):
    texts = ["One sentence, \n\nin two lines.", " ", "“Another”"]
    plan = planned(raw, texts=texts)
    folder, facts = read(tmp_path / "one", plan.dataset("news").order(), "dataset.py")
    assert found(folder) == [texts[0], texts[2]] and facts["empty"] == 1
    assert plan.dataset_bytes("news") == sum(len(item.encode()) for item in texts)
    halves = planned(raw, texts=texts[:1] + texts[2:], splits={"train": 0.5, "test": 0.5})
    folder, _ = read(tmp_path / "two", halves.dataset("news").order(), "dataset.py")
    assert sorted(found(folder) + found(folder, "test")) == sorted([texts[0], texts[2]])
    assert plan.dataset("news").digest != planned(raw, texts=texts[1:]).dataset("news").digest


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"texts": []}, "datasets.news: give exactly one of path, hub, urls, texts; found none"),
        ({"texts": [""]}, "datasets.news.texts.0: must not be empty"),
        ({"texts": "One."}, "datasets.news.texts: input should be a valid list, found 'One.'"),
        ({"texts": ["x"], "path": "y"}, "datasets.news: give exactly one of path, hub, urls, texts; found path and te"),
        ({"texts": ["x"], "join": ""}, "datasets.news: 'join' belongs to files, and 'texts' are the documents; leave"),
        ({"texts": ["x"], "splits": {"train": "a"}}, "datasets.news: splits of 'texts' are shares, such as {train: 0"),
        ({"texts": ["x"], "sample": {"train": True}}, "datasets.news.sample.train: input should be a valid integer"),
        (
            {"texts": ["x"], "sample": {"test": 1}},
            "datasets.news.sample: 'test' is not one of its splits; allowed: t",
        ),
    ],
)
def test_wrong_texts_name_their_key(raw, keys, problem):
    with pytest.raises(ConfigError) as caught:
        planned(raw, **keys)
    assert problem in str(caught.value)


def test_a_sample_of_documents(raw, tmp_path):
    texts = [f"Document {number}." for number in range(50)]
    plan = planned(raw, texts=texts, sample={"train": 20}, seed=16)
    folder, _ = read(tmp_path / "some", plan.dataset("news").order(), "dataset.py")
    assert found(folder) == [texts[number] for number in sorted(draw.order(50, 16)[:20])]
    with pytest.raises(QuantuneError, match=r"sample\.train: 60 are more than the split has; allowed: up to 50"):
        order = planned(raw, texts=texts, sample={"train": 60}).dataset("news").order()
        read(tmp_path / "more", order, "dataset.py")


def test_a_dataset_without_a_sample_has_the_identity_that_it_had(raw):
    assert "sample" not in planned(raw, texts=["x"]).dataset("news").recipe


def test_shares_give_one_order_for_ever():
    """The order is that of SHA-256 over "seed:position": no library's generator can change it."""
    texts = list("abcdefghij")
    assert draw.divide(texts, {"train": 0.7, "test": 0.3}, 0) == {
        "train": list("cdeghij"),
        "test": list("abf"),
    }
    assert draw.divide(texts, {"train": 0.7, "test": 0.3}, 1) == {
        "train": list("cdefghi"),
        "test": list("abj"),
    }


@pytest.mark.parametrize("count", [0, 1, 7, 100, 101])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shares_are_disjoint_and_complete(count, seed):
    texts = [f"document {number}" for number in range(count)]
    parts = draw.divide(texts, {"train": 0.85, "validation": 0.05, "test": 0.1}, seed)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert [len(part) for part in parts.values()] == [
        round(0.85 * count),
        round(0.9 * count) - round(0.85 * count),
        count - round(0.9 * count),
    ]
    assert all(part == sorted(part, key=texts.index) for part in parts.values())


def test_shares_may_leave_documents_out():
    parts = draw.divide(list("abcdefghij"), {"train": 0.2, "test": 0.3}, 0)
    assert [len(part) for part in parts.values()] == [2, 3]
    assert not set(parts["train"]) & set(parts["test"])


def test_the_files_of_a_model_are_its_own_with_one_set_of_weights(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "pytorch_model.bin", "run.py"):
        (tmp_path / name).write_text(name)
    files = selection.model_files(tmp_path, "models.any")
    assert sorted(files) == ["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    (tmp_path / "copy").mkdir()
    for path in files.values():
        selection.copy(path, tmp_path / "copy")
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {name: name for name in files}


@pytest.fixture
def old_file(tmp_path):
    """A file that was last changed an hour ago, and so is safe to remember."""
    path = tmp_path / "weights"
    path.write_text("abc")
    os.utime(path, ns=(time.time_ns() - 3_600_000_000_000,) * 2)
    return path


ABC, ABD = (sha256(text) for text in ("abc", "abd"))


def test_hashes_are_remembered_until_the_file_changes(old_file, tmp_path, monkeypatch):
    memory, date = tmp_path / "work/.hashes.json", os.stat(old_file).st_mtime_ns
    assert Hashes(memory).file(old_file) == ABC
    with monkeypatch.context() as patched:
        patched.setattr("quantune.artefacts.hashes.file_sha256", None)
        assert Hashes(memory).file(old_file) == ABC, "not read again"
    old_file.write_text("abd")
    os.utime(old_file, ns=(date, date))
    assert Hashes(memory).file(old_file) == ABD, "same size, date and place"


def test_what_processes_remember_side_by_side_is_kept(old_file, tmp_path):
    first, second = (Hashes(tmp_path / ".hashes.json") for _ in range(2))
    first.file(old_file)
    (tmp_path / "made").write_text("abd")
    second.remember(tmp_path / "made", ABD)
    assert set(Hashes(tmp_path / ".hashes.json").known) == {str(old_file), str(tmp_path / "made")}


def test_hashes_notice_another_size_and_another_file(old_file, tmp_path):
    hashes, date = Hashes(tmp_path / ".hashes.json"), os.stat(old_file).st_mtime_ns
    hashes.file(old_file)
    old_file.write_text("abcd")
    os.utime(old_file, ns=(date, date))
    assert hashes.file(old_file) == sha256("abcd")
    (tmp_path / "new").write_text("abce")
    os.replace(tmp_path / "new", old_file)
    os.utime(old_file, ns=(date, date))
    assert hashes.file(old_file) == sha256("abce")


def test_a_file_that_changed_just_now_is_not_remembered(old_file, tmp_path):
    old_file.touch()
    hashes = Hashes(tmp_path / ".hashes.json")
    assert hashes.file(old_file) == ABC
    assert hashes.known == {} and not (tmp_path / ".hashes.json").exists()


@pytest.mark.parametrize("content", ["", '{"a": [1', "[]", "null"])
def test_a_corrupt_memory_is_forgotten(old_file, tmp_path, content):
    memory = tmp_path / ".hashes.json"
    memory.write_text(content)
    assert Hashes(memory).file(old_file) == ABC
    assert list(Hashes(memory).known) == [str(old_file)]
