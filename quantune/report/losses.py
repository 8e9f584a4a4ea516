"""Losses of quality against the tolerance: shown to be below it, above it, or neither; and the smallest variants."""

from dataclasses import dataclass

from quantune.report.gather import Report, VariantResult
from quantune.report.scores import Change


@dataclass(frozen=True)
class Smallest:
    """The smallest variant whose loss the data show to be below the tolerance."""

    evaluations: tuple[str, ...]
    """Below it on all of them."""
    variant: VariantResult | None
    """None if that is shown of no smaller variant."""
    unclear: VariantResult | None
    """The smallest one, smaller than `variant`, of which the data do not show whether its loss is below: of those that
    more data would decide, if there are any."""
    needed: int | None
    """Windows or clips that would settle it for `unclear`; None if its measured loss is not below the tolerance."""
    tolerance: Change | None
    """A change that has the tolerance and its unit; None if there is no smaller variant."""


@dataclass(frozen=True)
class Sizes:
    """The smallest variants of a model."""

    model: VariantResult
    smaller: int
    """Listed variants that are smaller than the model."""
    smallest: list[Smallest]


def bounded(variant: VariantResult, evaluations: list[str] | tuple[str, ...]) -> bool:
    """Return whether the data show that every loss is below the tolerance."""
    return all(variant.scores[name].from_root.bounded for name in evaluations)


def unclear(variant: VariantResult, evaluations: list[str] | tuple[str, ...]) -> bool:
    """Return whether the data show no loss above the tolerance, but do not show all losses below it."""
    changes = [variant.scores[name].from_root for name in evaluations]
    return not any(change.exceeds for change in changes) and not all(change.bounded for change in changes)


def needed(variant: VariantResult, evaluations: list[str] | tuple[str, ...]) -> int | None:
    """Return how many windows or clips would show that every loss is below the tolerance, if it is as measured."""
    changes = [variant.scores[name].from_root for name in evaluations]
    counts = [change.needed() for change in changes if not change.bounded]
    return None if None in counts else max(counts, default=None)


def sizes(report: Report) -> list[Sizes]:
    """Return, for each model with evaluated variants, the smallest ones without a loss: by evaluation, and on all."""
    decided = []
    for model in (report.variants[name] for name in report.models):
        evaluations = tuple(report.scored(model))
        listed = [item for item in report.variants.values() if item.listed and model.name in item.ancestors]
        if not listed or not evaluations:
            continue
        smaller = sorted((item for item in listed if item.size_bytes < model.size_bytes), key=lambda it: it.size_bytes)
        together = [evaluations] if len(evaluations) > 1 else []
        smallest = [_smallest((name,), smaller) for name in evaluations]
        decided.append(Sizes(model, len(smaller), [*smallest, *(_smallest(names, smaller) for names in together)]))
    return decided


def _smallest(evaluations: tuple[str, ...], smaller: list[VariantResult]) -> Smallest:
    """Decide among variants sorted by size."""
    shown = next((item for item in smaller if bounded(item, evaluations)), None)
    before = smaller[: smaller.index(shown)] if shown else smaller
    open_ones = [(item, needed(item, evaluations)) for item in before if unclear(item, evaluations)]
    settled = [item for item in open_ones if item[1]]  # more data would help
    limit = smaller[0].scores[evaluations[0]].from_root if smaller else None
    return Smallest(evaluations, shown, *next(iter(settled or open_ones), (None, None)), limit)
