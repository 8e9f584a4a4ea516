"""The base of every typed entry of the configuration."""

import importlib
import pkgutil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME = r"[a-z0-9][a-z0-9.-]*"
SEED = r"(?:0|[1-9][0-9]*)"
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
Dtype = Literal["float32", "bfloat16", "float16"]


class Entry(BaseModel):
    """A typed, immutable part of the configuration; unknown keys are errors, docstrings describe the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Recipe(Entry):
    """An entry that describes how an artefact is made.

    Its fields are the artefact's identity: if one changes, the artefact and its descendants are made again. `settings`
    names the fields that change how the work is done or shown but not its result; the digest leaves them out. `version`
    is raised when the same recipe gets another meaning, so that an old artefact is never taken for a new one.
    """

    version: ClassVar[int] = 1
    settings: ClassVar[frozenset[str]] = frozenset()
    seeded: ClassVar[bool] = False
    """Whether the result depends on the seed; if not, `step@3` is refused."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that are part of the artefact's identity, defaults resolved."""
        return self.model_dump(mode="json", exclude=set(self.settings))

    def options(self) -> dict[str, Any]:
        """Return the `settings`: the fields that are not part of the identity."""
        return self.model_dump(mode="json", include=set(self.settings))


def subclasses(package: str, base: type[Recipe], tag: str) -> list[type[Recipe]]:
    """Return the subclasses of `base` in the modules of a package that have the literal field `tag`, sorted by name."""
    classes = set()
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        namespace = vars(importlib.import_module(f"{package}.{module.name}"))
        classes |= {
            item
            for item in namespace.values()
            if isinstance(item, type) and issubclass(item, base) and tag in item.model_fields
        }
    return sorted(classes, key=lambda item: item.__qualname__)
