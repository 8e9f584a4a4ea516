"""Conversations: the forms of their rows, the tokens of their responses, and what is left out of the loss."""

import json
import os
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from quantune.core.errors import ConfigError, QuantuneError
from quantune.data import chat
from quantune.models import loading
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.sources import documents, leaks, texts
from quantune.sources.chat import Contents
from tests.conftest import OPT

REAL = Path(os.environ.get("REAL", ""), "smollm2-135m-instruct")
SYSTEM, FIRST, SECOND = ("system", "Be brief."), ("user", "Which way?"), ("assistant", "North.")
TWO = [FIRST, SECOND, ("user", "How far?"), ("assistant", "Two miles,\nor “three”.")]
OWN = """\
{%- for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token + '\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def read(path: Path, **recipe) -> list:
    """Return what the dataset's files hold: texts, or messages."""
    recipe = {"format": None, "column": "text", "document": "paragraph", "first": None, "join": None} | recipe
    rows = ["".join(parts) for parts in documents.read_documents(path, recipe)]
    return [json.loads(row) if row else None for row in rows] if "chat" in recipe else rows


@pytest.fixture
def rows(tmp_path):
    """Return a function that writes rows of JSON."""

    def write(*rows: dict) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path

    return write


QUESTIONS = {"instruction": "Which way?", "input": "", "output": "North."}
HISTORY = QUESTIONS | {"instruction": "How far?", "input": "From here.", "output": "Two.", "system": "Be brief."}
SHARED = {"conversations": [{"from": "human", "value": "Which way?"}, {"from": "gpt", "value": "North."}]}
OPENAI = {"messages": messages(SYSTEM, FIRST, SECOND)}
PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Which way?"}]}, messages(SECOND)[0]]}


@pytest.mark.parametrize(
    ("form", "row", "turns"),
    [
        ("alpaca", QUESTIONS, [FIRST, SECOND]),
        (
            "alpaca",
            HISTORY | {"history": [["Which way?", "North."]]},
            [SYSTEM, FIRST, SECOND, ("user", "How far?\nFrom here."), ("assistant", "Two.")],
        ),
        ("prompt-completion", {"prompt": "Which way?", "completion": "North."}, [FIRST, SECOND]),
        ("sharegpt", SHARED, [FIRST, SECOND]),
        ("sharegpt", SHARED | {"system": "Be brief."}, [SYSTEM, FIRST, SECOND]),
        ("messages", OPENAI, [SYSTEM, FIRST, SECOND]),
        ("messages", PARTS, [FIRST, SECOND]),
        ("messages", {"messages": json.dumps(OPENAI["messages"])}, [SYSTEM, FIRST, SECOND]),
    ],
)
def test_every_form_of_rows_becomes_messages(rows, form, row, turns):
    assert read(rows(row), chat=form) == [messages(*turns)]


def test_nested_columns_of_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([OPENAI, OPENAI]), path)
    assert read(path, chat="messages") == [OPENAI["messages"]] * 2


def test_columns_of_other_names_and_rows_without_a_response(rows):
    path = rows({"question": "Which way?", "answer": "North."}, {"question": "How far?", "answer": None})
    columns = {"prompt": "question", "completion": "answer"}
    assert read(path, chat="prompt-completion", columns=columns) == [messages(FIRST, SECOND), None]


BAD = [
    ("sharegpt", {"conversations": [{"from": "bot", "value": "x"}]}, "'from' is 'bot'; allowed: system, human"),
    ("sharegpt", {"conversations": [{"role": "user"}]}, 'turn 1: {"from": "human", "value"'),
    ("sharegpt", {"conversations": "x"}, "a list expected, found 'x'"),
    ("messages", {"messages": messages(SECOND)}, "turn 1: it is the assistant's; after one system message or none"),
    ("messages", {"messages": messages(FIRST)}, "the last turn is the user's"),
    ("messages", {"messages": []}, "there is no turn"),
    ("messages", {"messages": messages(FIRST, SECOND, SYSTEM, SECOND)}, "turn 3: it is the system's"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "'role' is 'tool'; allowed: system, user"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "text is expected, found NoneType"),
    ("alpaca", QUESTIONS | {"output": 3}, "column 'output': text expected, found int"),
    ("alpaca", QUESTIONS | {"history": [["x"]]}, "column 'history': a pair"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "problem"), BAD)
