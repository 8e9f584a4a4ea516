"""The configuration, typed: every key described, everything checked before a job starts."""

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, WithJsonSchema

from quantune import chains, checks, evaluations, finetunings, quantizations, sources
from quantune.benchmarking import Benchmark
from quantune.errors import ConfigError
from quantune.explain import explained
from quantune.recipe import Entry, Name, Recipe


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


def _share(value: str | list[str] | float) -> str | list[str] | float:
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(f"a share is above 0 and at most 1, found {value:g}")
    return value


Share = Annotated[float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1})]
Part = Annotated[str | list[str] | Share, AfterValidator(_share)]


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
    splits: dict[Name, Part] = {}
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


SECTIONS: dict[str, tuple[str | None, list[type[Recipe]]]] = {
    "models": (None, [Model]),
    "datasets": (None, [Dataset]),
    "quantizations": ("method", quantizations.methods()),
    "finetunings": ("method", finetunings.methods()),
    "evaluations": ("kind", evaluations.kinds()),
}
"""Section -> the field that tells its recipes apart, and the recipes."""
Quantization = union(quantizations.methods(), "method")
Finetuning = union(finetunings.methods(), "method")
Evaluation = union(evaluations.kinds(), "kind")


class Config(Entry):
    """A question to quantune: models, data, steps, and the variants to compare."""

    work: str = Field(default="work", pattern=r"^\S+[^/\s]$")
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
    benchmark: Benchmark | None = None
    """How speed and memory are measured, of the variants asked for and of their models; without it, they are not."""
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

    @cached_property
    def benchmarked(self) -> list[str]:
        """The variants whose speed and memory are measured: those asked for, and their models to compare with."""
        asked = {variant.model for variant in self.listed} | {str(variant) for variant in self.listed}
        return [str(variant) for variant in self.evaluated if self.benchmark and str(variant) in asked]

    def require_fit(self, variant: chains.Variant) -> None:
        """Raise ConfigError if a quantization's grid does not fit the layers of the variant's model."""
        widths = self._widths(variant.model)
        for step, kind in zip(variant.steps, variant.kinds, strict=True):
            if kind == "quantization" and (problem := self.quantizations[step.name].misfit(widths)):
                raise ConfigError(f"quantizations.{step.name}{problem}")

    def track(self, model: str) -> Literal["text", "speech"]:
        """Return which track a model belongs to, from its config.json."""
        return "speech" if self._model_config(model).get("model_type") == "whisper" else "text"

    def positions(self, model: str) -> int | None:
        """Return the longest sequence that a model was made for, if its config.json tells."""
        return self._model_config(model).get("max_position_embeddings")

    def _model_config(self, model: str) -> dict[str, Any]:
        key = f"models.{model}.path"
        path = sources.model_files(sources.resolve(self.models[model].path, key), key)["config.json"]
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{key}: '{path}' is not JSON ({error})") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{key}: '{path}' does not hold a JSON object: not a config.json of transformers")
        return found

    def _widths(self, model: str) -> set[int]:
        """Return the input widths of the model's linear layers, as far as its config.json tells."""
        config = self._model_config(model)
        keys = ("hidden_size", "d_model", "ffn_dim", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
        return {config[key] for key in keys if isinstance(config.get(key), int)}


def ordered(kind: Any, order: dict[str, Any]) -> tuple[Any, int]:
    """Return the recipe of a job's order, of the type `Quantization`, `Finetuning` or `Evaluation`, and its seed."""
    keys = {**order["recipe"], **order["options"]["settings"]}
    seed = keys.pop("seed", 0)
    return TypeAdapter(kind).validate_python(keys), seed


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
        problems = list(checks.problems(config))
    except ValidationError as error:
        problems = explained(error, raw, SECTIONS, Config)
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return config


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, for editors."""
    found = Config.model_json_schema()
    for section in found["properties"].values():
        if "patternProperties" in section:
            section["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def write_schema(path: Path) -> None:
    """Write the JSON schema (`make schema`)."""
    path.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
