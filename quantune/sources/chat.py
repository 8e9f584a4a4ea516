"""Conversations from the rows of a table, in the forms in which people publish them; normalized to messages.

A message is a role ("system", "user" or "assistant") and its content. A conversation may begin with one system message;
then user and assistant take turns, and the assistant has the last one.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from quantune.core.errors import QuantuneError, listed, nearest
from quantune.sources import tables

Messages = list[dict[str, str]]
FIELDS = {
    "alpaca": (("instruction", "output"), ("input", "history", "system")),
    "prompt-completion": (("prompt", "completion"), ("system",)),
    "sharegpt": (("conversations",), ("system",)),
    "messages": (("messages",), ()),
}
"""Form of the rows -> the fields that it needs, and those that it may have; a field is a column of the same name."""
NESTED = {"conversations", "messages", "history"}
"""Fields that hold lists; a column of text may hold them as JSON."""
KEYS = {"sharegpt": ("from", "value"), "messages": ("role", "content")}
"""Form -> the keys of a turn: who speaks, and the words."""
ROLES = {
    "messages": {"system": "system", "user": "user", "assistant": "assistant"},
    "sharegpt": {"system": "system"}
    | dict.fromkeys(("human", "user"), "user")
    | dict.fromkeys(("gpt", "chatgpt", "assistant", "model"), "assistant"),
}
"""Form -> the speaker in a file -> its role."""


def read(path: Path, kind: str, form: str, columns: dict[str, str]) -> Iterator[str]:
    """Yield each conversation of a table as the JSON of its messages; "" for one with an empty prompt or response.

    Args:
        path: the file.
        kind: json, csv, tsv or parquet.
        form: of its rows, one of `FIELDS`.
        columns: field -> column, for fields whose column has another name.

    Raises:
        QuantuneError: naming file, row and column, if a row is not of this form.
    """
    needed, optional = FIELDS[form]
    named = {field: columns.get(field, field) for field in (*needed, *optional)}
    required = [column for field, column in named.items() if field in needed or field in columns]
    nested = [column for field, column in named.items() if field in NESTED]
    for place, row in tables.rows(path, kind, required, named.values(), nested, keys="'chat' and 'columns'"):
        cells = {field: _cell(row.get(column), path, place, column, field) for field, column in named.items()}
        messages = _messages(cells, form, f"'{path}', {place}", named)
        yield json.dumps(messages, ensure_ascii=False) if all(item["content"].strip() for item in messages) else ""


def _cell(value: Any, path: Path, place: str, column: str, field: str) -> Any:
    """Return a cell: text, or the list that a nested field holds."""
    if field not in NESTED:
        return tables.text(value, path, place, column)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise QuantuneError(f"'{path}', {place}, column '{column}': a list expected, found {value!a:.40}") from None
    if not isinstance(value, list | None):
        found = f"{type(value).__name__} ({value!a:.40})"
        raise QuantuneError(f"'{path}', {place}, column '{column}': a list expected, found {found}")
    return value or []


def _messages(cells: dict[str, Any], form: str, where: str, named: dict[str, str]) -> Messages:
    """Return the messages of a row; `where` names its file and place."""
    messages = [{"role": "system", "content": cells["system"]}] if cells.get("system", "").strip() else []
    if form in KEYS:
        (field,) = FIELDS[form][0]
        where = f"{where}, column '{named[field]}'"
        messages += [_message(turn, form, f"{where}, turn {number}") for number, turn in enumerate(cells[field], 1)]
        _require_turns(messages, where)
        return messages
    prompts = (cells["instruction"], cells["input"]) if form == "alpaca" else (cells["prompt"],)
    pairs = [(_pair(pair, f"{where}, column '{named['history']}'")) for pair in cells.get("history", ())]
    pairs.append(("\n".join(filter(str.strip, prompts)), cells["output" if form == "alpaca" else "completion"]))
    for prompt, response in pairs:
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return messages


def _pair(pair: Any, where: str) -> tuple[str, str]:
    """Return an earlier prompt and its response."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise QuantuneError(f'{where}: a pair ["prompt", "response"] is expected, found {pair!a:.60}')
    return tuple(_words(part, where) for part in pair)


def _message(turn: Any, form: str, where: str) -> dict[str, str]:
    """Return the message of a turn in a list."""
    speaker, words = KEYS[form]
    if not isinstance(turn, dict) or speaker not in turn or words not in turn:
        example = {speaker: next(name for name, role in ROLES[form].items() if role == "user"), words: "..."}
        raise QuantuneError(f"{where}: {json.dumps(example)} is expected, found {turn!a:.60}")
    if turn[speaker] not in ROLES[form]:
        hint = f"allowed: {listed(ROLES[form])}{nearest(turn[speaker], ROLES[form])}"
        raise QuantuneError(f"{where}: '{speaker}' is {turn[speaker]!a:.40}; {hint}")
    return {"role": ROLES[form][turn[speaker]], "content": _words(turn[words], where)}


def _words(content: Any, where: str) -> str:
    """Return the text of a message; its parts of text are joined, as OpenAI's API joins them."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        found = f"{type(content).__name__} ({content!a:.40})"
        raise QuantuneError(f"{where}: text is expected, found {found}; calls of tools and pictures are not read")
    tables.require_characters(content, where)
    return content


def _require_turns(messages: Messages, where: str) -> None:
    """Raise QuantuneError unless user and assistant take turns, after a system message or none, to a response."""
    rule = "after one system message or none, user and assistant take turns, and the last turn is the assistant's"
    begin = 1 if messages and messages[0]["role"] == "system" else 0
    for number, message in enumerate(messages[begin:]):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise QuantuneError(f"{where}, turn {number + begin + 1}: it is the {message['role']}'s; {rule}")
    if len(messages) == begin or messages[-1]["role"] != "assistant":
        last = f"the last turn is the {messages[-1]['role']}'s" if messages else "there is no turn"
        raise QuantuneError(f"{where}: {last}; {rule}")


class Contents:
    """Conversations as plain texts, to compare them: what user and assistant say, without the system message."""

    def __init__(self, conversations: Any):
        self.conversations = conversations

    def __len__(self) -> int:
        return len(self.conversations)

    def __iter__(self) -> Iterator[str]:
        return (content(json.loads(text)) for text in self.conversations)


def content(messages: Iterable[dict[str, str]]) -> str:
    """Return what user and assistant say."""
    return "\n".join(message["content"] for message in messages if message["role"] != "system")
