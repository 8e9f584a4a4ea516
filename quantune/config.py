"""The configuration, typed: every key described, everything checked before a job starts."""

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationError

from quantune import chains, evaluations, finetunings, quantizations, sources
from quantune.errors import ConfigError, listed, nearest
from quantune.recipe import NAME, Entry, Name, Recipe


def union(recipes: list[type[Recipe]], tag: str) -> Any:
    """Return the type of an entry that is one of the recipes, told apart by the field `tag`."""
    joined = recipes[0]
    for recipe in recipes[1:]:
        joined = joined | recipe
    return Annotated[joined, Field(discriminator=tag)] if len(recipes) > 1 else joined


class Model(Recipe):
    """Where a model comes from."""

    settings: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str
    """Folder in Hugging Face layout (config.json, *.safetensors, tokenizer); may hold environment variables."""


class Dataset(Recipe):
    """Where text comes from, and how it is cut into documents and splits."""

    settings: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str
    """File, or folder of files; may hold environment variables."""
    format: Literal["text", "json", "csv", "tsv", "parquet"] | None = None
    """Format of the files (json: also JSON lines); null: by their ending."""
    column: str = "text"
    """Column that holds the text, for every format but plain text."""
    document: Literal["file", "paragraph", "line"] = "paragraph"
    """What is one document in plain text; paragraphs are separated by blank lines."""
    splits: dict[Name, str | list[str] | Annotated[float, Field(gt=0, le=1)]] = {}
    """Split -> its file names or patterns (`*.jsonl`) below `path`, or split -> its share of the documents, drawn with
    `seed`; empty: all documents are the split "train"."""
    seed: int = 0
    """Seed of the draw, for splits given as shares."""
    remove_leaks: Literal["none", "exact", "near"] = "none"
    """Drop held-out documents that repeat one of the split "train": to the letter, or nearly (half of the three-word
    runs in common)."""

    def split_names(self) -> list[str]:
        """Return the names of the splits."""
        return list(self.splits) or ["train"]

    def shares(self) -> dict[str, float] | None:
        """Return split -> share, or None if splits are files."""
        numbers = {split: value for split, value in self.splits.items() if isinstance(value, float)}
        return numbers or None


Quantization = union(quantizations.methods(), "method")
Finetuning = union(finetunings.methods(), "method")
Evaluation = union(evaluations.kinds(), "kind")


