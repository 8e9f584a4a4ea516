"""The contents of the report, gathered from the artefacts on disk: typed and unrounded, without words or pictures.

Every number is derived from the raw items by the evaluation's metric. A variant's recipe is read from its provenance,
never from its name.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas

from quantune.artefacts import layout
from quantune.artefacts.lineage import read_lineage
from quantune.evaluations.metrics.metric import Metric
from quantune.report import comparisons, scores
from quantune.report import speed as benchmarks
from quantune.report.limits import Limits
from quantune.report.scores import Score
from quantune.report.speed import Performance

KINDS = {"model": "model", "quantize": "quantization", "train": "finetuning", "merge": "merge"}


@dataclass(frozen=True)
class Generations:
    """One evaluation's continuations by one variant: rows with prompt, text, tokens."""

    path: str
    items: list[dict[str, Any]]


@dataclass(frozen=True)
class VariantResult:
    """One variant: what it is, what it takes on disk, how it scores."""

    name: str
    path: str
    parent: str | None
    ancestors: tuple[str, ...]
    """The variants it was made from, the model first."""
    kind: str
    """Of its last step: model, quantization, finetuning or merge."""
    recipe: dict[str, Any]
    facts: dict[str, Any]
    listed: bool
    """Asked for by name; otherwise it is here as an ancestor of one that is."""
    size_bytes: int
    """Weight files (*.safetensors) that must be on disk to load it: of an adapter, the base's too."""
    bits_per_weight: float | None
    """Of the quantized layers, scales and zero points counted; None at full precision."""
    scores: dict[str, Score]
    generations: dict[str, Generations]
    curves: pandas.DataFrame | None
    """Columns step, train_loss, validation_loss (nats per token); only of what was trained."""
    performance: Performance | None = None
    """Its memory and speed, if they were measured."""

    @property
    def model(self) -> str:
        """The full-precision model that its chain begins with."""
        return self.ancestors[0] if self.ancestors else self.name

    @property
    def steps(self) -> str:
        """Its chain without the model, as in its name."""
        return self.name.removeprefix(self.model).removeprefix("+")

    @property
    def parameters(self) -> int | None:
        """How many parameters it has, if its provenance has it."""
        return self.facts.get("parameters", self.facts.get("total_parameters"))


@dataclass(frozen=True)
class Report:
    """All that is reported."""

    title: str
    path: str
    digest: str
    evaluations: dict[str, dict[str, Any]]
    """Name -> recipe."""
    variants: dict[str, VariantResult]
    """Name -> variant, ancestors first."""
    expected: list[dict[str, Any]]
    """Published values: source, evaluation or None, number or None, and variant -> value."""
    artefacts: dict[str, dict[str, Any]]
    """Path -> lineage of every artefact that a number rests on."""
    limits: Limits = field(default_factory=Limits)
    """Limits of the variant to ship."""

    def named(self, kind: str) -> list[str]:
        """Return the names of the evaluations of a kind."""
        return [name for name, recipe in self.evaluations.items() if recipe["kind"] == kind]

    def scored(self, *variants: VariantResult) -> list[str]:
        """Return the names of the evaluations that end in a number and were made of any of the variants, or of all."""
        among = variants or self.variants.values()
        return [name for name in self.evaluations if any(name in variant.scores for variant in among)]

    def metric(self, evaluation: str) -> Metric:
        """Return the metric of an evaluation that was made."""
        return self.having(evaluation)[0].scores[evaluation].metric

    def of_several_models(self, evaluation: str) -> bool:
        """Return whether an evaluation was made of variants of more than one model."""
        return len({variant.model for variant in self.having(evaluation)}) > 1

    def having(self, evaluation: str) -> list[VariantResult]:
        """Return the variants that an evaluation was made of."""
        return [variant for variant in self.variants.values() if evaluation in variant.scores]

    @cached_property
    def groups(self) -> list[tuple[list[str], list[VariantResult]]]:
        """The variants that the same evaluations were made of, and these: text apart from speech."""
        tracks = {item.model: item.performance.track for item in self.variants.values() if item.performance}
        by_track: dict[tuple, list[VariantResult]] = {}
        for variant in self.variants.values():
            by_track.setdefault((tracks.get(variant.model), *self.scored(variant)), []).append(variant)
        return [(evaluations, variants) for (_, *evaluations), variants in by_track.items()]

    @cached_property
    def benchmarks(self) -> dict[str, Performance]:
        """Track -> the first benchmark of a variant of it: what all of them have in common."""
        first: dict[str, Performance] = {}
        for variant in self.variants.values():
            if variant.performance:
                first.setdefault(variant.performance.track, variant.performance)
        return first

    def made_by(self, kind: str) -> list[VariantResult]:
        """Return the variants whose last step is of a kind."""
        return [variant for variant in self.variants.values() if variant.kind == kind]

    def role(self, variant: VariantResult, evaluation: str) -> Literal["target", "general", "other"]:
        """Return whether an evaluation is on the data that a variant was trained on, on general data, or neither."""
        recipe = self.evaluations[evaluation]
        if recipe.get("general"):
            return "general"
        own = recipe.get("dataset")
        return "target" if own and own == variant.recipe.get("dataset") else "other"

    @cached_property
    def models(self) -> list[str]:
        """The models that chains begin with."""
        return list(dict.fromkeys(variant.model for variant in self.variants.values()))


