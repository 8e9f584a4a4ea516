"""The base of every typed entry of the configuration."""

import importlib
import pkgutil
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NAME = r"[a-z0-9][a-z0-9.-]*"
SEED = r"(?:0|[1-9][0-9]{0,9})"
LARGEST_SEED = 2**32 - 1
"""The largest seed of numpy."""
MANY = 1_000_000_000
"""The largest number of steps, documents, windows or clips."""
LONGEST = 2**24
"""The largest number of tokens in a sequence: more than the context of any model."""
LARGEST_BATCH = 2**16
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$", max_length=100)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
NonEmpty = Annotated[str, Field(min_length=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Entry(BaseModel):
    """A typed, immutable part of the configuration; unknown keys are errors, docstrings describe the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, raw: Any) -> Any:
        """Refuse true and false for numbers; pydantic would read them as 1 and 0."""
        for name, value in raw.items() if isinstance(raw, dict) else ():
            field = cls.model_fields.get(name)
            if field and isinstance(value, bool) and {int, float} & {field.annotation, *get_args(field.annotation)}:
                raise ValueError(f"'{name}' is a number, found {str(value).lower()}")
        return raw


class Recipe(Entry):
    """An entry that describes how an artefact is made.

    Its fields are the artefact's identity: if one changes, the artefact and its descendants are made again. `settings`
    names the fields that change how the work is done or shown but not its result; the digest leaves them out. `version`
    is raised when the same recipe gets another meaning, so that an old artefact is never taken for a new one.
    """

    version: ClassVar[int] = 1
    settings: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[frozenset[str]] = frozenset()
    """Fields whose default is what the stage did before it had them. The digest leaves them out while they have it."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers that the job of an entry of this kind records for the report."""
    seeded: ClassVar[bool] = False
    """Whether the result depends on the seed; if not, `step@3` is refused."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that are part of the artefact's identity, defaults resolved."""
        fields = type(self).model_fields
        unchanged = {
            name for name in self.neutral if getattr(self, name) == fields[name].get_default(call_default_factory=True)
        }
        return self.model_dump(mode="json", exclude=self.settings | unchanged)

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