class Config(Entry):
    """A question to quantune: models, data, steps, and the variants to compare."""

    work: str = "work"
    """Folder for everything that is made."""
    title: str = "quantune"
    """Title of the report."""
    seed: int = 0
    """Seed of every step that uses one; `step@3` in a variant gives that step its own."""
    deterministic: bool = True
    """Use deterministic algorithms only: the same bytes from the same recipe on the same machine."""
    threads: int = Field(default=1, gt=0)
    """CPU threads of each job that computes; another number can change the last bits of results made on a CPU."""
    models: dict[Name, Model] = Field(min_length=1)
    """Name -> model that chains begin with."""
    datasets: dict[Name, Dataset] = {}
    """Name -> dataset."""
    quantizations: dict[Name, Quantization] = {}
    """Name -> quantization step."""
    finetunings: dict[Name, Finetuning] = {}
    """Name -> fine-tuning step."""
    evaluations: dict[Name, Evaluation] = {}
    """Name -> evaluation, made of every variant and of its ancestors."""
    variants: list[str] = Field(min_length=1)
    """Chains to compare, braces expanded as a shell would: `opt-2m+{rtn-w4,nf4}+lora`."""

    def parse(self, variant: str) -> chains.Variant:
        """Read a variant's name; raises ConfigError if its chain cannot work."""
        parsed = chains.parse(variant, self)
        self.require_fit(parsed)
        return parsed

    @cached_property
    def listed(self) -> list[chains.Variant]:
        """The variants asked for, braces expanded."""
        return [self.parse(name) for name in chains.expand(self.variants)]

    @cached_property
    def evaluated(self) -> list[chains.Variant]:
        """The variants asked for and their ancestors: a step's effect is measured against what it was applied to."""
        found = {}
        for variant in self.listed:
            for item in [*variant.ancestors, variant]:
                found[str(item)] = item
        order = list(self.models)
        return sorted(found.values(), key=lambda item: order.index(item.model))

    def require_fit(self, variant: chains.Variant) -> None:
        """Raise ConfigError if a quantization's grid does not fit the layers of the variant's model."""
        widths = self._widths(variant.model)
        for step, kind in zip(variant.steps, variant.kinds, strict=True):
            if kind == "quantization" and (problem := self.quantizations[step.name].misfit(widths)):
                raise ConfigError(f"quantizations.{step.name}.group_size: {problem} (variant '{variant}')")

    def track(self, model: str) -> Literal["text", "speech"]:
        """Return which track a model belongs to, from its config.json."""
        return "speech" if self._model_config(model).get("model_type") == "whisper" else "text"

    def _model_config(self, model: str) -> dict[str, Any]:
        key = f"models.{model}.path"
        files = sources.model_files(sources.resolve(self.models[model].path, key), key)
        return json.loads(files["config.json"].read_text())

    def _widths(self, model: str) -> set[int]:
        """Return the input widths of the model's linear layers, as far as its config.json tells."""
        config = self._model_config(model)
        keys = ("hidden_size", "d_model", "ffn_dim", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
        return {config[key] for key in keys if isinstance(config.get(key), int)}


def load(raw: dict[str, Any], name: str = "config") -> Config:
    """Check a configuration.

    Args:
        raw: the parsed YAML.
        name: what to call it in errors, such as the file's path.

    Raises:
        ConfigError: with one line for each problem: the key's path, what is wrong, what is allowed.
    """
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(item, raw) for item in error.errors()]
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in dict.fromkeys(problems))) from None
    problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return config


def _problems(config: Config):
    """Yield what is wrong beyond the types: names, references, chains."""
    yield from _name_problems(config)
    yield from _reference_problems(config)
    for section, key in ((config.models, "models"), (config.datasets, "datasets")):
        for name, entry in section.items():
            try:
                path = sources.resolve(entry.path, f"{key}.{name}.path")
                if key == "models":
                    sources.model_files(path, f"{key}.{name}.path")
                else:
                    sources.split_files(path, entry.splits, f"{key}.{name}")
            except ConfigError as error:
                yield str(error)
                return
    for text in chains.expand(config.variants):
        try:
            variant = config.parse(text)
        except ConfigError as error:
            yield f"variants: {error}"
            continue
        for name, evaluation in config.evaluations.items():
            if evaluation.track != config.track(variant.model):
                yield (
                    f"evaluations.{name}: '{evaluation.kind}' is a {evaluation.track} evaluation, and '{variant.model}'"
                    f" (variant '{variant}') is a {config.track(variant.model)} model"
                )


def _name_problems(config: Config):
    seen: dict[str, str] = {}
    for section in ("models", "quantizations", "finetunings"):
        for name in getattr(config, section):
            if name == chains.MERGE:
                yield f"{section}.{name}: '{chains.MERGE}' is reserved for merging adapters; choose another name"
            elif name in seen:
                yield f"{section}.{name}: the name is taken by {seen[name]}.{name}; names must differ"
            seen[name] = section


