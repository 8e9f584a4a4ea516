"""The types of the configuration: every key has a description, every value is checked before a job starts."""

import os
import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from quantune import evaluations, finetunings, quantizations
from quantune.core.errors import ConfigError, listed
from quantune.core.recipe import Entry, Name, NonEmpty, Recipe, Seed
from quantune.evaluations.benchmark import Benchmark
from quantune.models import architecture, config_values, layer_names
from quantune.models.architecture import SPEECH
from quantune.planning import chains
from quantune.planning.ship import Ship
from quantune.sources import model_sources
from quantune.sources.entries import AnyDataset, Model, Speech, Text
from quantune.sources.lock import Lock
from quantune.sources.recordings import Recording


def union(recipes: list[type[Recipe]], tag: str) -> Any:
    """Return the type of an entry that is one of the recipes; the field `tag` selects the recipe."""
    joined = recipes[0]
    for recipe in recipes[1:]:
        joined = joined | recipe
    return Annotated[joined, Field(discriminator=tag)] if len(recipes) > 1 else joined


SECTIONS: dict[str, tuple[str | None, list[type[Recipe]]]] = {
    "models": (None, [Model]),
    "datasets": ("layout", [Text, Speech]),
    "quantizations": ("method", quantizations.methods()),
    "finetunings": ("method", finetunings.methods()),
    "evaluations": ("kind", evaluations.kinds()),
    "recordings": (None, [Recording]),
}
"""Section -> the field that selects one of its recipes, and the recipes."""
AnyQuantization = union(quantizations.methods(), "method")
AnyFinetuning = union(finetunings.methods(), "method")
AnyEvaluation = union(evaluations.kinds(), "kind")


class Expected(Entry):
    """Published values of one number, for some variants."""

    source: NonEmpty
    """Publication that they are from; the report shows its name beside them."""
    evaluation: Name | None = None
    """Evaluation that follows the source's protocol; null: `number` is one of the variant itself."""
    number: NonEmpty | None = None
    """Name of the number, as in the report's metrics.json, such as `size_bytes`, `seconds` or `train_loss.step20` of a
    variant, `wer_raw` of an evaluation; null: the evaluation's leading number, perplexity or error rate."""
    values: dict[str, Annotated[float, Field(gt=0, le=1e18)]] = Field(min_length=1)
    """Variant -> value, rates as shares, sizes in bytes; each is one of `variants` or of their ancestors."""

    @model_validator(mode="after")
    def _names_a_number(self):
        if not self.evaluation and not self.number:
            raise ValueError("give 'evaluation', 'number', or both")
        return self


def _work(path: str) -> str:
    """Refuse a work folder that Snakemake cannot use in its rules, or that is not below a named folder."""
    plain = os.path.normpath(path)
    if not path or re.search(r"[\s{}]", path) or plain in (".", "/", "//") or ".." in path.split("/"):
        raise ValueError(
            f"'{path}' cannot be the work folder; give one without spaces, braces and '..', such as 'work'"
        )
    if max(len(part.encode()) for part in path.split("/")) > 255 or len(path.encode()) > 1000:
        raise ValueError("the path is too long; a name has at most 255 bytes, the whole path at most 1,000")
    if path != plain:
        raise ValueError(f"write '{path}' as '{plain}'")
    return path


