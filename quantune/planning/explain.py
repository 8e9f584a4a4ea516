"""Turn pydantic's errors into messages for users: the key's path, the problem, the allowed values."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from quantune.core.errors import listed, nearest
from quantune.core.recipe import NAME, Entry

Sections = dict[str, tuple[str | None, list[type[Entry]]]]
"""Section -> the field that selects one of its recipes, and the recipes."""


def problem_lines(error: ValidationError, raw: dict[str, Any], sections: Sections, whole: type[Entry]) -> list[str]:
    """Return one line for each wrong key.

    Args:
        error: the errors of pydantic.
        raw: the configuration as read.
        sections: the possible recipes of the entries of a section.
        whole: the type of the whole configuration.
    """
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        entry = _entry(item["loc"], raw, sections) or _part(item["loc"], whole)
        where, problem = _problem(item, raw, entry or whole, sections)
        if problem not in lines.setdefault(where, []):
            lines[where].append(problem)
    return [f"{where or 'the configuration'}: {', or '.join(problems)}" for where, problems in lines.items()]


def _problem(item: dict[str, Any], raw: dict[str, Any], entry: type[Entry], sections: Sections) -> tuple[str, str]:
    """Return the key's path and the problem with its value."""
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    path = _path(item["loc"], raw, sections, keep_last=kind in ("missing", "extra_forbidden"))
    where = ".".join(map(str, path))
    if kind == "extra_forbidden":
        known = list(entry.model_fields)
        return where, f"unknown key{nearest(str(path[-1]), known)}; allowed: {listed(known)}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return where, f"{value!r} is not allowed; allowed: {context['expected']}{nearest(str(value), choices)}"
    if kind in ("union_tag_invalid", "union_tag_not_found") or (kind == "missing" and _is_tag(path, sections)):
        return _tag_problem(path, value, sections)
    if kind == "missing":
        field = entry.model_fields.get(str(path[-1]))
        return (
            where,
            f"is missing; {' '.join((field.description if field else 'it must be given').split(';')[0].split())}",
        )
    if kind == "string_pattern_mismatch":
        return where, f"'{value}' is not a name; names are lower-case letters, digits, '.' and '-' ({NAME})"
    if kind.startswith("model_") or kind == "dict_type":
        return where, f"keys and values expected, such as '{_example(path, sections, entry)}', found {value!r:.40}"
    if kind in ("too_short", "string_too_short"):
        return where, "must not be empty"
    if kind.startswith("bool_"):
        return where, f"true or false expected, found {value!r}"
    if kind == "value_error":
        return where, str(context["error"])
    message = item["msg"]
    return where, f"{message[0].lower()}{message[1:]}, found {value!r:.60}"


def _tag_problem(path: list, value: Any, sections: Sections) -> tuple[str, str]:
    tag, recipes = sections[path[0]]
    allowed = sorted(name for recipe in recipes for name in get_args(recipe.model_fields[tag].annotation))
    where = f"{path[0]}.{path[1]}.{tag}"
    if not isinstance(value, dict):
        return f"{path[0]}.{path[1]}", f"keys and values expected, such as '{tag}: {allowed[0]}', found {value!r:.40}"
    if tag not in value:
        return where, f"is missing; allowed: {listed(allowed)}"
    return where, f"'{value[tag]}' is not known; allowed: {listed(allowed)}{nearest(str(value[tag]), allowed)}"


def _is_tag(path: list, sections: Sections) -> bool:
    return len(path) == 3 and path[0] in sections and path[2] == sections[path[0]][0]


def _path(location: tuple, raw: dict[str, Any], sections: Sections, keep_last: bool) -> list:
    """Return the location as keys of the configuration, without the parts that pydantic adds: tags, types, '[key]'."""
    parts = list(location)
    if len(parts) > 2 and len(sections.get(str(parts[0]), (None, []))[1]) > 1:
        del parts[2]  # the tag that selects the recipe
    keys, place = [], raw
    for index, part in enumerate(parts):
        inside = part in place if isinstance(place, dict) else isinstance(part, int) and isinstance(place, list)
        if not inside and not (keep_last and index == len(parts) - 1):
            break
        keys.append(part)
        place = place[part] if inside else None
    return keys


def _entry(location: tuple, raw: dict[str, Any], sections: Sections) -> type[Entry] | None:
    """Return the recipe type of the entry at a location, or None outside the sections' entries."""
    if len(location) < 3 or location[0] not in sections:
        return None
    tag, recipes = sections[location[0]]
    given = raw[location[0]].get(location[1])
    chosen = given.get(tag) if isinstance(given, dict) else None
    fits = (item for item in recipes if len(recipes) == 1 or chosen in get_args(item.model_fields[tag].annotation))
    return _nested(next(fits, recipes[0]), location[3 if len(recipes) > 1 else 2 :])  # without the tag


def _nested(entry: type[Entry], location: tuple) -> type[Entry]:
    """Return the type of the entry, or entries, in a field, or the given type."""
    if len(location) < 2 or location[0] not in entry.model_fields:
        return entry
    return next(_entries(entry.model_fields[location[0]].annotation), entry)


def _entries(annotation: Any) -> Iterator[type[Entry]]:
    """Yield the types of entries in an annotation, such as `list[Mapping] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Entry):
        yield annotation
    for part in get_args(annotation):
        yield from _entries(part)


def _part(location: tuple, whole: type[Entry]) -> type[Entry] | None:
    """Return the type of a section that is one entry, such as `benchmark`, or None outside such sections."""
    field = whole.model_fields.get(str(location[0])) if len(location) > 1 else None
    kinds = get_args(field.annotation) if field else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Entry)), None)


def _example(path: list, sections: Sections, entry: type[Entry]) -> str:
    """Return an example of the first key and value of an entry."""
    if len(path) == 2 and path[0] in sections:
        tag, recipes = sections[path[0]]
        return f"{tag}: {get_args(recipes[0].model_fields[tag].annotation)[0]}" if tag else "path: some/folder"
    field = entry.model_fields.get(str(path[0])) if len(path) == 1 else None
    kind = next(_entries(field.annotation), None) if field and path[0] not in sections else None
    return f"{next(iter(kind.model_fields))}: ..." if kind else "name: ..."
