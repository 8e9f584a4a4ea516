"""Ollama's Modelfile: the chat template in Ollama's language, the default system message, and the ends of an answer.

Ollama's templates are Go templates, those of transformers are Jinja. A Jinja template is rendered here for probing
conversations; if every rendering is the texts of its messages one after the other, with fixed texts around each role,
these fixed texts make the Go template. Any other template is left to Ollama, which knows common ones by their text.
Reference: https://github.com/ollama/ollama/blob/main/docs/template.md and docs/modelfile.md.
"""

from dataclasses import dataclass
from pathlib import Path

from quantune.models import loading

ROLES = ("system", "user", "assistant")
CONTENTS = {role: f"{role.upper()}-3b9f" for role in ROLES}
"""Contents of the probing messages."""


@dataclass(frozen=True)
class Chat:
    """A chat template that writes messages one after the other."""

    before: dict[str, str]
    """Role -> text before the content of a message."""
    after: dict[str, str]
    """Role -> text after it."""
    answer: str
    """Text before the content of an answer that is to be generated."""
    system: str | None
    """System message of conversations that give none; None: no message."""

    def render(self, messages: list[dict[str, str]], generate: bool) -> str:
        """Return a conversation as text."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        texts = [self.before[item["role"]] + item["content"] + self.after[item["role"]] for item in messages]
        return "".join([*texts, self.answer if generate else ""])


def modelfile(file: str, checkpoint: Path) -> str:
    """Return the Modelfile of the GGUF file with this name, made from a checkpoint."""
    from quantune.exports.ggml.vocabulary import ending_tokens

    tokenizer = loading.tokenizer(checkpoint)
    lines = [f"FROM ./{file}"]
    if not tokenizer.chat_template:
        lines += ["# The model has no chat template: it continues a text.", 'TEMPLATE """{{ .Prompt }}"""']
    elif chat := read(tokenizer):
        lines += [f'TEMPLATE """{go_template(chat)}"""']
        lines += [f'SYSTEM """{chat.system}"""'] if chat.system is not None else []
    else:
        lines += ["# The chat template is in the GGUF file; Ollama takes its own translation if it knows the template."]
    ends = tokenizer.convert_ids_to_tokens(ending_tokens(checkpoint, tokenizer))
    lines += [f'PARAMETER stop "{end}"' for end in dict.fromkeys(filter(None, ends)) if '"' not in end]
    return "\n".join([*lines, ""])


def read(tokenizer) -> Chat | None:
    """Return the chat template of a tokenizer, or None if it is not one that a Go template can repeat."""

    def render(*roles: str, generate: bool = False) -> str:
        messages = [{"role": role, "content": CONTENTS[role]} for role in roles]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    try:
        begin = tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else ""
        texts = {
            (roles, generate): render(*roles, generate=generate).removeprefix(begin or "")
            for roles in (("user",), ("user", "assistant"), ("system", "user"), (*ROLES, "user"))
            for generate in (False, True)
        }
        chat = _parts(texts)
    except Exception:  # whatever the template raises: it does not take such conversations
        return None
    for (roles, generate), text in texts.items():
        if chat.render([{"role": role, "content": CONTENTS[role]} for role in roles], generate) != text:
            return None
    parts = [*chat.before.values(), *chat.after.values(), chat.answer, chat.system or ""]
    return None if any(mark in part for part in parts for mark in ("{{", "}}", '"""')) else chat


def _parts(texts: dict[tuple[tuple[str, ...], bool], str]) -> Chat:
    """Return the fixed texts, if there are any; raises ValueError if a content is missing."""
    whole = _around(texts[(*ROLES, "user"), False], *ROLES, "user")
    alone = _around(texts[("user",), False], "user")
    answered = _around(texts[("user", "assistant"), False], "user", "assistant")
    before_user = whole[3].removeprefix(answered[2])
    before_assistant = whole[2].removeprefix(alone[1])
    after_system = whole[1].removesuffix(before_user)
    given = alone[0].removesuffix(after_system + before_user).removeprefix(whole[0])
    return Chat(
        before={"system": whole[0], "user": before_user, "assistant": before_assistant},
        after={"system": after_system, "user": alone[1], "assistant": answered[2]},
        answer=texts[("user",), True].removeprefix(texts[("user",), False]),
        system=None if alone[0] == before_user else given,
    )


def _around(text: str, *roles: str) -> list[str]:
    """Return the texts before, between and after the contents of messages."""
    parts = []
    for role in roles:
        before, divider, text = text.partition(CONTENTS[role])
        if not divider:
            raise ValueError(f"the template leaves out the content of '{role}'")
        parts.append(before)
    return [*parts, text]


def go_template(chat: Chat) -> str:
    """Return a chat template in Ollama's language: without spaces between commands, because each space is output."""
    branches = "{{ else }}".join(
        [
            f'{{{{ if eq .Role "system" }}}}{chat.before["system"]}{{{{ .Content }}}}{chat.after["system"]}',
            f'{{{{ if eq .Role "assistant" }}}}{chat.before["assistant"]}{{{{ .Content }}}}'
            f"{{{{ if not $last }}}}{chat.after['assistant']}{{{{ end }}}}",
            f"{chat.before['user']}{{{{ .Content }}}}{chat.after['user']}",
        ]
    )
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    answer = f'{{{{ if and $last (ne .Role "assistant") }}}}{chat.answer}{{{{ end }}}}'
    return f"{{{{ range $i, $_ := .Messages }}}}{last}{branches}{{{{ end }}}}{{{{ end }}}}{answer}{{{{ end }}}}"
