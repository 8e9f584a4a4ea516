"""What the numbers decide: which variant is fastest, what a step gained. No words here."""

import math
from dataclasses import dataclass
from typing import Literal

from quantune.report import losses
from quantune.report.gather import Report, VariantResult
from quantune.report.scores import Change
from quantune.report.speed import Performance, Speed

STEADY = 0.25  # largest spread of repeats, over their median, at which speeds are compared
LONG = 4  # times the length of the calibration samples: windows that a variant was not calibrated for
SPELLED_OUT = 3  # fine-tunings that are described one by one; of more, those that gained most

Role = Literal["target", "general", "other"]


@dataclass(frozen=True)
class Gain:
    """What a fine-tuning changed against its parent, its target domain first."""

    variant: VariantResult
    changes: list[tuple[str, Role, Change]]
    """Evaluation, what it is to the variant, change."""


@dataclass(frozen=True)
class Gains:
    """The fine-tunings of variants that the same evaluations were made of, those that gained most first."""

    shown: list[Gain]
    others: int
    """Fine-tunings that are not among `shown`."""


@dataclass(frozen=True)
class Comparisons:
    """Changes of one evaluation, the least loss first."""

    evaluation: str
    changes: list[tuple[VariantResult, Change]]


@dataclass(frozen=True)
class Warned:
    """A warning, and the variants that it is about."""

    text: str
    variants: list[str]


@dataclass(frozen=True)
class Fastest:
    """The speed of a model in one phase, and the fastest of its variants."""

    phase: str
    batch: int
    model: VariantResult
    speed: Speed
    best: VariantResult | None
    """The fastest variant that fits into memory; None if none fits."""
    verdict: Literal["alone", "unsteady", "faster", "none"]
    """Whether `best` is faster in every repeat, or repeats differ too much to say."""


@dataclass(frozen=True)
class Lightest:
    """The memory of a model in use, and the variant that takes least."""

    model: VariantResult
    least: VariantResult | None
    """None if no variant but the model was measured."""
    saves: bool
    """Whether that variant takes less than the model."""


@dataclass(frozen=True)
class Unfit:
    """A point of the sweep for which memory did not suffice."""

    batch: int
    length: int
    variants: list[str]


@dataclass(frozen=True)
class Advice:
    """Among the variants whose loss is shown to be below the tolerance: which takes least memory, which is fastest."""

    phase: str
    batch: int
    lightest: VariantResult | None
    fastest: VariantResult | None


@dataclass(frozen=True)
class Performances:
    """Memory and speed of one model and its variants on one machine."""

    model: VariantResult
    lightest: Lightest
    fastest: list[Fastest]
    unfit: list[Unfit]
    advice: Advice | None
    """None without evaluations, or without variants to advise on."""


def gains(report: Report) -> list[Gains]:
    """Return what fine-tunings changed, for each group of variants with the same evaluations."""
    decided = []
    for _, variants in report.groups:
        trained = [variant for variant in variants if variant.kind == "finetuning" and variant.scores]
        trained.sort(key=lambda item: _target_loss(report, item))
        shown = []
        for variant in trained[:SPELLED_OUT]:
            roles = {name: report.role(variant, name) for name in variant.scores}
            names = sorted(variant.scores, key=lambda name: roles[name] != "target")
            shown.append(Gain(variant, [(name, roles[name], variant.scores[name].from_parent) for name in names]))
        if shown:
            decided.append(Gains(shown, len(trained) - len(shown)))
    return decided


def _target_loss(report: Report, variant: VariantResult) -> float:
    """Return the best change on what a variant was trained on; infinity if that was not evaluated."""
    targets = [name for name in variant.scores if report.role(variant, name) == "target"]
    return min((variant.scores[name].from_parent.loss for name in targets), default=math.inf)


def quantizing(report: Report) -> list[Comparisons]:
    """Return what quantizing cost, each variant against its parent."""
    return _compared(report, lambda variant, name: variant.kind == "quantization" and variant.scores[name].from_parent)


def calibrating(report: Report) -> list[Comparisons]:
    """Return what calibration bought, each variant against rounding to nearest on the same grid."""
    return _compared(report, lambda variant, name: variant.scores[name].from_rounding, ranked=False)


def _compared(report: Report, change_of, ranked: bool = True) -> list[Comparisons]:
    decided = []
    for name in report.scored():
        changes = [(variant, change_of(variant, name)) for variant in report.having(name)]
        changes = [(variant, change) for variant, change in changes if change]
        if changes:
            decided.append(Comparisons(name, sorted(changes, key=lambda it: it[1].loss) if ranked else changes))
    return decided


