"""Problems of a configuration that its types do not show: names, references, paths, chains. One line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from quantune.core.errors import ConfigError, listed, nearest
from quantune.planning import chains, conversations, expected, exports, references, ship
from quantune.sources import model_sources, origins, selection

if TYPE_CHECKING:
    from quantune.planning.config import Config


SPECIAL = 8
"""Tokens that a tokenizer adds to a text, at most."""


def problems(config: Config) -> list[str]:
    """Return every problem, each once."""
    lines = [*_work(config), *_names(config), *references.problems(config), *_splits(config)]
    unusable = dict(_paths(config))
    lines += [*_training(config), *conversations.unread(config), *unusable.values()]
    good_models = {name for name in config.models if f"models.{name}" not in unusable and config.config_available(name)}
    for check in (_chains, _evaluations, _recordings, _benchmark, expected.problems, exports.problems):
        lines += check(config, good_models)
    return list(dict.fromkeys([*lines, *ship.problems(config.ship, config.evaluations, config.benchmark)]))


def _work(config: Config) -> Iterator[str]:
    """Yield why the work folder can be neither used nor made."""
    work = Path(config.work)
    try:
        nearest_folder = next(path for path in (work, *work.absolute().parents) if os.path.lexists(path))
    except OSError as error:
        yield f"work: '{work}' cannot be used ({error.strerror}); give another folder"
        return
    if not nearest_folder.is_dir():
        yield f"work: '{nearest_folder}' is not a folder, so '{work}' cannot be one; give another folder"
    elif nearest_folder != work and not os.access(nearest_folder, os.W_OK | os.X_OK):
        yield f"work: '{work}' cannot be made: you may not write in '{nearest_folder}'; give another folder"


def _training(config: Config) -> Iterator[str]:
    """Yield keys of fine-tunings that do not go with the rest of the configuration."""
    for name, recipe in config.finetunings.items():
        if recipe.attention == "cudnn" and config.deterministic:
            yield f"finetunings.{name}.attention: cudnn needs 'deterministic: false'; or take 'attention: auto'"
        data = config.datasets.get(recipe.dataset)
        if recipe.embedding_noise and data and data.track == "speech":
            yield f"finetunings.{name}.embedding_noise: a speech model reads audio, not embeddings; leave it out"


def _names(config: Config) -> Iterator[str]:
    seen: dict[str, str] = {}
    for section in ("models", "quantizations", "finetunings"):
        for name in getattr(config, section):
            if name == chains.MERGE:
                yield f"{section}.{name}: '{chains.MERGE}' is reserved for merging adapters; choose another name"
            elif name in seen:
                yield f"{section}.{name}: the name is taken by {seen[name]}.{name}; names must differ"
            seen[name] = section


def _splits(config: Config) -> Iterator[str]:
    for name, dataset in config.datasets.items():
        shares = dataset.shares()
        leaks = getattr(dataset, "remove_leaks", "none")
        if shares and len(shares) < len(dataset.splits):
            yield f"datasets.{name}.splits: give all splits as files, or all as shares"
        if shares and sum(shares.values()) > 1 + 1e-9:
            yield f"datasets.{name}.splits: the shares add up to {sum(shares.values()):g}; at most 1 is allowed"
        for split in dataset.sample:
            if split not in dataset.split_names():
                hint = f"allowed: {listed(dataset.split_names())}{nearest(split, dataset.split_names())}"
                yield f"datasets.{name}.sample: '{split}' is not one of its splits; {hint}"
        if leaks != "none" and "train" not in dataset.split_names():
            yield f"datasets.{name}.remove_leaks: needs a split named 'train' to compare with"


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield "section.name" and the problem with the files that the entry names.

    Hub sources that are not locked yet are skipped: only a target that needs them sends requests to the hub.
    """
    for name in config.models:
        try:
            if config.config_available(name):
                config.track(name)
                model_sources.require_whole(config.models[name], f"models.{name}")
        except ConfigError as error:
            yield f"models.{name}", str(error)
    for name, entry in config.datasets.items():
        shares = entry.shares()
        if shares and len(shares) < len(entry.splits):
            continue
        try:
            if not entry.hub or config.locked.has_dataset(entry.hub, entry.revision, origins.patterns(entry)):
                origins.dataset_files(entry, f"datasets.{name}", config.locked)
        except ConfigError as error:
            yield f"datasets.{name}", str(error)

    for name, entry in config.recordings.items():
        try:
            if not selection.resolve(entry.path, f"recordings.{name}.path").is_file():
                yield f"recordings.{name}", f"recordings.{name}.path: '{entry.path}' is a folder; give an audio file"
        except ConfigError as error:
            yield f"recordings.{name}", str(error)


def _chains(config: Config, good_models: set[str]) -> Iterator[str]:
    try:
        texts = chains.expand(config.variants)
    except ConfigError as error:
        yield f"variants: {error}"
        return
    for text in texts:
        try:
            variant = chains.parse(text, config)
        except ConfigError as error:
            yield f"variants: {error}"
            continue
        if variant.model not in good_models:
            continue
        try:
            config.require_fit(variant)
        except ConfigError as error:
            yield str(error)
        if config.track(variant.model) == "text":
            yield from _lengths(config, variant)
            yield from _generations(config, variant)
            yield from conversations.problems(config, variant)
        yield from _tracks(config, variant)


