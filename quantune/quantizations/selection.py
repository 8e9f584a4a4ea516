"""Choice of layers by patterns of their names, and the size of groups that fits all of them."""

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from quantune.core.errors import listed, nearest
from quantune.core.recipe import Entry, NonEmpty

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Annotated[int, Field(gt=0, le=2**16, multiple_of=4)] | Literal["auto"] | None
LARGEST_GROUP = 128
"""The largest group that `auto` takes."""
Pattern = NonEmpty


class Override(Entry):
    """The keys of a recipe that differ for some layers."""

    bits: Bits | None = None
    """Bits per weight."""
    group_size: GroupSize = None
    """Neighbouring inputs of a row that share one scale; null: one scale for each whole row."""
    symmetric: bool | None = None
    """Whether the grid is symmetric around zero."""

    @model_validator(mode="after")
    def _numbers(self):
        for name in ("bits", "symmetric"):
            if name in self.model_fields_set and getattr(self, name) is None:
                raise ValueError(f"'{name}' has no null; leave it out")
        return self

    def given(self) -> dict[str, Any]:
        """Return the keys that are given: null is a value of `group_size`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @model_serializer(mode="wrap")
    def _only_given(self, handler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern (`*`, `?`, `[...]` as in a shell) is a layer's full name, or its end after a dot."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def unmatched(patterns: dict[str, str], names: list[str], head: str | None = None) -> str | None:
    """Return the first pattern that matches no layer, with names that exist, or None.

    Args:
        patterns: pattern -> the key that holds it.
        names: full names of the layers that are quantized.
        head: name of the output embedding, if it is not quantized.
    """
    for pattern, key in patterns.items():
        if any(matches(pattern, name) for name in names):
            continue
        if head and matches(pattern, head):
            return f".{key}: '{pattern}' is the output embedding, which stays dense without 'output_embedding: true'"
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        examples = f"the ends of names are {listed(ends)}; the first name is '{names[0]}'"
        return f".{key}: '{pattern}' matches no linear layer of the model; {examples}{nearest(pattern, ends)}"
    return None


def groups_that_fit(widths: set[int]) -> list[int]:
    """Return the powers of two from 256 down to 4 that divide all widths: the sizes that kernels read."""
    return [size for size in (256, 128, 64, 32, 16, 8, 4) if all(width % size == 0 for width in widths)]


def largest_group(widths: set[int]) -> int | None:
    """Return the largest of them up to 128, or None where none fits."""
    return next((size for size in groups_that_fit(widths) if size <= LARGEST_GROUP), None)
