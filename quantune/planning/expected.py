"""The published numbers of a configuration: whether the report will have a measured number beside each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantune.artefacts.record import RUN_NUMBERS
from quantune.core.errors import ConfigError, listed, nearest
from quantune.planning import chains

if TYPE_CHECKING:
    from quantune.planning.config import Config, Expected

TRACKS = ["text", "speech"]
MERGED = ("parameters", "relative_distance_from_unmerged")
"""Numbers that the stage `merge` records."""


def problems(config: Config, good_models: set[str]) -> Iterator[str]:
    """Yield the problems with the evaluations, numbers and variants of the published values."""
    try:
        variants = [chains.parse(text, config) for text in chains.expand(config.variants)]
    except ConfigError:
        return  # `checks` yields this error
    listed_names = {str(variant) for variant in variants}
    evaluated = {str(item): item for variant in variants for item in (*variant.ancestors, variant)}
    for number, entry in enumerate(config.expected):
        where = f"expected.{number}"
        if entry.evaluation:
            yield from _evaluation(config, entry, where)
        lacking: dict[str, list[str]] = {}
        for name in entry.values:
            if name not in evaluated:
                hint = f"add it to 'variants' or leave it out{nearest(name, evaluated)}"
                yield f"{where}.values: '{name}' is not one of the variants or their ancestors; {hint}"
                continue
            track = config.track(evaluated[name].model) if evaluated[name].model in good_models else None
            if not entry.evaluation:
                benchmarked = config.benchmark and name in listed_names | set(config.models)
                known = of_variant(config, evaluated[name], ([track] if track else TRACKS) if benchmarked else [])
                if not any(re.fullmatch(re.escape(item).replace(r"\*", r"\d+"), entry.number) for item in known):
                    lacking[name] = known
            elif track and track != getattr(config.evaluations.get(entry.evaluation), "track", track):
                yield f"{where}.values: '{name}' is a {track} model, which '{entry.evaluation}' does not evaluate"
        if lacking:
            allowed = [
                item for item in next(iter(lacking.values())) if all(item in known for known in lacking.values())
            ]
            what = f"a number of {listed(map(repr, lacking))}"
            yield f"{where}.number: '{entry.number}' is not {what}; {_allowed(entry, allowed)}"


def of_variant(config: Config, variant: chains.Variant, benchmarked: list[str]) -> list[str]:
    """Return the names of a variant's own numbers; `*` stands for digits.

    Args:
        config: the configuration.
        variant: one of its variants, or an ancestor of one.
        benchmarked: the tracks whose benchmark the variant may have; none, if it is not benchmarked.
    """
    step = variant.steps[-1] if variant.steps else None
    recipe = getattr(config, f"{step.kind}s", {}).get(step.name) if step else config.models[variant.model]
    names = ["size_bytes", *(recipe.numbers if recipe else MERGED), *RUN_NUMBERS]
    if variant.quantized:
        names.append("bits_per_weight")
    for track in benchmarked:
        names += config.benchmark.names(track)
    return list(dict.fromkeys(names))


def _evaluation(config: Config, entry: Expected, where: str) -> Iterator[str]:
    """Yield the problem with the evaluation of an entry, or with the name of its number."""
    known = [name for name, item in config.evaluations.items() if entry.number or item.numbers]
    if entry.evaluation not in known:
        what = "an evaluation" if entry.number else "an evaluation with a leading number"
        hint = f"allowed: {listed(known)}{nearest(entry.evaluation, known)}"
        yield f"{where}.evaluation: '{entry.evaluation}' is not {what}; {hint}"
    elif entry.number:
        names = [*config.evaluations[entry.evaluation].numbers, *RUN_NUMBERS]
        if entry.number not in names:
            what = f"a number of the evaluation '{entry.evaluation}'"
            yield f"{where}.number: '{entry.number}' is not {what}; {_allowed(entry, names)}"


def _allowed(entry: Expected, names: list[str]) -> str:
    return f"allowed: {listed(names)}{nearest(entry.number, names)}"
