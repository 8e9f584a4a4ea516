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
    """An entry that tells how an artefact is made.

    Its fields are the artefact's identity: change one and what was made from it is made again. `settings` names the
    fields that change how the work is done or shown but not what comes out of it; they are left out of the digest.
    `version` is raised when the meaning of the same recipe changes, so that nothing made the old way is mistaken for
    the new.
    """

    version: ClassVar[int] = 1
    settings: ClassVar[frozenset[str]] = frozenset()
    seeded: ClassVar[bool] = False
    """Whether the result depends on the seed (`step@3` is refused where it does not)."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that are part of the artefact's identity, defaults resolved."""
        return self.model_dump(mode="json", exclude=set(self.settings))

    def options(self) -> dict[str, Any]:
        """Return the fields that are not."""
        return self.model_dump(mode="json", include=set(self.settings))


def subclasses(package: str, base: type[Recipe], tag: str) -> list[type[Recipe]]:
    """Return the recipes below `base` that the modules of a package define, those with the literal field `tag`."""
    found = set()
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        namespace = vars(importlib.import_module(f"{package}.{module.name}"))
        found |= {
            item
            for item in namespace.values()
            if isinstance(item, type) and issubclass(item, base) and tag in item.model_fields
        }
    return sorted(found, key=lambda item: item.__qualname__)
