"""The exports of a configuration: the variants that can be exported, and the facts of their model cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from quantune import exports
from quantune.core.errors import ConfigError, listed, nearest
from quantune.core.recipe import Recipe
from quantune.exports import Export, Exported
from quantune.models import config_values
from quantune.planning import chains, incoming

if TYPE_CHECKING:
    from quantune.planning.config import Config


def requested(config: Config) -> list[tuple[str, str]]:
    """Return variant and format of each export of the configuration; raises ConfigError if one is not so written."""
    pairs = []
    for text in chains.expand(config.exports):
        variant, slash, name = text.rpartition("/")
        if not slash or "/" in variant:
            raise ConfigError(f"exports: '{text}' is not a variant and a format; write '{variant or text}/safetensors'")
        pairs.append((variant, name))
    return pairs


def problems(config: Config, good_models: set[str]) -> Iterator[str]:
    """Yield why an export of the configuration cannot be made."""
    try:
        pairs = requested(config)
    except ConfigError as error:
        yield str(error)
        return
    for variant, name in pairs:
        if variant.split("+")[0] not in set(config.models) - good_models:
            try:
                required(config, variant, name)
            except ConfigError as error:
                yield f"exports: {error}"


def required(config: Config, variant: str, name: str) -> Export:
    """Return the format in which a variant is to be exported; raises ConfigError if it cannot be."""
    formats = exports.by_name()
    if name not in formats:
        raise ConfigError(f"'{name}' is not a format of exports; allowed: {listed(formats)}{nearest(name, formats)}")
    parsed = config.parse(variant)
    if parsed.is_adapter:
        raise ConfigError(
            f"'{variant}' is an adapter, and whole models are exported; {_merge_advice(config, parsed, name)}"
        )
    if problem := formats[name].unsuitable(_exported(config, parsed)):
        raise ConfigError(f"'{variant}' cannot be exported as '{name}': {problem}")
    return formats[name]


def _merge_advice(config: Config, variant: chains.Variant, name: str) -> str:
    """Return what to export in the place of an adapter."""
    merged = f"{variant}+{chains.MERGE}"
    try:
        config.parse(merged)
    except ConfigError as error:
        return f"it cannot be merged ({error})"
    return f"export '{merged}/{name}'"


def _exported(config: Config, variant: chains.Variant) -> Exported:
    """Return the model of a variant as a format sees it."""
    shape, packed = incoming.dense(config.config_of(variant.model))
    widths = config.widths(variant.model)
    for step in variant.effective_steps:
        if step.kind == "quantization":
            recipe = config.quantizations[step.name]
            return Exported(shape, step.name, recipe.unservable(widths), recipe.only_here)
    if packed:
        return Exported(shape, "the model's own", packed[0].unservable(widths))
    if came := config_values.quantized(shape):
        return Exported(shape, came, f"it came quantized by {came}; export 'safetensors'")
    return Exported(shape)


def licences(config: Config, variant: str) -> dict[str, str | None]:
    """Return "section.name" -> licence of the model and the datasets that a variant was made from; None: not known."""
    model = config.parse(variant).model
    entry = config.models[model]
    return {f"models.{model}": entry.licence or _locked(config, model).get("licence")}


def _locked(config: Config, model: str) -> dict[str, Any]:
    """Return the entry of a model in the lock file; empty for a local one."""
    entry = config.models[model]
    if not entry.hub:
        return {}
    return config.locked.model(entry.hub, entry.revision, f"models.{model}.hub", entry.gguf_file)


def card(config: Config, variant: str) -> dict[str, Any]:
    """Return the facts of a model card that the configuration knows, as plain data.

    Returns:
        `configuration`: the keys of the configuration that this variant needs, without absolute paths;
        `evaluations`: name -> recipe with all its fields; `model`: name, repository and commit of the model;
        `steps`: name and kind of each step; `track`.
    """
    parsed = config.parse(variant)
    entry = config.models[parsed.model]
    commit = _locked(config, parsed.model).get("commit")
    names = config.evaluations_of(parsed.model)
    used: dict[str, dict[str, Recipe]] = {"models": {parsed.model: entry}, "datasets": {}}
    for step in parsed.steps:
        if step.kind != chains.MERGE:
            section = f"{step.kind}s"
            used.setdefault(section, {})[step.name] = getattr(config, section)[step.name]
    used["evaluations"] = {name: config.evaluations[name] for name in names}
    for item in [recipe for recipes in list(used.values()) for recipe in recipes.values()]:
        others = (name for splits in getattr(item, "other_data", {}).values() for name in splits)
        for name in filter(None, (getattr(item, "dataset", None), *others)):
            used["datasets"][name] = config.datasets[name]
    sections = {
        section: {name: _written(item) for name, item in items.items()} for section, items in used.items() if items
    }
    return {
        "configuration": {
            "seed": config.seed,
            "deterministic": config.deterministic,
            **sections,
            "variants": [variant],
        },
        "evaluations": {name: config.evaluations[name].model_dump(mode="json") for name in names},
        "model": {"name": parsed.model, "hub": entry.hub, "commit": commit},
        "steps": [{"name": str(step), "kind": step.kind} for step in parsed.steps],
        "quantized": parsed.quantized,
        "track": config.track(parsed.model),
    }


def _written(entry: Recipe) -> dict[str, Any]:
    """Return the fields of an entry that its author wrote; of a path, only the last name: a card is public."""
    fields = entry.model_dump(mode="json", exclude_unset=True)
    if isinstance(fields.get("path"), str):
        fields["path"] = PurePath(fields["path"]).name
    return fields
