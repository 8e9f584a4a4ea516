"""Credentials in texts: passwords, tokens and signatures of URLs are kept out of everything that is written or printed.

A URL of the configuration names a credential by an environment variable, `${NAME}`. The value is filled in when the
request is sent, so orders, provenance, logs and errors hold only the name.
"""

import re
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
VARIABLE = r"\$\{(\w+)\}"
"""An environment variable in a URL."""
USER = re.compile(r"(?<=://)[^/?#\s]*@")
"""The part of a URL before its host: user and password."""
NAMED = re.compile(rf"(?:[^:@]*:)?(?:{VARIABLE})+@")
"""The same part with a variable in the place of the credential."""
QUERY = re.compile(
    r"""([?&;\#](?:[\w.-]*(?:token|secret|signature|credentials?|password|passwd|api[_-]?key|access[_-]?key|keyid)
    |x-(?:amz|goog|oss|cos|ms)-[\w-]*|sig|sign|key|auth|authorization|policy|key-pair-id|pwd|pass|jwt|hmac)=)
    ([^&;\#\s'"<>]+)""",
    re.IGNORECASE | re.VERBOSE,
)
"""Name and value of a query parameter that holds a credential or a signature."""
_values: set[str] = set()


def remember(value: str) -> None:
    """Take a credential out of all texts from now on, wherever it stands in them."""
    _values.update(filter(None, {value, quote(value), quote(value, safe=""), quote(value, safe=":")}))


def redacted(text: str) -> str:
    """Return a text without the credentials in its URLs; environment variables in their places stay."""
    text = USER.sub(lambda match: match[0] if NAMED.fullmatch(match[0]) else f"{HIDDEN}@", text)
    text = QUERY.sub(lambda match: match[0] if re.fullmatch(f"({VARIABLE})+", match[2]) else match[1] + HIDDEN, text)
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


class RedactedStream:
    """A text stream that takes credentials out of everything that is written to it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without its credentials; return the length of the text."""
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
