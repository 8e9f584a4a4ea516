"""The configuration, typed: every key described, everything checked before a job starts."""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from quantune import chains, checks, evaluations, finetunings, quantizations, sources
from quantune.benchmarking import Benchmark
from quantune.errors import ConfigError, QuantuneError, listed
from quantune.expected import Expected
from quantune.explain import explained
from quantune.lock import Lock
from quantune.recipe import Entry, Name, Recipe


def union(recipes: list[type[Recipe]], tag: str) -> Any:
    """Return the type of an entry that is one of the recipes, told apart by the field `tag`."""
    joined = recipes[0]
    for recipe in recipes[1:]:
        joined = joined | recipe
    return Annotated[joined, Field(discriminator=tag)] if len(recipes) > 1 else joined


def _checked(pattern: str, wanted: str) -> AfterValidator:
    """Return a check that a text matches a pattern; the error says what is wanted."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"'{value}' is not {wanted}")
        return value

    return AfterValidator(check)


OWNED = r"[\w-][\w.-]*/[\w-][\w.-]*"
Repository = Annotated[str, _checked(OWNED, "a repository on the hub; give owner/name, such as facebook/opt-125m")]
FileName = Annotated[str, _checked(r"[\w-][\w. -]*", "a file name; give one without folders, such as train.jsonl")]
Url = Annotated[str, _checked(r"https?://\S+", "a URL; give one that begins with https:// or http://")]
Sha256 = Annotated[str, _checked(r"[0-9a-f]{64}", "a SHA-256; give 64 digits 0-9, a-f, as `sha256sum` prints them")]


class Outside(Recipe):
    """Something from outside, given in exactly one of several ways; identified by its content, never by its place."""

    ways: ClassVar[tuple[str, ...]] = ("path", "hub")

    path: str | None = None
    """File or folder; may hold environment variables."""
    hub: Repository | None = None
    """Repository on the Hugging Face hub, `owner/name`; `sources.lock.json` pins its commit and files."""
    revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit on the hub."""

    @model_validator(mode="after")
    def _one_way(self):
        given = [way for way in self.ways if getattr(self, way)]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none"
            raise ValueError(f"give exactly one of {listed(self.ways)}; {found}")
        if "revision" in self.model_fields_set and not self.hub:
            raise ValueError("'revision' belongs to 'hub'; leave it out")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core, handler):
        """Say in the schema too that exactly one way is given."""
        found = handler(core)
        handler.resolve_ref_schema(found)["oneOf"] = [{"required": [way]} for way in cls.ways]
        return found


class Model(Outside):
    """Where a model comes from."""

    settings: ClassVar[frozenset[str]] = frozenset({"path", "hub", "revision"})

    path: str | None = None
    """Folder in Hugging Face layout (config.json, *.safetensors, tokenizer); may hold environment variables."""


class Download(Entry):
    """A file on the web."""

    url: Url
    """Where it is: `https://...`."""
    sha256: Sha256
    """SHA-256 of its content, as `sha256sum` prints it."""


def _share(value: str | list[str] | float) -> str | list[str] | float:
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(f"a share is above 0 and at most 1, found {value:g}")
    return value


Share = Annotated[float, WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1})]
Part = Annotated[str | list[str] | Share, AfterValidator(_share)]


class Dataset(Outside):
    """Where text comes from, and how it is cut into documents and splits."""

    ways: ClassVar[tuple[str, ...]] = ("path", "hub", "urls")
    settings: ClassVar[frozenset[str]] = frozenset({"path", "hub", "revision", "urls"})

    path: str | None = None
    """File, or folder of files; may hold environment variables."""
    urls: dict[FileName, Download] = {}
    """File name -> where it is downloaded from, and its SHA-256."""
    format: Literal["text", "json", "csv", "tsv", "parquet"] | None = None
    """Format of the files (json: also JSON lines); null: by their ending."""
    column: str = "text"
    """Column that holds the text, for every format but plain text."""
    document: Literal["file", "paragraph", "line"] = "paragraph"
    """What is one document in plain text; paragraphs are separated by blank lines."""
    first: int | None = Field(default=None, gt=0)
    """Only the first so many documents of each file; null: all."""
    join: str | None = None
    """Make one document of each file, its documents joined by this, empty ones too, before anything is tokenized:
    "\\n\\n" is the protocol of the GPTQ paper for WikiText-2; null: they stay apart, and empty ones are dropped."""
    splits: dict[Name, Part] = {}
    """Split -> its file names or patterns (`*.jsonl`) below `path`, in the repository or among `urls`; or split -> its
    share of the documents, drawn with `seed`; empty: all documents are the split "train"."""
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
    lock: str = "sources.lock.json"
    """File that pins what comes from the hub; commit it. `make update-lock` moves it on."""
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
    expected: list[Expected] = []
    """Published perplexities that the report shows beside the measured ones."""
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
        return "speech" if self.config_of(model).get("model_type") == "whisper" else "text"

    def positions(self, model: str) -> int | None:
        """Return the longest sequence that a model was made for, if its config.json tells."""
        return self.config_of(model).get("max_position_embeddings")

    @cached_property
    def locked(self) -> Lock:
        """The lock file."""
        return Lock(self.lock)

    def known(self, model: str) -> bool:
        """Return whether a model's config.json can be read without asking the hub."""
        entry = self.models[model]
        return not entry.hub or self.locked.has_model(entry.hub, entry.revision)

    def config_of(self, model: str) -> dict[str, Any]:
        """Return a model's config.json."""
        entry, key = self.models[model], f"models.{model}"
        if entry.hub:
            return self.locked.model(entry.hub, entry.revision, f"{key}.hub")["config"]
        path = sources.model_files(sources.resolve(entry.path, f"{key}.path"), f"{key}.path")["config.json"]
        try:
            return sources.model_config(path, f"'{path.parent}'")
        except QuantuneError as error:
            raise ConfigError(f"{key}.path: {error}") from None

    def require_track(self, model: str, evaluation: str) -> None:
        """Raise ConfigError if an evaluation is not one of the model's track."""
        entry, track = self.evaluations[evaluation], self.track(model)
        if entry.track != track:
            what = f"'{entry.kind}' is a {entry.track} evaluation"
            raise ConfigError(f"evaluations.{evaluation}: {what}, and the model '{model}' is a {track} model")

    def _widths(self, model: str) -> set[int]:
        """Return the input widths of the model's linear layers, as far as its config.json tells."""
        config = self.config_of(model)
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