class Config(Entry):
    """A question to quantune: models, data, steps, and the variants to compare."""

    work: Annotated[str, AfterValidator(_work)] = "work"
    """Folder of all results: without spaces, braces and '..'."""
    title: str = "quantune"
    """Title of the report."""
    seed: Seed = 0
    """Seed of every step that uses one; `step@3` in a variant gives that step seed 3."""
    deterministic: bool = True
    """Use deterministic algorithms only: the same bytes from the same recipe on the same machine."""
    threads: int = Field(default=1, gt=0, le=4096)
    """CPU threads of each job that computes; another number can change the last bits of results made on a CPU."""
    lock: str = "sources.lock.json"
    """File that pins the versions of hub sources; commit it. `make update-lock` updates it."""
    models: dict[Name, Model] = Field(min_length=1)
    """Name -> model that chains begin with."""
    datasets: dict[Name, AnyDataset] = {}
    """Name -> dataset."""
    quantizations: dict[Name, AnyQuantization] = {}
    """Name -> quantization step."""
    finetunings: dict[Name, AnyFinetuning] = {}
    """Name -> fine-tuning step."""
    evaluations: dict[Name, AnyEvaluation] = {}
    """Name -> evaluation; every variant and its ancestors are evaluated."""
    benchmark: Benchmark | None = None
    """Settings of the speed and memory measurement of the listed variants and their models; none without this key."""
    ship: Ship | None = None
    """Limits of the variant to ship, with which the report begins; without them it offers three choices."""
    expected: list[Expected] = []
    """Published numbers that the report shows beside the measured ones."""
    recordings: dict[Name, Recording] = {}
    """Name -> recording that `snakemake transcripts` transcribes with every speech variant; not in the report."""
    exports: list[NonEmpty] = []
    """Variant and format of what `snakemake exports` makes for other programs, braces expanded as in `variants`:
    `opt-2m+lora+merge/{safetensors,gguf-q8-0}`."""
    variants: list[NonEmpty] = Field(min_length=1)
    """Chains to compare, braces expanded as a shell would: `opt-2m+{rtn-w4,nf4}+lora`."""

    def parse(self, variant: str) -> chains.Variant:
        """Return the variant with this name; raises ConfigError if its chain cannot work."""
        if variant not in self._parsed:
            parsed = chains.parse(variant, self)
            self.require_fit(parsed)
            self._parsed[variant] = parsed
        return self._parsed[variant]

    @cached_property
    def _parsed(self) -> dict[str, chains.Variant]:
        return {}

    @cached_property
    def listed(self) -> list[chains.Variant]:
        """The variants of the configuration, braces expanded."""
        return [self.parse(name) for name in chains.expand(self.variants)]

    @cached_property
    def evaluated(self) -> list[chains.Variant]:
        """The listed variants and their ancestors: the effect of a step is measured against its parent."""
        variants = {}
        for variant in self.listed:
            for item in [*variant.ancestors, variant]:
                variants[str(item)] = item
        order = list(self.models)
        return sorted(variants.values(), key=lambda item: order.index(item.model))

    @cached_property
    def benchmarked(self) -> list[str]:
        """The variants whose speed and memory are measured: those listed, and their models for comparison."""
        names = {variant.model for variant in self.listed} | {str(variant) for variant in self.listed}
        return [str(variant) for variant in self.evaluated if self.benchmark and str(variant) in names]

    def require_fit(self, variant: chains.Variant) -> None:
        """Raise ConfigError if a step does not support the variant's model, or does not fit its layers."""
        shape = self.config_of(variant.model)
        if problem := chains.unfit_for_quantized(variant, self, config_values.quantized(shape)):
            raise ConfigError(f"variant '{variant}': {problem}")
        for step in variant.steps:
            recipe = getattr(self, f"{step.kind}s", {}).get(step.name)
            misfit = self._misfit(recipe, variant.model) if step.kind == "quantization" else None
            if recipe and (problem := recipe.unsuitable(shape) or misfit):
                raise ConfigError(f"{step.kind}s.{step.name}{problem}")

    def track(self, model: str) -> Literal["text", "speech"]:
        """Return the track of a model, from its config.json."""
        return "speech" if self.config_of(model).get("model_type") in SPEECH else "text"

    def evaluations_of(self, model: str) -> list[str]:
        """Return the evaluations of the model's track."""
        track = self.track(model)
        return [name for name, entry in self.evaluations.items() if entry.track == track]

    @property
    def transcribed(self) -> list[tuple[str, str]]:
        """Variant and recording of every transcript to make; raises ConfigError without recordings."""
        if not self.recordings:
            how = "snakemake transcripts --config 'recordings={talk: {path: talk.mp3, language: en}}'"
            raise ConfigError(f"the section 'recordings' is missing; write it, or give it on the command line: {how}")
        variants = [str(variant) for variant in self.listed if self.track(variant.model) == "speech"]
        return [(variant, recording) for variant in variants for recording in self.recordings]

    def positions(self, model: str) -> int | None:
        """Return the largest number of tokens in a sequence of a model; None if its config.json does not say."""
        config = self.config_of(model)
        positions = config.get("max_position_embeddings", config.get("max_target_positions"))
        return positions if isinstance(positions, int) else None

    @cached_property
    def locked(self) -> Lock:
        """The lock file."""
        return Lock(self.lock)

    def config_available(self, model: str) -> bool:
        """Return whether a model's config.json can be read without a request to the hub."""
        entry = self.models[model]
        return not entry.hub or self.locked.has_model(entry.hub, entry.revision, entry.gguf_file)

    def config_of(self, model: str) -> dict[str, Any]:
        """Return a model's config.json; it is read once."""
        if model not in self._configs:
            self._configs[model] = model_sources.config(self.models[model], f"models.{model}", self.locked)
        return self._configs[model]

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {}

    def require_track(self, model: str, evaluation: str) -> None:
        """Raise ConfigError if an evaluation and a model are of different tracks."""
        entry, track = self.evaluations[evaluation], self.track(model)
        if entry.track != track:
            reason = f"'{entry.kind}' is a {entry.track} evaluation"
            raise ConfigError(f"evaluations.{evaluation}: {reason}, and the model '{model}' is a {track} model")

    def require_same_track(self, dataset: str, model: str, key: str = "") -> None:
        """Raise ConfigError if a model cannot read a dataset: text for text models, recordings for speech models."""
        data_track, track = self.datasets[dataset].track, self.track(model)
        if data_track != track:
            fit = [name for name, entry in self.datasets.items() if entry.track == track]
            hint = f"; {track} datasets: {listed(fit)}" if fit else ""
            raise ConfigError(f"{key}'{dataset}' is {data_track}, and the model '{model}' is a {track} model{hint}")

    def _misfit(self, recipe: Any, model: str) -> str | None:
        """Return why a quantization does not fit the layers of a model; by widths alone, if their names are unknown."""
        if (shape := architecture.known(self.config_of(model))) is None:
            return recipe.misfit(self.widths(model))
        return recipe.mismatch(layer_names.shapes(shape, recipe.quantizes_head()), shape.head.name)

    def widths(self, model: str) -> set[int]:
        """Return the input widths of the model's linear layers that its config.json states."""
        config = self.config_of(model)
        keys = ("hidden_size", "d_model", "ffn_dim", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim")
        return {config[key] for key in keys if isinstance(config.get(key), int)}


def recipe_and_seed(kind: Any, order: dict[str, Any]) -> tuple[Any, int]:
    """Return the recipe and the seed of a job's order; `kind` is the type of the recipe, such as `AnyEvaluation`."""
    keys = {**order["recipe"], **order["options"]["settings"]}
    seed = keys.pop("seed", 0)
    return TypeAdapter(kind).validate_python(keys), seed