def test_a_bad_row_is_named_with_what_is_allowed(rows, form, row, problem):
    good = {"sharegpt": SHARED, "messages": OPENAI, "alpaca": QUESTIONS}[form]
    with pytest.raises(QuantuneError) as raised:
        read(rows(good, row), chat=form)
    assert "rows.jsonl', line 2" in str(raised.value) and problem in str(raised.value)


def test_a_missing_column_names_the_key(rows):
    with pytest.raises(QuantuneError, match=r"no column 'instruction'; columns: prompt; set .* 'chat' and 'columns'"):
        read(rows({"prompt": "x"}), chat="alpaca")


def test_a_template_over_several_columns(rows):
    path = rows({"quote": "Be {it}.", "author": "A"}, {"quote": "", "author": None}, {"quote": "Go.", "author": None})
    assert read(path, template="{quote} — {author}{{}}") == ["Be {it}. — A{}", "", "Go. — {}"]
    with pytest.raises(QuantuneError, match=r"no column 'writer'.*set the dataset's 'template'"):
        read(path, template="{quote} — {writer}")


def test_plain_text_has_no_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    with pytest.raises(QuantuneError, match="is plain text, and 'chat' needs rows: json, csv, tsv or parquet"):
        read(path, chat="alpaca")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"template": "no column"}, "names no column; write one in braces"),
        ({"template": "{quote"}, "write {column} for a column, {{ and }} for braces"),
        ({"template": "{quote!r}"}, "braces hold the name of a column and nothing else"),
        ({"template": "{quote}", "column": "text"}, "'column' does not go with 'template'"),
        ({"chat": "alpaca", "template": "{quote}"}, "'template' does not go with 'chat'"),
        ({"chat": "alpaka"}, "allowed: 'alpaca', 'prompt-completion', 'sharegpt' or 'messages'"),
        ({"chat": "alpaca", "columns": {"outptu": "answer"}}, "'outptu' is not a field.*did you mean 'output'"),
        ({"columns": {"output": "answer"}}, "'columns' belongs to 'chat'"),
    ],
)
def test_wrong_keys_of_rows_are_refused(raw, keys, problem):
    raw["datasets"]["news"] |= keys
    with pytest.raises(ConfigError, match=problem):
        load.load(raw)


def test_new_keys_with_their_defaults_change_no_digest(raw):
    plan = Plan(load.load(raw))
    assert {"template", "chat", "columns"}.isdisjoint(plan.dataset("news").recipe)
    assert plan.checkpoint("opt").recipe == {}
    raw["models"]["opt"]["chat_template"] = "alpaca"
    assert Plan(load.load(raw)).checkpoint("opt").recipe == {"chat_template": "alpaca"}


def test_a_chat_template_is_named_or_written(raw):
    raw["models"]["opt"]["chat_template"] = "alpacca"
    with pytest.raises(ConfigError, match=r"allowed: alpaca, chatml, plain, vicuna, or the template.*mean 'alpaca'"):
        load.load(raw)


def test_messages_are_written_as_lists_and_read_again(tmp_path):
    stored = texts.Texts(tmp_path / "texts")
    for turns in ([FIRST, SECOND], TWO):
        stored.append((json.dumps(messages(*turns)),))
    stored.append(("",))
    stored.write_messages(tmp_path / "train.parquet")
    assert stored.blank == 1 and texts.holds_messages(tmp_path / "train.parquet")
    assert list(texts.read_messages(tmp_path / "train.parquet")) == [messages(FIRST, SECOND), messages(*TWO)]


