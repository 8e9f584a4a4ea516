"""Conversations as tokens: written by the tokenizer's chat template, each token marked with the response it belongs to.

The template comes from outside. transformers renders it in jinja2's immutable sandbox. What a template writes between
the prompt of a response (`add_generation_prompt`) and the end of its turn is what the model must write: the response.
White space after the end of a turn is not part of it, because no model is asked to write it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from quantune.core.errors import QuantuneError
from quantune.data import text, tokens, workers
from quantune.models import loading
from quantune.sources import chat_templates

Messages = list[dict[str, str]]
SCHEMA = tokens.SCHEMA.append(pyarrow.field("turns", pyarrow.list_(pyarrow.int32())))
"""Beside ids, bytes and words: `turns`, n for a token of the content of the n-th response, −n for a token that the
template adds to it (the end of the turn), 0 for all others. Bytes and words are those of the contents of responses."""
BATCH = 256  # conversations that are tokenized together


@dataclass(frozen=True)
class Response:
    """The place of a response in a rendered conversation, in characters."""

    begin: int
    content: int
    """Begin of the content: a template may write something before it, such as an empty thought."""
    content_end: int
    end: int


def render(messages: Messages, tokenizer, prompt: bool = False) -> str:
    """Return a conversation as the tokenizer's chat template writes it; with `prompt` a response is to follow.

    Raises:
        QuantuneError: if the tokenizer has no template, or the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise QuantuneError(
            "the tokenizer has no chat template; give the model 'chat_template': alpaca, chatml, plain, vicuna or Jinja"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template may raise any
        raise QuantuneError(f"the chat template fails ({type(error).__name__}: {error})") from None


def rendered(messages: Messages, tokenizer) -> tuple[str, list[Response]]:
    """Return a conversation as text, and the place of each response.

    Raises:
        QuantuneError: if the template does not write the conversation turn by turn.
    """
    whole, places = render(messages, tokenizer), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(messages[:number], tokenizer, prompt=True)
            begin = _common(before, whole)
            content = message["content"] if message["content"] in whole[begin:] else message["content"].strip()
            place = whole.find(content, begin)
            if place < 0 or len(before) - begin > len(before) - len(before.rstrip()):
                raise QuantuneError(
                    f"the chat template writes message {number + 1} otherwise than after its prompt; a template must"
                    " write a conversation turn by turn"
                )
            places.append((begin, place, place + len(content)))
    after = whole[places[-1][2] :].rstrip()  # what ends a turn
    return whole, [
        Response(begin, content, end, end + (len(after) if whole.startswith(after, end) else 0))
        for begin, content, end in places
    ]


def write_template(template: str, folder: Path) -> None:
    """Write the chat template of the model in a folder; `template` is its name, or Jinja.

    Raises:
        QuantuneError: if the template cannot write a conversation of two turns.
    """
    tokenizer = loading.tokenizer(folder)
    path = folder / "chat_template.jinja"
    path.unlink(missing_ok=True)  # it may be a link to the file of the user's model
    begins = text.beginning(tokenizer) == [tokenizer.bos_token_id]
    path.write_text(chat_templates.text(template, begins), encoding="utf-8")
    turns = [("user", "Which way?"), ("assistant", "North."), ("user", "How far?"), ("assistant", "Two miles.")]
    rendered([{"role": role, "content": content} for role, content in turns], loading.tokenizer(folder))


def _common(before: str, whole: str) -> int:
    """Return how many characters two texts begin with in common."""
    if whole.startswith(before):
        return len(before)
    return next(place for place, (one, other) in enumerate(zip(before, whole + "\0", strict=False)) if one != other)


def encode(
    conversations: list[Messages], tokenizer, where: str = "conversation", first: int = 1
) -> Iterator[dict[str, numpy.ndarray]]:
    """Yield the columns of `SCHEMA` for each conversation.

    Args:
        conversations: a few of them.
        tokenizer: a fast tokenizer with a chat template.
        where: what their numbers count, for errors.
        first: the number of the first.

    Raises:
        QuantuneError: naming the conversation, if the template cannot write it.
    """
    written = []
    for number, messages in enumerate(conversations, first):
        try:
            written.append(rendered(messages, tokenizer))
        except QuantuneError as error:
            raise QuantuneError(f"{where} {number}: {error}") from None
    encoded = tokens.tokenized([whole for whole, _ in written], tokenizer)
    for (whole, responses), (ids, offsets) in zip(written, encoded, strict=True):
        yield _columns(whole, responses, ids, offsets)


def _columns(whole: str, responses: list[Response], ids: numpy.ndarray, offsets: numpy.ndarray) -> dict[str, Any]:
    begins, ends = offsets[:, 0], numpy.maximum.accumulate(offsets[:, 1])
    columns = {name: numpy.zeros(len(ids), "int64") for name in SCHEMA.names}
    columns["ids"] = ids
    for number, response in enumerate(responses, 1):
        own = (begins >= response.begin) & (begins < response.end)
        inside = own & (begins < response.content_end) & (ends > response.content)
        columns["turns"][own] = -number
        columns["turns"][inside] = number
        content = whole[response.content : response.content_end]
        at = numpy.clip(ends[inside] - response.content, 0, len(content))
        at[-1:] = len(content)
        for name, counts in tokens.Positions(content).counts(at, 0).items():
            columns[name][inside] = counts
    return columns


def write(conversations: Iterable[Messages], tokenizer, path: Path, processes: int = 1) -> tuple[int, int]:
    """Tokenize conversations, in several processes, and write them as an Arrow file with the columns of `SCHEMA`.

    Returns:
        The number of conversations and the number of tokens.

    Raises:
        QuantuneError: naming the conversation's number, from 1, if the template cannot write it.
    """
    count, work = 0, partial(_encoded, tokenizer=tokenizer, where=f"split '{path.stem}', conversation")
    with tokens.writer(path, SCHEMA) as rows, workers.pool(work, processes) as mapped:
        for parts in mapped(_numbered(conversations)):
            for columns in parts:
                rows.append([columns])
            count += len(parts)
        return count, rows.close()


def _numbered(conversations: Iterable[Messages]) -> Iterator[tuple[int, list[Messages]]]:
    """Yield batches of conversations, and the number of the first, from 1."""
    waiting, first = iter(conversations), 1
    while batch := list(islice(waiting, BATCH)):
        yield first, batch
        first += len(batch)


def _encoded(batch: tuple[int, list[Messages]], tokenizer, where: str) -> list[dict[str, numpy.ndarray]]:
    """Return the columns of each conversation of a batch, as 32-bit integers."""
    first, conversations = batch
    parts = encode(conversations, tokenizer, where, first)
    return [{name: values.astype("<i4") for name, values in part.items()} for part in parts]


def prompt(question: str, tokenizer) -> list[int]:
    """Return the token ids of a user's message, and of the prompt of the response that is to follow."""
    return tokenizer(
        render([{"role": "user", "content": question}], tokenizer, prompt=True), add_special_tokens=False, verbose=False
    )["input_ids"]
