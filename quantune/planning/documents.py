"""Read a configuration as YAML or JSON, strictly: unique keys, bounded aliases, plain texts and finite numbers.

Snakemake reads the configuration itself and keeps the last of two equal keys; `require_sound` checks its files.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from quantune.core import credentials
from quantune.core.errors import ConfigError

LARGEST = 100_000
"""Values in a configuration, each alias counted as what it stands for."""
DEEPEST = 20
"""Levels of a configuration."""
LARGE = 2**63


def require_sound(paths: Iterable[str | Path]) -> None:
    """Raise ConfigError for the first of the files that `read` refuses."""
    for path in paths:
        read(path)


def read(path: str | Path) -> Any:
    """Return the content of a configuration file.

    Raises:
        ConfigError: with the line, if a key is given twice or aliases stand for too much, or if it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read as a configuration: {error}") from None
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except (ValueError, RecursionError):
        pass  # not JSON
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _require_bounded(root, path)
            _require_unique(root, path)
        return yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested more than {DEEPEST} levels deep; write it flatter") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"'{path}' cannot be read as a configuration: {_one_line(error)}") from None


def unplain(value: Any) -> list[str]:
    """Return a problem for each value of a configuration that no field can hold, each with its key.

    Such values are: texts with NUL or lone surrogates, infinite and huge numbers, dates and other objects of YAML, and
    credentials.
    """
    problems = []
    for count, (path, item) in enumerate(_values(value, ())):
        if count > LARGEST or len(path) > DEEPEST:
            limit = f"{LARGEST:,} values" if count > LARGEST else f"{DEEPEST} levels"
            return [f"the configuration has more than {limit}, aliases counted as what they stand for; write fewer"]
        if problem := _problem(item):
            where = ".".join(map(str, path)) or "the configuration"
            problems.append(
                f"{where.encode('ascii', 'backslashreplace').decode() if _lone(where) else where}: {problem}"
            )
    return problems


def _values(value: Any, path: tuple) -> Iterator[tuple[tuple, Any]]:
    """Yield every key and value with its path; a key has the path of its mapping."""
    yield path, value
    if len(path) > DEEPEST:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(value, dict):
            yield path, key if isinstance(key, str) else _Key(key)
        yield from _values(item, (*path, key))


class _Key:
    """A key that is no text."""

    def __init__(self, key: Any):
        self.key = key


def _problem(value: Any) -> str | None:
    """Return why no field can hold a value, or None."""
    if isinstance(value, _Key):
        return f"the key {value.key!a:.60} is not text; put quotes around it"
    if isinstance(value, str):
        if "\0" in value or _lone(value):
            return f"{value!a} holds a character that no text has (NUL, or half of a pair); take it out"
        if credentials.redacted(value) != value:
            return (
                f"'{credentials.redacted(value)}' holds a password, a token or a signature; in a URL write ${{NAME}} in"
                " its place and export NAME=..."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    elif isinstance(value, int) and abs(value) >= LARGE:
        return "the number is too large"
    elif not isinstance(value, (dict, list, int, float, type(None))):
        return f"{str(value)!a:.60} is neither text nor a number; put quotes around it"
    return None


def _lone(text: str) -> bool:
    """Return whether a text has lone surrogates, which UTF-8 cannot hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _unique(pairs: list[tuple[str, Any]], path: str | Path) -> dict[str, Any]:
    """Return the object of JSON with these keys and values; raises ConfigError if a key is given twice."""
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ConfigError(f"{path}: {key}: the key is given twice; take one out")
        mapping[key] = value
    return mapping


def _require_unique(root: yaml.Node, path: str | Path) -> None:
    """Raise ConfigError, with the key's path and both lines, if a mapping has a key twice."""
    waiting, seen = [((), root)], set()
    while waiting:
        keys, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [((*keys, str(number)), item) for number, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line, name = key.start_mark.line + 1, (key.tag, str(key.value))
                if isinstance(key, yaml.ScalarNode) and name in lines:
                    where = ".".join((*keys, key.value))
                    both = f"in line {lines[name]} and in line {line}"
                    raise ConfigError(f"{path}: {where}: the key is given twice, {both}; take one out")
                lines[name] = line
                waiting.append(((*keys, str(key.value)), value))


def _require_bounded(root: yaml.Node, path: str | Path) -> None:
    """Raise ConfigError if the document, with aliases counted as what they stand for, is too large or too deep."""
    sizes: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node, depth: int) -> tuple[int, int]:
        """Return the number of values and of levels below a node."""
        if depth > DEEPEST:
            raise RecursionError  # an alias inside of its own anchor has no end
        if id(node) not in sizes:
            parts = []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            below = [measure(part, depth + 1) for part in parts]
            sizes[id(node)] = 1 + sum(size for size, _ in below), 1 + max((level for _, level in below), default=0)
        return sizes[id(node)]

    size, levels = measure(root, 0)
    if levels > DEEPEST:
        raise RecursionError
    if size > 2 * LARGEST:
        raise ConfigError(f"{path}: the aliases stand for more than {LARGEST:,} values; write fewer")


def _one_line(error: Exception) -> str:
    """Return an error of the YAML parser as one line: the problem and its place."""
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    text = getattr(error, "problem", None) or str(error).partition(": value has")[0]
    return f"{' '.join(str(text).split())}{place}"
