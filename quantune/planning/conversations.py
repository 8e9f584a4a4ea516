"""Problems of a configuration with conversations: losses on responses, packing, models without a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantune.core.errors import QuantuneError, listed
from quantune.models import stored
from quantune.models.foreign import gguf_files
from quantune.planning.chains import Variant
from quantune.sources import model_sources
from quantune.sources.chat_templates import TEMPLATES

if TYPE_CHECKING:
    from quantune.planning.config import Config

NEVER_APART = ("bloom",)
"""Types of models that let packed documents attend to one another. Others are tried by the job."""


def unread(config: Config) -> Iterator[str]:
    """Yield the trainings on texts or speech whose loss is to count responses, and speech models with a template."""
    for name, entry in config.finetunings.items():
        names = (entry.dataset, *entry.mix)
        chats = [getattr(config.datasets.get(item), "chat", None) for item in names]
        if entry.loss_on and not any(chats) and all(item in config.datasets for item in names):
            problem = f"'{entry.loss_on}' needs conversations, and {_quoted(names)} without the key 'chat'"
            yield f"finetunings.{name}.loss_on: {problem}; leave it out"


def problems(config: Config, variant: Variant) -> Iterator[str]:
    """Yield what a text variant cannot do with the conversations that it is trained or evaluated on."""
    kind = config.config_of(variant.model).get("model_type")
    for step in variant.steps if kind in NEVER_APART else ():
        entry = config.finetunings.get(step.name)
        if entry and entry.packing and (entry.packing == "separate" or _chats(config, entry)):
            problem = f"a model of the type '{kind}' cannot keep packed documents apart"
            yield f"finetunings.{step.name}.packing: {problem}; set 'packing: false'"
    if _has_template(config, variant.model):
        return
    recipes = {f"evaluations.{name}": entry for name, entry in config.evaluations.items()}
    for step in variant.steps:
        recipes |= {f"{step.kind}s.{step.name}": getattr(config, f"{step.kind}s", {}).get(step.name)}
    for key, entry in recipes.items():
        if entry and (_chats(config, entry) or getattr(entry, "chat", False)):
            problem = f"'{key}' needs a chat template, and the model has none"
            yield f"models.{variant.model}.chat_template: {problem}; give one of {listed(TEMPLATES)}, or Jinja"
            return


def _chats(config: Config, entry: Any) -> bool:
    """Return whether a recipe reads conversations."""
    others = [name for splits in getattr(entry, "other_data", {}).values() for name in splits]
    names = (getattr(entry, "dataset", None), *others)
    return any(getattr(config.datasets.get(name), "chat", None) for name in names)


def _quoted(names: tuple[str, ...]) -> str:
    """Return names and their verb: "'a' is", "'a' and 'b' are"."""
    return f"{' and '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'}"


def _has_template(config: Config, model: str) -> bool:
    """Return whether a model has a chat template; true if its files are not on this machine."""
    entry = config.models[model]
    if entry.chat_template or entry.hub:
        return True
    try:
        files = model_sources.local_files(entry, f"models.{model}")
        if stored.CONFIG not in files:
            return bool(gguf_files.read(next(iter(files.values()))).metadata.get("tokenizer.chat_template"))
        if {"chat_template.jinja", "chat_template.json"} & files.keys():
            return True
        settings = files.get("tokenizer_config.json")
        return settings is not None and bool(json.loads(settings.read_text()).get("chat_template"))
    except (QuantuneError, OSError, ValueError, AttributeError):
        return True  # the check of the model's files says why
