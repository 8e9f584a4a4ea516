"""Tokens and the text behind them: exact byte and word counts, streams, training blocks, windows; repeated texts."""

import copy
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy
import pyarrow
import pytest

from quantune.core.errors import QuantuneError
from quantune.data import chat, text, tokens
from quantune.evaluations.perplexity import Perplexity
from quantune.sources import chat_templates, leaks
from tests.conftest import ROOT
from tests.workflow import wait_for

NASTY = [
    "",
    " ",
    "   ",
    "\n",
    "a",
    "plain words, and more of them.",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "many    spaces   inside",
    "tabs\t\tand\ttabs",
    "one\ntwo\n\nthree\r\nfour\n",
    "naïve café — “quotes” …",
    "e\u0301 is not é",
    "🙂",
    "emoji 🙂🙃 inside and 👩‍👩‍👧‍👦 a family",
    "你好 世界，再见",
    "кириллица и ελληνικά",
    "مرحبا بالعالم",
    "\u3000ideographic\u3000space",
    "\u00a0no-break\u00a0space",
    "zero\u200bwidth",
    "\x1cseparators\x1dare\x1fspaces",
    "\x00nul",
    "</s> looks special <pad>",
    "x" * 3000,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕞𝕒𝕥𝕙",
]


@pytest.fixture
def prepared(tmp_path):
    """Return a function that writes tokenized documents as the stage `tokenize` does."""

    def write(documents: dict[str, list], split: str = "test"):
        table = pyarrow.table(documents, schema=tokens.SCHEMA)
        with (
            pyarrow.OSFile(str(tmp_path / f"{split}.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, tokens.SCHEMA) as writer,
        ):
            writer.write_table(table, max_chunksize=1024)
        return tmp_path

    return write


def documents(*ids: list[int]) -> dict[str, list]:
    """Return documents of these token ids, each token of one byte and no word."""
    return {"ids": list(ids), "bytes": [[1] * len(item) for item in ids], "words": [[0] * len(item) for item in ids]}


@pytest.mark.parametrize("nasty", NASTY, ids=lambda nasty: ascii(nasty[:20]))
def test_bytes_and_words_of_the_tokens_sum_to_those_of_the_text(tokenizer, nasty):
    encoded = tokens.encode([nasty], tokenizer)
    assert sum(encoded["bytes"][0]) == len(nasty.encode())
    assert sum(encoded["words"][0]) == len(nasty.split())
    assert len(encoded["ids"][0]) == len(encoded["bytes"][0]) == len(encoded["words"][0])
    assert min([*encoded["bytes"][0], *encoded["words"][0], 0]) == 0


def test_documents_are_encoded_each_by_itself(tokenizer):
    together, alone = tokens.encode(NASTY, tokenizer), [tokens.encode([nasty], tokenizer) for nasty in NASTY]
    for name in ("ids", "bytes", "words"):
        assert together[name] == [item[name][0] for item in alone]
    assert together["ids"] == tokenizer(NASTY, add_special_tokens=False)["input_ids"]


def test_bytes_and_words_lie_where_the_tokens_are(tokenizer):
    (ids,), (size,), (words,) = tokens.encode(["The harbour, the sea"], tokenizer).values()
    pieces = [tokenizer.decode([token]) for token in ids]
    assert "".join(pieces) == "The harbour, the sea"
    assert size == [len(piece.encode()) for piece in pieces]
    begun, expected = "", []
    for piece in pieces:
        expected.append(len((begun + piece).split()) - len(begun.split()))
        begun += piece
    assert words == expected


class Gaps:
    """A tokenizer whose offsets leave out the spaces, go back once, and stop before the end."""

    is_fast = True

    def __call__(self, texts, **options):
        return {"input_ids": [[1, 2, 3]], "offset_mapping": [[(0, 5), (3, 3), (6, 8)]]}


def test_offsets_with_gaps_still_add_up():
    encoded = tokens.encode(["héllo to  you "], Gaps())
    assert encoded == {"ids": [[1, 2, 3]], "bytes": [[6, 0, 9]], "words": [[1, 0, 2]]}


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(QuantuneError, match="gives no character offsets; a fast tokenizer is needed"):
        tokens.encode(["a"], SimpleNamespace(is_fast=False))


def test_a_stream_joins_documents_as_training_does_and_owns_only_their_tokens(tokenizer, prepared):
    texts = ["First document.", "  Second — 🙂", "Third."]
    encoded = tokens.encode(texts, tokenizer)
    folder, parts = prepared(encoded), encoded["ids"]
    stream = text.stream(folder, "test", tokenizer)
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    assert stream.ids.tolist() == [*begin, *parts[0], *end, *parts[1], *end, *parts[2]]
    assert [stream.ids[first:last].tolist() for first, last in zip(stream.starts, stream.ends, strict=True)] == parts
    assert stream.ids[stream.own].tolist() == [token for part in parts for token in part]
    assert stream.ids[1:].tolist() == text.blocks(folder, "test", end[0], 1)[:-1, 0].tolist(), (
        "joined as training blocks"
    )
    assert stream.bytes[stream.own].sum() == stream.bytes[:].sum() == len("".join(texts).encode())
    assert stream.words[:].sum() == sum(len(item.split()) for item in texts)
    assert len(stream) == len(stream.ids) == len(stream.bytes) == len(stream.words) == len(stream.own)
    assert {stream.ids.dtype, stream.bytes.dtype, stream.words.dtype} == {numpy.dtype("int32")}


class Prefixed:
    """A tokenizer that puts some tokens before a text, and its end-of-text token 9 after it."""

    eos_token_id = 9

    def __init__(self, begin):
        self.begin = begin

    def __call__(self, texts, **options):
        ids, mask = [*self.begin, 3, 9], [1] * len(self.begin) + [0, 1]
        return {"input_ids": ids, "special_tokens_mask": mask}


@pytest.mark.parametrize(("begin", "between"), [([1, 2], [1, 2]), ([], [9])])
def test_documents_of_a_stream_can_be_apart(prepared, begin, between):
    stream = text.stream(prepared(documents([5, 6], [], [7])), "test", Prefixed(begin), apart=True)
    assert stream.ids.tolist() == [*between, 5, 6, *between, *between, 7]
    assert stream.ids[stream.own].tolist() == [5, 6, 7]


def test_an_appended_end_token_is_neither_before_a_stream_nor_after_a_prompt(tokenizer, prepared):
    changed = copy.deepcopy(tokenizer)
    special = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    state = json.loads(changed.backend_tokenizer.to_str())
    state["post_processor"]["single"] = [special, {"Sequence": {"id": "A", "type_id": 0}}, special]
    changed._tokenizer = type(changed.backend_tokenizer).from_str(json.dumps(state))
    assert changed("The sea")["input_ids"] == [*tokenizer("The sea")["input_ids"], changed.eos_token_id]
    assert text.prompt("The sea", changed) == text.prompt("The sea", tokenizer) == tokenizer("The sea")["input_ids"]
    folder = prepared(documents([5, 6], [7]))
    assert text.stream(folder, "test", changed).ids.tolist() == text.stream(folder, "test", tokenizer).ids.tolist()


def test_a_split_that_was_not_prepared_is_named_with_its_neighbours(prepared):
    prepared(documents([1]), "test")
    folder = prepared(documents([1]), "train")
    with pytest.raises(
        QuantuneError, match=r"has no split 'tset'; splits: (test, train|train, test); did you mean 'test'"
    ):
        text.column(folder, "tset", "ids")


def test_documents_are_loaded_as_they_were_written(prepared):
    folder = prepared({"ids": [[3, 4], []], "bytes": [[1, 2], []], "words": [[1, 0], []]})
    for name, values in {"ids": [3, 4], "bytes": [1, 2], "words": [1, 0]}.items():
        found, starts = text.column(folder, "test", name)
        assert found.tolist() == values and starts.tolist() == [0, 2, 2]


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_several_processes_write_the_same_bytes(tokenizer, tmp_path, kind):
    rows = [f"Entry {number}: wind from the north." * (1 + number % 7) for number in range(700)]
    rows[300] = "a long document of many words " * 10_000
    if kind == "chat":
        rows = [[{"role": "user", "content": "And?"}, {"role": "assistant", "content": row}] for row in rows]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = chat_templates.ALPACA
    for processes in (1, 2):
        target = tmp_path / f"{processes}.arrow"
        if kind == "chat":
            chat.write(rows, tokenizer, target, processes)
        else:
            assert tokens.write((row.encode() for row in rows), tokenizer, target, processes)[0] == 700
    assert (tmp_path / "1.arrow").read_bytes() == (tmp_path / "2.arrow").read_bytes()


def test_processes_end_with_a_killed_parent():
    """A killed job leaves no process behind that waits for work."""
    code = (
        "import multiprocessing, os, signal, time\n"
        "from quantune.data import workers\n"
        "with workers.pool(abs, 2) as mapped:\n"
        "    list(mapped([-1, -2, -3, -4]))\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60)
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in children), 20)


def test_a_split_is_mapped_and_only_what_is_read_is_in_memory(prepared):
    """16 MB of tokens: their blocks, a batch and a slice of the stream take a small part of it."""
    folder = prepared(documents(*[list(range(1000))] * 4000), "train")
    tracemalloc.start()
    try:
        blocks = text.Blocks(text.blocks(folder, "train", 2, 512))
        batch = blocks.batch([0, len(blocks) - 1])
        stream = text.stream(folder, "train", Prefixed([1]))
        part = stream.ids[2_000_000:2_000_100]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(blocks) == 4_004_000 // 512 and batch["input_ids"].shape == (2, 512) and len(part) == 100
    assert peak < 2_000_000
    assert not text.column(folder, "train", "ids")[0][10:20].flags.owndata


def test_blocks_are_cut_from_documents_that_end_with_the_end_token(prepared):
    folder = prepared(documents([11, 12, 13], [21], [31, 32, 33, 34]), "train")
    blocks = text.blocks(folder, "train", end=2, length=4)
    assert blocks.tolist() == [[11, 12, 13, 2], [21, 2, 31, 32]]  # 33, 34, 2 are too few for a third
    assert blocks.dtype == numpy.dtype("int64")


@pytest.mark.parametrize(("length", "shape"), [(1, (11, 1)), (3, (3, 3)), (11, (1, 11))])
def test_the_shape_of_blocks(prepared, length, shape):
    folder = prepared(documents([11, 12, 13], [21], [31, 32, 33, 34]), "train")
    assert text.blocks(folder, "train", end=2, length=length).shape == shape


def test_a_split_too_short_for_one_block_says_what_to_lower(prepared):
    folder = prepared(documents([11, 12, 13]), "train")
    with pytest.raises(QuantuneError, match=r"split 'train' has 4 tokens.* one block of 5; lower 'length'"):
        text.blocks(folder, "train", end=2, length=5)


@pytest.mark.parametrize(("limit", "length", "fits"), [(1024, 1024, True), (1024, 1025, False), (None, 10**6, True)])
def test_a_length_beyond_the_models_positions_is_refused(limit, length, fits):
    config = SimpleNamespace(max_position_embeddings=limit)
    if fits:
        text.require_length(config, length)
    else:
        with pytest.raises(QuantuneError, match="length 1025 is more than the model's 1024 positions; lower 'length'"):
            text.require_length(config, length)


TRAIN = ["The keeper climbed the stair and lit the lamp.", "Wind from the north all day."]
LEAKS = {
    "same": TRAIN[0],
    "other marks and case": "the keeper CLIMBED the stair -- and lit the lamp!",
    "half of it": "The keeper climbed the stair and then he slept.",  # 4 of 7 runs of three words
    "less than half": "The keeper climbed the hill, looked about and went home.",  # 2 of 8
    "unrelated": "A bridge is a road over water.",
    "same words elsewhere": "lamp the lit and stair the climbed keeper The",
    "short": "the lamp",
    "empty": "",
}


def without_leaks(splits: dict[str, list[str]], how: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the splits without leaks, and split -> number of documents removed."""
    numbers = leaks.without_leaks(splits, how)
    kept = {split: [splits[split][number] for number in chosen] for split, chosen in numbers.items()}
    return {"train": splits["train"]} | kept, {split: len(splits[split]) - len(texts) for split, texts in kept.items()}


@pytest.mark.parametrize(
    ("how", "dropped"),
    [("exact", ["same", "other marks and case"]), ("near", ["same", "other marks and case", "half of it"])],
)
def test_leaks_are_dropped_and_the_unrelated_kept(how, dropped):
    splits = {"train": TRAIN, "validation": ["Unrelated."], "test": list(LEAKS.values())}
    kept, counts = without_leaks(splits, how)
    assert kept["train"] == TRAIN
    assert kept["validation"] == ["Unrelated."]
    assert kept["test"] == [text for name, text in LEAKS.items() if name not in dropped]
    assert counts == {"validation": 0, "test": len(dropped)}


def test_runs_of_different_training_documents_do_not_add_up():
    """Half of the runs must come from one training document."""
    train = ["one two three four", "five six seven eight", "nine ten eleven twelve"]
    kept, _ = without_leaks({"train": train, "test": [" ".join(train)]}, "near")
    assert kept["test"] == [" ".join(train)]


def test_a_training_document_repeated_in_training_is_kept():
    kept, counts = without_leaks({"train": ["Same.", "Same."], "test": ["Other."]}, "near")
    assert kept == {"train": ["Same.", "Same."], "test": ["Other."]} and counts == {"test": 0}


@pytest.mark.parametrize("how", ["exact", "near"])
def test_different_texts_without_letters_are_no_leaks(how):
    assert without_leaks({"train": ["🙂"], "test": ["🙃 !", "…"]}, how)[0]["test"] == ["🙃 !", "…"]


def perplexity(length: int, stride: int | None, **more) -> Perplexity:
    return Perplexity(kind="perplexity", dataset="any", length=length, stride=stride, **more)


def test_windows_by_hand():
    assert perplexity(4, None).windows(11) == [(0, 1, 4), (4, 5, 8)]
    assert perplexity(4, 2).windows(9) == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (5, 8, 9)]
    assert perplexity(4, None).windows(3) == []


@pytest.mark.parametrize("length", [2, 3, 7, 16])
@pytest.mark.parametrize("total", [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 100])
def test_windows_that_do_not_overlap_cover_every_whole_window_once(total, length):
    spans = perplexity(length, None).windows(total)
    assert len(spans) == total // length
    assert [begin for begin, _, _ in spans] == [length * number for number in range(total // length)]
    assert all(scored == begin + 1 and end == begin + length for begin, scored, end in spans)


@pytest.mark.parametrize("length", [2, 3, 7, 16])
@pytest.mark.parametrize("total", [1, 2, 3, 15, 16, 17, 31, 32, 33, 100])
def test_strided_windows_score_every_token_but_the_first_once(total, length):
    for stride in range(1, length):
        spans = perplexity(length, stride).windows(total)
        assert [token for _, scored, end in spans for token in range(scored, end)] == list(range(1, total))
        assert all(end - begin == min(length, total) for begin, _, end in spans)
        assert all(end - scored <= stride and scored - begin >= length - stride for begin, scored, end in spans[1:])
        assert len(spans) == (1 + math.ceil(max(0, total - length) / stride) if total > 1 else 0)


@pytest.mark.parametrize("stride", [None, 3])
def test_max_windows_keeps_the_first(stride):
    stream = text.Stream(*[numpy.zeros(100)] * 3, numpy.array([1]), numpy.array([100]))
    every = perplexity(8, stride).spans(stream)
    assert every == perplexity(8, stride).windows(100)
    assert perplexity(8, stride, max_windows=3).spans(stream) == every[:3]
    assert perplexity(8, stride, max_windows=1000).spans(stream) == every


@pytest.mark.parametrize("stride", [None, 3])
def test_documents_alone_score_each_of_their_tokens_once(stride):
    """Documents of 12, 0, 1 and 7 tokens, each after one token that begins it; windows of 5."""
    ends = numpy.array([13, 14, 16, 24])
    stream = text.Stream(*[numpy.zeros(24)] * 3, numpy.array([1, 14, 15, 17]), ends)
    spans = perplexity(5, stride, context="document").spans(stream)
    assert [token for _, scored, end in spans for token in range(scored, end)] == numpy.flatnonzero(stream.own).tolist()
    for begin, scored, end in spans:
        assert scored - begin >= (2 if stride and begin and stream.own[begin] else 1) and end - begin <= 5
        assert stream.own[begin + 1 : end].all(), "no token of another document is in the window"