def gather(order: dict[str, Any]) -> Report:
    """Read every input of the report.

    Args:
        order: the report's `Artefact.order()`; paths are relative to the working directory.

    Raises:
        QuantuneError: if benchmarks are of different machines.
        ValueError: if two variants of a model were not evaluated on the same windows or clips.
        OSError: if an input lacks a file.
    """
    recipe, parents = order["recipe"], order["parents"]
    lineage = read_lineage([item for made_from in parents.values() for item in made_from])
    paths = {_name(item): item["path"] for item in parents["checkpoints"]}
    evaluated = {layout.names(item["path"], "evaluations"): item["path"] for item in parents.get("evaluations", [])}
    recipes = {key: recipe["evaluations"][key[1]] for key in evaluated}
    read = {
        key: scores.read(path, recipes[key], paths[_model(key[0], paths, lineage)]) for key, path in evaluated.items()
    }
    read = {key: score for key, score in read.items() if score}
    rounded = {_grid(lineage[paths[name]], calibrated=False): name for name in recipe["variants"]}
    rounded.pop(None, None)
    limits = Limits.of(recipe.get("ship"))
    measured = benchmarks.read([item["path"] for item in parents.get("benchmarks", [])])
    variants: dict[str, VariantResult] = {}
    for name in recipe["variants"]:
        provenance = lineage[paths[name]]
        parent = variants.get(_parent(provenance))
        ancestors = (*parent.ancestors, parent.name) if parent else ()
        curves = Path(paths[name], "curves.csv")
        variants[name] = VariantResult(
            name=name,
            path=paths[name],
            parent=parent.name if parent else None,
            ancestors=ancestors,
            kind=KINDS[provenance["stage"].partition("/")[0]],
            recipe=provenance["recipe"],
            facts=provenance["facts"],
            listed=name in recipe["listed"],
            size_bytes=_size(provenance, parent),
            bits_per_weight=_bits_per_weight(provenance, parent),
            scores={
                key[1]: _compared(key, ancestors, rounded.get(_grid(provenance, calibrated=True)), read)
                for key in read
                if key[0] == name
            },
            generations={
                key[1]: Generations(path, _rows(Path(path, "items.jsonl")))
                for key, path in evaluated.items()
                if key[0] == name and recipes[key]["kind"] == "generation"
            },
            curves=pandas.read_csv(curves) if curves.exists() else None,
            performance=measured.get(name),
        )
    return Report(
        title=recipe["title"],
        path=order["path"],
        digest=order["digest"],
        evaluations=recipe["evaluations"],
        variants=comparisons.together(variants, limits.tolerance),
        expected=recipe["expected"],
        artefacts=lineage,
        limits=limits,
    )


def _parent(provenance: dict[str, Any]) -> str | None:
    """Return the name of the variant that the last step was applied to; None for a model."""
    made_from = provenance["parents"].get("parent") or provenance["parents"].get("adapter")
    return _name(made_from[0]) if made_from else None


def _name(item: dict[str, str]) -> str:
    """Return the variant of a checkpoint, given its path."""
    (name,) = layout.names(item["path"], "checkpoints")
    return name


def _model(variant: str, paths: dict[str, str], lineage: dict[str, dict[str, Any]]) -> str:
    """Return the name of the model that a variant's chain begins with."""
    parent = _parent(lineage[paths[variant]])
    return _model(parent, paths, lineage) if parent else variant


def _size(provenance: dict[str, Any], parent: VariantResult | None) -> int:
    weights = [file for file in provenance["files"] if Path(file["path"]).match("*.safetensors")]
    own = sum(file["size"] for file in weights if "/" not in file["path"])  # not those of kept checkpoints
    return own + parent.size_bytes if _is_adapter(provenance) else own


def _bits_per_weight(provenance: dict[str, Any], parent: VariantResult | None) -> float | None:
    """Return the bits of the last quantization still in force: an adapter keeps its base's, merging ends it."""
    return parent.bits_per_weight if _is_adapter(provenance) else provenance["facts"].get("bits_per_weight")


def _is_adapter(provenance: dict[str, Any]) -> bool:
    return any(file["path"] == "adapter_config.json" for file in provenance["files"])


def _grid(provenance: dict[str, Any], calibrated: bool) -> tuple | None:
    """Return the parent, bits, groups and symmetry of a variant on one uniform grid; None for any other.

    Args:
        provenance: of the variant's checkpoint.
        calibrated: whether the method must have calibration samples, or must have none (rounding to nearest).
    """
    recipe = provenance["recipe"]
    uniform = not recipe.keys() & {"overrides", "ignore", "output_embedding", "budget", "kept"}
    if "bits" not in recipe or ("samples" in recipe) is not calibrated or not uniform:
        return None
    return _parent(provenance), recipe["bits"], recipe["group_size"], recipe["symmetric"]


def _compared(
    key: tuple[str, str], ancestors: tuple[str, ...], rounding: str | None, read: dict[tuple[str, str], Score]
) -> Score:
    def change(against: str | None) -> scores.Change | None:
        return scores.change(read[key], against, read[against, key[1]]) if against else None

    root, parent = (ancestors[0], ancestors[-1]) if ancestors else (None, None)
    from_root = change(root)
    from_parent = from_root if parent == root else change(parent)
    return replace(read[key], from_root=from_root, from_parent=from_parent, from_rounding=change(rounding))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