def _reference_problems(config: Config):
    for section, entries in (("finetunings", config.finetunings), ("evaluations", config.evaluations)):
        for name, entry in entries.items():
            for field, value in entry.model_dump().items():
                if value is None or not (field == "dataset" or field.endswith("split")):
                    continue
                known = config.datasets if field == "dataset" else None
                if known is None and entry.dataset in config.datasets:
                    known = config.datasets[entry.dataset].split_names()
                if known is not None and value not in known:
                    what = "dataset" if field == "dataset" else f"split of the dataset '{entry.dataset}'"
                    hint = f"allowed: {listed(known)}{nearest(value, known)}"
                    yield f"{section}.{name}.{field}: '{value}' is not a {what}; {hint}"
    for name, dataset in config.datasets.items():
        kinds = {isinstance(value, float) for value in dataset.splits.values()}
        if len(kinds) > 1:
            yield f"datasets.{name}.splits: give all splits as files, or all as shares"
        shares = dataset.shares()
        if shares and sum(shares.values()) > 1 + 1e-9:
            yield f"datasets.{name}.splits: the shares add up to {sum(shares.values()):g}; at most 1 is allowed"
        if dataset.remove_leaks != "none" and "train" not in dataset.split_names():
            yield f"datasets.{name}.remove_leaks: needs a split named 'train' to compare with"


def _explain(error: dict[str, Any], raw: dict[str, Any]) -> str:
    """Return one line for a pydantic error: path, what is wrong, what is allowed."""
    tags = {tag for recipes in (quantizations.methods(), finetunings.methods()) for tag in _tags(recipes, "method")}
    tags |= _tags(evaluations.kinds(), "kind")
    path = [part for index, part in enumerate(error["loc"]) if not (index == 2 and part in tags)]
    while path and isinstance(path[-1], str) and ("[" in path[-1] or path[-1] in ("str", "float", "[key]")):
        path.pop()
    where, kind, context = ".".join(map(str, path)), error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_keys(error["loc"], raw)
        return f"{where}: unknown key{nearest(str(path[-1]), known)}; allowed: {listed(known)}"
    if kind == "literal_error":
        return f"{where}: {error['input']!r} is not allowed; allowed: {context['expected']}"
    if kind == "missing":
        return f"{where}: is missing; {_description(error['loc'], raw)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        allowed = sorted(_tags(evaluations.kinds() if tag == "kind" else _recipes(path[0]), tag))
        if kind == "union_tag_not_found":
            return f"{where}.{tag}: is missing; allowed: {listed(allowed)}"
        hint = nearest(context["tag"], allowed)
        return f"{where}.{tag}: '{context['tag']}' is not known; allowed: {listed(allowed)}{hint}"
    if kind == "string_pattern_mismatch":
        return f"{where}: '{error['input']}' is not a name; names are lower-case letters, digits, '.' and '-' ({NAME})"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}, found {error['input']!r:.60}"


def _recipes(section: str) -> list[type[Recipe]]:
    return quantizations.methods() if section == "quantizations" else finetunings.methods()


def _tags(recipes: list[type[Recipe]], tag: str) -> set[str]:
    return {value for recipe in recipes for value in get_args(recipe.model_fields[tag].annotation)}


def _entry_type(location: tuple, raw: dict[str, Any]) -> type[Entry]:
    """Return the typed entry that a location in the raw configuration lies in."""
    kinds = {"models": [Model], "datasets": [Dataset], "quantizations": quantizations.methods()}
    kinds |= {"finetunings": finetunings.methods(), "evaluations": evaluations.kinds()}
    if len(location) < 3 or location[0] not in kinds:
        return Config
    options = kinds[location[0]]
    tag = "kind" if location[0] == "evaluations" else "method"
    chosen = (raw[location[0]].get(location[1]) or {}).get(tag)
    return next((item for item in options if len(options) == 1 or chosen in _tags([item], tag)), options[0])


def _known_keys(location: tuple, raw: dict[str, Any]) -> list[str]:
    return list(_entry_type(location, raw).model_fields)


def _description(location: tuple, raw: dict[str, Any]) -> str:
    field = _entry_type(location, raw).model_fields.get(str(location[-1]))
    return (field.description or "").split(";")[0] if field else ""


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def write_schema(path: Path) -> None:
    """Write the JSON schema (`make schema`)."""
    path.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