def warned(report: Report) -> list[Warned]:
    """Return the warnings of quantization jobs, and of windows far longer than calibration samples, each once."""
    variants: dict[str, list[str]] = {}
    for variant in report.variants.values():
        warnings = [
            text for part in ("calibration", "quality") for text in variant.facts.get(part, {}).get("warnings", [])
        ]
        for warning in [*warnings, *_short_samples(report, variant), *_broken(variant)]:
            variants.setdefault(warning, []).append(variant.name)
    return [Warned(text, names) for text, names in variants.items()]


def _broken(variant: VariantResult) -> list[str]:
    scores = variant.scores.items()
    return [f"not a number on {name}, because {score.broken}" for name, score in scores if score.broken]


def _short_samples(report: Report, variant: VariantResult) -> list[str]:
    calibrated = variant.recipe.get("length") if "samples" in variant.recipe else None
    lengths = {name: report.evaluations[name].get("length", 0) for name in variant.scores if calibrated}
    return [
        f"calibrated on samples of {calibrated} tokens, read in windows of {length} on {name}; short samples calibrate"
        " for short contexts"
        for name, length in lengths.items()
        if length > LONG * calibrated
    ]


def performances(report: Report) -> list[Performances]:
    """Return what the benchmarks show, model by model; nothing without benchmarks."""
    decided = []
    for name in report.models:
        measured = {item.name: item for item in report.variants.values() if item.performance and item.model == name}
        if name in measured:
            decided.append(_performances(report, measured.pop(name), list(measured.values())))
    return decided


def _performances(report: Report, model: VariantResult, others: list[VariantResult]) -> Performances:
    own = model.performance
    least = min(others, key=lambda other: other.performance.running_bytes, default=None)
    saves = bool(least) and least.performance.running_bytes < own.running_bytes
    leading = [_fastest(own.leading, batch, model, others) for batch in own.shown(own.leading)]
    rest = [list(own.shown(phase))[-1:] for phase in own.phases]
    others_of = zip(own.phases, rest, strict=True)
    further = [
        _fastest(phase, batch, model, others)
        for phase, batches in others_of
        for batch in batches
        if phase != own.leading
    ]
    evaluations, advised = report.scored(model), bool(others and own.shown(own.leading))
    kept = [other for other in others if losses.bounded(other, evaluations)] if evaluations else []
    advice = _advice(model, kept) if evaluations and advised else None
    return Performances(model, Lightest(model, least, saves), [*leading, *further], _unfit([model, *others]), advice)


def _fastest(phase: str, batch: int, model: VariantResult, others: list[VariantResult]) -> Fastest:
    own = model.performance.shown(phase)[batch]
    speeds = {item.name: _speed(item.performance, phase, batch) for item in others}
    fitting = [item for item in others if speeds[item.name]]
    if not fitting:
        return Fastest(phase, batch, model, own, None, "alone")
    best = max(fitting, key=lambda item: speeds[item.name].times(own))
    speed = speeds[best.name]
    unsteady = max(own.spread, speed.spread) > STEADY
    return Fastest(
        phase, batch, model, own, best, "unsteady" if unsteady else "faster" if faster(speed, own) else "none"
    )


def _speed(performance: Performance, phase: str, batch: int) -> Speed | None:
    return performance.shown(phase).get(batch)


def _unfit(variants: list[VariantResult]) -> list[Unfit]:
    names: dict[tuple[int, int], list[str]] = {}
    for variant in variants:
        for point in variant.performance.unfit:
            names.setdefault(point, []).append(variant.name)
    return [Unfit(batch, length, unfit) for (batch, length), unfit in names.items()]


def _advice(model: VariantResult, kept: list[VariantResult]) -> Advice:
    phase = model.performance.leading
    batch, own = next(iter(model.performance.shown(phase).items()))
    smaller = [item for item in kept if item.performance.running_bytes < model.performance.running_bytes]
    speeds = {item.name: _speed(item.performance, phase, batch) for item in kept}
    quicker = [item for item in kept if speeds[item.name] and faster(speeds[item.name], own)]
    lightest = min(smaller, key=lambda item: item.performance.running_bytes, default=None)
    return Advice(phase, batch, lightest, max(quicker, key=lambda item: speeds[item.name].times(own), default=None))


def faster(one: Speed, other: Speed) -> bool:
    """Return whether every repeat of one beats every repeat of the other, and both are steady."""
    return one.beats(other) and max(one.spread, other.spread) <= STEADY
