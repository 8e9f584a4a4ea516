"""Errors that a user can act on: each names the problem, the allowed values and what to type instead."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from quantune.core.credentials import redacted

# All control characters except tab and line feed, marks and embeddings of direction, halves of surrogate pairs.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class QuantuneError(Exception):
    """A problem that the user can fix; shown without a traceback, and without the credentials of URLs."""

    def __init__(self, text: str):
        super().__init__(redacted(text))

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(QuantuneError):
    """The configuration, or a chain on the command line, describes an artefact that cannot be made."""


@contextmanager
def reported() -> Iterator[None]:
    """End the program with the message alone, without a traceback, if a QuantuneError is raised inside."""
    try:
        yield
    except QuantuneError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Return the names as readable text: "a, b, c", or "none"."""
    return ", ".join(str(name) for name in names) or "none"


def printable(text: str) -> str:
    """Return a text without characters that steer a terminal or reverse the direction of writing.

    Names and messages from outside may hold them: an escape sequence can hide or forge what a terminal shows.
    """
    return STEERING.sub("", text)
