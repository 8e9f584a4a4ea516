"""The artefacts of a configuration, with their parents and the digests that they must have."""

from functools import cache
from typing import Any

from quantune.artefacts import hashes, layout
from quantune.artefacts.record import Artefact
from quantune.core import hardware
from quantune.core.errors import ConfigError, listed, nearest
from quantune.evaluations.metrics import normalizers
from quantune.planning import exports
from quantune.planning.chains import Step, Variant
from quantune.planning.config import Config
from quantune.sources import model_sources, origins, selection

# Versions of the stages that have no recipe class of their own; raised when the meaning of their output changes.
VERSIONS = {
    "model": 1,
    "dataset": 2,
    "clips": 3,
    "tokenize": 2,
    "resample": 2,
    "merge": 3,
    "transcribe": 3,
    "report": 14,
}
# Key of a recipe that names other datasets -> role of the parents that follow from it.
OTHER_DATA = {"mix": "mixed", "also_validate": "validated"}
# Methods of `Plan` that answer the same question once.
REMEMBERED = ("checkpoint", "checkpoints_to_load", "dataset", "prepared", "evaluation", "transcript", "benchmark")
REMEMBERED += ("export", "report", "all_prepared", "all_datasets", "model_sizes", "dataset_bytes")


class Plan:
    """The artefacts of a configuration; methods take the names that the work folder uses."""

    def __init__(self, config: Config):
        self.config, self.work = config, config.work
        self.hashes = hashes.work_hashes(config.work)
        self.estimates: dict[tuple, Any] = {}
        """Predicted memory that `resources.estimate` remembers."""
        for method in REMEMBERED:
            setattr(self, method, cache(getattr(self, method)))

    def checkpoint(self, name: str) -> Artefact:
        """The checkpoint of a variant."""
        variant = self.config.parse(name)
        maker = {"model": self._model, "quantization": self._quantized, "finetuning": self._trained}
        return maker.get(variant.kind, self._merged)(variant)

    def checkpoints_to_load(self, name: str) -> tuple[Artefact, ...]:
        """The checkpoints that are loaded for a variant: its own; for an adapter its parent's, then its own."""
        return tuple(self.checkpoint(str(item)) for item in self.config.parse(name).checkpoints_to_load())

    def dataset(self, name: str) -> Artefact:
        """The documents or clips of a dataset, split by split."""
        entry = self._named("datasets", name)
        origin = origins.dataset(entry, f"datasets.{name}", self.config.locked, self.hashes)
        stage = "clips" if entry.track == "speech" else "dataset"
        return self._artefact(
            ("sources", name),
            stage,
            VERSIONS[stage],
            entry.identity(),
            sources=origin.digests,
            options=origin.options(),
        )

    def model_sizes(self, name: str) -> dict[str, int]:
        """Name -> bytes of a model's files."""
        return model_sources.sizes(self._named("models", name), f"models.{name}", self.config.locked)

    def dataset_bytes(self, name: str) -> int | None:
        """Bytes of a dataset's files; None if they are not known beforehand."""
        return origins.dataset_bytes(self._named("datasets", name), f"datasets.{name}", self.config.locked)

    def dataset_sizes(self, name: str) -> list[tuple[int, bool]]:
        """Size of each of a dataset's files that is known beforehand, and whether the file is compressed."""
        return origins.dataset_sizes(self._named("datasets", name), f"datasets.{name}", self.config.locked)

    def prepared(self, dataset: str, model: str) -> Artefact:
        """A dataset prepared for a model: token ids of documents, or clips at the model's sampling rate."""
        self.config.require_same_track(dataset, model)
        stage = "resample" if self._named("datasets", dataset).track == "speech" else "tokenize"
        return self._artefact(
            ("prepared", dataset, model),
            stage,
            VERSIONS[stage],
            {},
            parents={"dataset": self.dataset(dataset), "model": self.checkpoint(model)},
        )

    def evaluation(self, variant: str, name: str) -> Artefact:
        """One evaluation of a variant: its raw numbers."""
        recipe = self._named("evaluations", name)
        self.config.require_track(self.config.parse(variant).model, name)
        parents = {"checkpoint": self.checkpoint(variant), **self._read(recipe, self.config.parse(variant))}
        return self._artefact(
            ("evaluations", variant, name),
            f"evaluate/{recipe.kind}",
            recipe.version,
            recipe.identity(),
            parents=parents,
            options={"settings": recipe.options()},
            reads={"base": self.checkpoints_to_load(variant)[:-1]},
        )

    def transcript(self, variant: str, name: str) -> Artefact:
        """The transcript of a recording by a variant."""
        entry, model = self._named("recordings", name), self.config.parse(variant).model
        if self.config.track(model) != "speech":
            raise ConfigError(f"recordings.{name}: '{variant}' cannot transcribe; '{model}' is a text model")
        path = selection.resolve(entry.path, f"recordings.{name}.path")
        return self._artefact(
            ("transcripts", variant, name),
            "transcribe",
            VERSIONS["transcribe"],
            entry.identity(),
            parents={"checkpoint": self.checkpoint(variant)},
            sources={"recording": self.hashes.file(path)},
            options={"settings": entry.options(), "files": [str(path)]},
            reads={"base": self.checkpoints_to_load(variant)[:-1]},
        )

    def benchmark(self, variant: str) -> Artefact:
        """The memory and speed of a variant on this machine; each machine has an artefact of its own."""
        recipe = self.config.benchmark
        if recipe is None:
            raise ConfigError("the section 'benchmark' is missing; 'benchmark: {}' measures speed with its defaults")
        return self._artefact(
            ("benchmarks", variant),
            "benchmark",
            recipe.version,
            recipe.relevant(self.config.track(self.config.parse(variant).model)) | {"hardware": hardware.detect()},
            parents={"checkpoint": self.checkpoint(variant)},
            options={"deterministic": False},  # the fast algorithms of normal use are timed
            reads={"base": self.checkpoints_to_load(variant)[:-1]},
        )

    def export(self, variant: str, name: str) -> Artefact:
        """A variant in a format that other programs open, with a model card: its numbers beside those of its model."""
        recipe, model = exports.required(self.config, variant, name), self.config.parse(variant).model
        card = exports.card(self.config, variant)
        numbered = [item for item in self._evaluations(variant) if self.config.evaluations[item].numbers]
        measured = tuple(self.evaluation(of, item) for of in dict.fromkeys((model, variant)) for item in numbered)
        return self._artefact(
            ("exports", variant, name),
            f"export/{name}",
            recipe.version,
            recipe.identity() | {"licences": exports.licences(self.config, variant), "model": card["model"]},
            parents={"checkpoint": self.checkpoint(variant), **({"evaluations": measured} if measured else {})},
            options={"card": card},
            reads={"model": (self.checkpoint(model),)},
        )

    def report(self) -> Artefact:
        """The report on every variant and its ancestors."""
        names = [str(variant) for variant in self.config.evaluated]
        measured = tuple(self.benchmark(name) for name in self.config.benchmarked)
        spoken = any(entry.track == "speech" for entry in self.config.evaluations.values())
        return self._artefact(
            ("report",),
            "report",
            VERSIONS["report"],
            {
                "title": self.config.title,
                "variants": names,
                "listed": [str(variant) for variant in self.config.listed],
                "evaluations": {name: entry.model_dump(mode="json") for name, entry in self.config.evaluations.items()},
                "expected": [entry.model_dump(mode="json") for entry in self.config.expected],
                **({"ship": self.config.ship.model_dump(mode="json")} if self.config.ship else {}),
                **({"normalizers": normalizers.VERSIONS} if spoken else {}),
            },
            parents={
                "evaluations": tuple(self.evaluation(name, item) for name in names for item in self._evaluations(name)),
                "checkpoints": tuple(self.checkpoint(name) for name in names),
                **({"benchmarks": measured} if measured else {}),
            },
            reads={"lineage": (*self.all_datasets(), *self.all_prepared())},
        )

    def _evaluations(self, variant: str) -> list[str]:
        """The names of the evaluations of a variant."""
        return self.config.evaluations_of(self.config.parse(variant).model)

    def all_prepared(self) -> tuple[Artefact, ...]:
        """The prepared datasets that the variants are calibrated, trained or evaluated on."""
        names = [str(variant) for variant in self.config.evaluated]
        artefacts = [self.checkpoint(name) for name in names]
        artefacts += [self.evaluation(name, item) for name in names for item in self._evaluations(name)]
        read = [item.parents["data"] for item in artefacts if "data" in item.parents]
        read += [other for item in artefacts for role in OTHER_DATA.values() for other in item.parents.get(role, ())]
        return tuple({item.path: item for item in read}.values())

    def all_datasets(self) -> tuple[Artefact, ...]:
        """The datasets that the variants are calibrated, trained or evaluated on."""
        return tuple({item.parents["dataset"].path: item.parents["dataset"] for item in self.all_prepared()}.values())

    def require_target(self, target: str) -> None:
        """Raise ConfigError with the reason if no artefact can be made at a path below the work folder."""
        makers = {
            "checkpoints": self.checkpoint,
            "sources": self.dataset,
            "prepared": self.prepared,
            "evaluations": self.evaluation,
            "transcripts": self.transcript,
            "benchmarks": self.benchmark,
            "exports": self.export,
            "report": self.report,
        }
        place = layout.parse(layout.path(self.work, target), self.work)
        if place is None:
            hint = f"paths below '{self.work}': {layout.PATTERNS}"
            raise ConfigError(f"nothing is made at '{self.work}/{target}'; {hint}")
        makers[place.folder](*place.names)

    def _model(self, variant: Variant) -> Artefact:
        entry, key = self.config.models[variant.model], f"models.{variant.model}"
        origin = origins.model(entry, key, self.config.locked, self.hashes)
        return self._artefact(
            ("checkpoints", variant),
            "model",
            VERSIONS["model"],
            entry.identity(),
            sources=origin.digests,
            options=origin.options(),
        )

    def _quantized(self, variant: Variant) -> Artefact:
        recipe = self.config.quantizations[variant.steps[-1].name]
        return self._artefact(
            ("checkpoints", variant),
            f"quantize/{recipe.method}",
            recipe.version,
            self._seeded(recipe, variant.steps[-1]),
            parents={"parent": self.checkpoint(str(variant.parent)), **self._read(recipe, variant)},
            options={"settings": recipe.options()},
        )

    def _trained(self, variant: Variant) -> Artefact:
        recipe = self.config.finetunings[variant.steps[-1].name]
        reads = {"original": (self.checkpoint(str(variant.merge_base())),)} if recipe.reads_original else {}
        return self._artefact(
            ("checkpoints", variant),
            f"train/{recipe.method}",
            recipe.version,
            self._seeded(recipe, variant.steps[-1]),
            parents={"parent": self.checkpoint(str(variant.parent)), **self._read(recipe, variant)},
            options={"settings": recipe.options()},
            reads=reads,
        )

    def _merged(self, variant: Variant) -> Artefact:
        return self._artefact(
            ("checkpoints", variant),
            "merge",
            VERSIONS["merge"],
            {},
            parents={
                "adapter": self.checkpoint(str(variant.parent)),
                "base": self.checkpoint(str(variant.merge_base())),
            },
            reads={"parent": (self.checkpoint(str(variant.parent.parent)),)},
        )

    def _read(self, recipe, variant: Variant) -> dict[str, Artefact]:
        """The prepared data that a recipe with a `dataset` reads."""
        dataset = getattr(recipe, "dataset", None)
        if not dataset:
            return {}
        others = {
            OTHER_DATA[key]: tuple(self.prepared(name, variant.model) for name in sorted(splits))
            for key, splits in getattr(recipe, "other_data", {}).items()
            if splits
        }
        return {"data": self.prepared(dataset, variant.model), **others}

    def _artefact(self, place: tuple, stage: str, version: int, recipe: dict, **more) -> Artefact:
        options = {"work": self.work, "deterministic": self.config.deterministic, **more.pop("options", {})}
        path = layout.path(self.work, *map(str, place))
        if problem := layout.too_long(path):
            raise ConfigError(f"'{path}' {problem}; shorten the names of models and steps, or the chain")
        return Artefact(path, stage, version, recipe, options=options, **more)

    def _seeded(self, recipe, step: Step) -> dict:
        if not recipe.seeded:
            return recipe.identity()
        return recipe.identity() | {"seed": self.config.seed if step.seed is None else step.seed}

    def _named(self, section: str, name: str):
        entries = getattr(self.config, section)
        if name not in entries:
            raise ConfigError(f"'{name}' is not one of the {section}: {listed(entries)}{nearest(name, entries)}")
        return entries[name]