def _tracks(config: Config, variant: chains.Variant) -> Iterator[str]:
    """Yield the recipes of a chain whose data its model cannot read."""
    for step in variant.steps:
        recipe = getattr(config, f"{step.kind}s", {}).get(step.name)
        read = {other: key for key, splits in getattr(recipe, "other_data", {}).items() for other in splits}
        read |= {getattr(recipe, "dataset", None): "dataset"}
        for dataset, key in read.items():
            if dataset not in config.datasets:
                continue
            try:
                config.require_same_track(dataset, variant.model, f"{step.kind}s.{step.name}.{key}: ")
            except ConfigError as error:
                yield str(error)


def _evaluations(config: Config, good_models: set[str]) -> Iterator[str]:
    """Yield the evaluations whose data are of another track, or whose track no model has."""
    tracks = {config.track(model) for model in good_models}
    for name, entry in config.evaluations.items():
        dataset = config.datasets.get(getattr(entry, "dataset", None))
        if dataset and dataset.track != entry.track:
            where = f"evaluations.{name}.dataset"
            yield f"{where}: '{entry.dataset}' is {dataset.track}; '{entry.kind}' needs {entry.track}"
        elif good_models == set(config.models) and entry.track not in tracks:
            reason = f"'{entry.kind}' is a {entry.track} evaluation"
            models = listed(config.models)
            yield f"evaluations.{name}: {reason}, and none of the models is a {entry.track} model: {models}"


def _most_virtual(config: Config) -> dict[str, int]:
    """Return model -> the most positions that virtual tokens of a listed variant take."""
    taken: dict[str, int] = {}
    with suppress(ConfigError):  # `_chains` yields the problem
        taking = any(recipe.taken_positions for recipe in config.finetunings.values())
        for text in chains.expand(config.variants) if taking else ():
            with suppress(ConfigError):
                variant = chains.parse(text, config)
                taken[variant.model] = max(taken.get(variant.model, 0), _virtual(config, variant))
    return taken


def _recordings(config: Config, good_models: set[str]) -> Iterator[str]:
    """Yield the recordings that no model can transcribe."""
    if good_models == set(config.models) and "speech" not in map(config.track, good_models):
        for name in config.recordings:
            yield f"recordings.{name}: none of the models is a speech model: {listed(config.models)}"


def _lengths(config: Config, variant: chains.Variant) -> Iterator[str]:
    """Yield the recipes of a chain, and the evaluations, whose sequences are longer than the model allows."""
    positions, virtual = config.positions(variant.model) or float("inf"), _virtual(config, variant)
    taken = f", of which '{variant}' takes {virtual} for virtual tokens" if virtual else ""
    positions -= virtual
    steps = {step.name for step in variant.steps}
    for section in ("quantizations", "finetunings", "evaluations"):
        for name, entry in getattr(config, section).items():
            length = getattr(entry, "length", 0)
            if length > positions and (section == "evaluations" or name in steps):
                limit = f"the model '{variant.model}' has {positions + virtual} positions{taken}"
                yield f"{section}.{name}.length: {length} is too long, {limit}; allowed: up to {positions}"


def _virtual(config: Config, variant: chains.Variant) -> int:
    """Return the positions that virtual tokens of a variant take."""
    names = [step.name for step in variant.effective_steps if step.kind == "finetuning"]
    return sum(config.finetunings[name].taken_positions for name in names)


def _generations(config: Config, variant: chains.Variant) -> Iterator[str]:
    """Yield the generations whose longest prompt and new tokens are more than the positions a variant leaves them."""
    model = variant.model
    positions = (config.positions(model) or 0) - _virtual(config, variant)
    for name, entry in config.evaluations.items() if config.positions(model) else ():
        if entry.kind != "generation":
            continue
        longest = _longest_prompt(config, model, entry.prompts, positions - entry.max_new_tokens)
        if longest + entry.max_new_tokens > positions:
            reason = (
                f"{entry.max_new_tokens} after a prompt of {longest} exceeds the {positions} positions of '{model}'"
            )
            allowed = f"allowed: up to {positions - longest}" if longest < positions else "shorten the prompt"
            yield f"evaluations.{name}.max_new_tokens: {reason}; {allowed}"


def _longest_prompt(config: Config, model: str, prompts: list[str], room: int) -> int:
    """Return the tokens of the longest prompt; 1 if all surely have room, or if the tokenizer is not on this machine.

    A token has at least one byte, so the tokenizer is loaded only for prompts of many bytes.
    """
    entry = config.models[model]
    if room <= 1 or entry.hub or max(len(prompt.encode()) for prompt in prompts) + SPECIAL <= room:
        return 1
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(selection.resolve(entry.path, "path") / "tokenizer.json"))
    except Exception:  # the class that tokenizers raises; the job checks the lengths too
        return 1
    return max(len(tokenizer.encode(prompt).ids) for prompt in prompts)


def _benchmark(config: Config, good_models: set[str]) -> Iterator[str]:
    """Yield the models that have too few positions for the prompts and new tokens of the benchmark."""
    virtual = _most_virtual(config) if config.benchmark else {}
    for model in sorted(good_models) if config.benchmark else []:
        track, new_tokens, taken = config.track(model), config.benchmark.new_tokens, virtual.get(model, 0)
        positions, longest = config.positions(model), config.benchmark.longest(track)
        if positions is None or longest + taken <= positions:
            continue
        limit = f"the model '{model}' has {positions} positions"
        limit += f", of which a variant takes {taken} for virtual tokens" if taken else ""
        positions -= taken
        if track == "speech":
            most = positions - (longest - new_tokens)
            yield f"benchmark.new_tokens: {new_tokens} is too many, {limit}; allowed for it: up to {most}"
        else:
            reason = f"{longest} tokens with 'new_tokens', and {limit}"
            yield f"benchmark.prompt_lengths: the longest makes {reason}; lower one of the two"