def test_leaks_of_conversations_are_compared_without_the_system_message():
    system = ("system", "You are a helpful assistant that answers all questions in one short sentence.")
    held = [[system, ("user", "A quite different question about harbours"), ("assistant", "Yes.")], [system, *TWO], TWO]
    splits = {"train": [messages(system, *TWO)], "test": [messages(*turns) for turns in held]}
    compared = {split: Contents([json.dumps(item) for item in items]) for split, items in splits.items()}
    for how in ("exact", "near"):
        assert leaks.without_leaks(compared, how)["test"].tolist() == [0]


def labelled(tokenizer, turns: list[tuple[str, str]]) -> tuple[list[str], dict[str, numpy.ndarray]]:
    (columns,) = chat.encode([messages(*turns)], tokenizer)
    return [tokenizer.decode([token]) for token in columns["ids"]], columns


def responses(tokenizer, turns) -> list[str]:
    """Return the text of the tokens of each response, with what the template adds to it."""
    _, columns = labelled(tokenizer, turns)
    numbers = abs(columns["turns"])
    return [tokenizer.decode(columns["ids"][numbers == number]) for number in range(1, numbers.max() + 1)]


@pytest.fixture
def own(tokenizer):
    """opt-2m's tokenizer with a template of this test."""
    copied = loading.tokenizer(OPT)
    copied.chat_template = OWN
    return copied


def test_tokens_of_responses_under_a_template_of_this_test(own):
    assert responses(own, TWO) == ["North.</s>", "Two miles,\nor “three”.</s>"]
    pieces, columns = labelled(own, [FIRST, SECOND])
    assert "".join(pieces) == "<user>Which way?<assistant>North.</s>\n"
    marked = list(zip(pieces, columns["turns"].tolist(), strict=True))
    print(marked)
    assert [turn for _, turn in marked] == [0] * 12 + [1] * 3 + [-1, 0]
    assert columns["bytes"].sum() == len("North.") and columns["words"].sum() == 1


@pytest.mark.skipif(not REAL.exists(), reason="needs smollm2-135m-instruct: set REAL to its folder")
def test_tokens_of_responses_under_the_template_of_smollm2():
    tokenizer = loading.tokenizer(REAL)
    assert responses(tokenizer, TWO) == ["North.<|im_end|>", "Two miles,\nor “three”.<|im_end|>"]
    pieces, columns = labelled(tokenizer, TWO)
    print(list(zip(pieces, columns["turns"].tolist(), strict=True)))
    assert "".join(pieces) == chat.render(messages(*TWO), tokenizer)
    assert columns["bytes"].sum() == len("North.Two miles,\nor “three”.".encode())


@pytest.mark.parametrize("name", ["alpaca", "chatml", "plain", "vicuna"])
def test_named_templates_end_a_response_with_the_end_of_text_token(tmp_path, name):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((OPT / file).read_bytes())
    chat.write_template(name, tmp_path)
    tokenizer = loading.tokenizer(tmp_path)
    found = responses(tokenizer, [SYSTEM, *TWO])
    assert [text.replace("<|im_end|>", "").strip() for text in found] == [f"{TWO[1][1]}</s>", f"{TWO[3][1]}</s>"]
    _, columns = labelled(tokenizer, TWO)
    assert columns["bytes"].sum() == len((TWO[1][1] + TWO[3][1]).encode())
    assert columns["ids"][0] == tokenizer.bos_token_id and (columns["ids"] == tokenizer.bos_token_id).sum() == 3
    assert columns["ids"].tolist()[: len(chat.prompt("Which way?", tokenizer))] == chat.prompt("Which way?", tokenizer)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content.__class__.__mro__ }}", "SecurityError"),
        ("{% for message in messages %}{{ message.content", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages[-1].content }}", "turn by turn"),
        (None, "has no chat template; give the model 'chat_template'"),
    ],
)
def test_a_template_that_fails_is_an_error_with_the_conversation(own, template, problem, tmp_path):
    own.chat_template = template
    with pytest.raises(QuantuneError, match=rf"(?s)split 'train', conversation 1: .*{problem}"):
        chat.write([messages(*TWO)], own, tmp_path / "train.arrow")
