"""Which variant to ship: the one decision that the report begins with. No words here.

The rule. Of the variants that take no more than the limits: where a loss is allowed, the one that takes least memory of
those whose loss is *shown* to be within it; if that is shown of none, the one that loses least of those that measured
within it; if there is none, the one that came nearest. Where no loss is allowed or forbidden, the one that loses least.
Losses are those against the model at full precision. The recommended variant lies on the front of the variants that it
was chosen from: no other takes as little and loses as little everywhere.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

from quantune.evaluations.metrics import families
from quantune.report.gather import Report, VariantResult
from quantune.report.limits import Limits, Taken, taken
from quantune.report.scores import CLAIMED, Change

Standing = Literal["shown", "measured", "beyond", "over"]
"""Loss shown to be within its limit; measured within it; measured beyond it. Over: takes more than the limits."""
Shown = Callable[[float], set[str]]
"""Tolerance -> the variants whose loss is shown to be below it on every evaluation that counts."""
STANDINGS = ("shown", "measured", "beyond", "over")
ROUND_LOSSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Limits of a loss that are tried in place of the given one."""


@dataclass(frozen=True)
class Candidate:
    """A variant that may be shipped."""

    variant: VariantResult
    taken: Taken
    changes: dict[str, Change]
    """Evaluation -> change against the model; empty for the model itself."""
    aims: tuple[str, ...]
    """Evaluations by which variants are ranked: those that are not `general`, or all."""

    @property
    def memory(self) -> float:
        """Bytes; infinite if the batch did not fit."""
        return math.inf if self.taken.memory is None else self.taken.memory

    @cached_property
    def loss(self) -> float:
        """Mean loss over the aims; infinite for a broken variant."""
        losses = [self.changes[name].loss for name in self.aims if name in self.changes]
        return sum(losses) / len(losses) if losses else 0.0

    @cached_property
    def worst(self) -> float:
        """Largest loss over all evaluations that count."""
        return max((change.loss for change in self.changes.values()), default=0.0)

    def beats(self, other: "Candidate") -> bool:
        """Return whether it takes and loses no more than another anywhere, and less somewhere."""
        own, others = self._costs(other.changes), other._costs(self.changes)
        return own != others and all(a <= b for a, b in zip(own, others, strict=True))

    def _costs(self, more: Iterable[str]) -> list[float]:
        names = dict.fromkeys([*self.changes, *more])
        losses = [self.changes[name].loss if name in self.changes else 0.0 for name in sorted(names)]
        return [self.memory, math.inf if self.taken.slowest is None else self.taken.slowest, *losses]


@dataclass(frozen=True)
class Choice:
    """The variant that a rule chooses."""

    candidate: Candidate
    standing: Standing
    runner_up: Candidate | None
    runner_up_standing: Standing | None


@dataclass(frozen=True)
class Turn:
    """What would change the answer: another limit, and what would be chosen then."""

    limit: Literal["memory", "loss", "latency"]
    value: float
    """The limit from which on (or, if it is tighter, up to which) the choice is another."""
    looser: bool
    candidate: Candidate
    standing: Standing


@dataclass(frozen=True)
class Open:
    """A variant whose loss is measured within the limit, and the data that would show it."""

    candidate: Candidate
    needed: dict[str, int]
    """Evaluation -> windows or clips that settle it in 80 % of evaluations, if the loss is as measured."""


@dataclass(frozen=True)
class Answer:
    """The variant of one model to ship under the limits; without limits three choices."""

    model: VariantResult
    limits: Limits
    evaluations: tuple[str, ...]
    """Those on which the loss counts."""
    count: int
    """How many variants it was chosen from."""
    choice: Choice
    apart: tuple[str, ...]
    """Evaluations that tell the chosen variant and the runner-up apart (no letter in common)."""
    turns: list[Turn]
    open: Open | None
    """What more data would settle; None if it changes nothing, or no amount is known."""
    smallest: Candidate | None = None
    """Without limits: least memory of the whole front."""
    balanced: Choice | None = None
    """Without limits: the choice among the variants smaller than the model, if a loss of the tolerance is allowed."""


def answers(report: Report) -> list[Answer]:
    """Return the answer for each model with evaluated variants, in the order of the configuration.

    A model that is broken itself has none: losses against it mean nothing.
    """
    results = []
    for name in report.models:
        model = report.variants[name]
        evaluations = tuple(
            item for item in report.scored(model) if item in (report.limits.evaluations or report.evaluations)
        )
        if any(model.scores[item].broken for item in evaluations):
            continue
        candidates = _candidates(report, model, evaluations)
        if evaluations and (len(candidates) > 1 or report.limits.given):
            results.append(_answer(report, model, evaluations, candidates))
    return results


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that no other beats, the smallest first."""
    sound = [item for item in candidates if math.isfinite(item.worst)]
    kept = [item for item in sound if not any(other.beats(item) for other in sound)]
    return sorted(kept, key=lambda item: (item.memory, item.loss))


def _candidates(report: Report, model: VariantResult, evaluations: tuple[str, ...]) -> list[Candidate]:
    """Return the model and its listed variants."""
    aims = tuple(name for name in evaluations if not report.evaluations[name].get("general")) or evaluations
    candidates = []
    members = [item for item in report.variants.values() if item.model == model.name]
    measured = any(item.performance for item in members)
    for variant in members:
        if not (variant.listed or variant is model):
            continue
        changes = {name: variant.scores[name].from_root for name in evaluations if name in variant.scores}
        changes = {name: change for name, change in changes.items() if change}
        costs = taken(variant.size_bytes, variant.performance, report.limits.batch, measured)
        candidates.append(Candidate(variant, costs, changes, aims))
    return candidates


def _answer(report: Report, model: VariantResult, evaluations: tuple[str, ...], all_: list[Candidate]) -> Answer:
    limits, shown = report.limits, cache(lambda tolerance: _shown(report, all_, tolerance))
    choice = choose(all_, limits, shown)
    apart = _apart(choice.candidate, choice.runner_up, evaluations) if choice.runner_up else ()
    turns = list(_turns(all_, limits, choice, shown)) if limits.given else []
    open_ = _open(all_, limits, choice, _standings(all_, limits, shown))
    answer = Answer(model, limits, evaluations, len(all_), choice, apart, turns, open_)
    if limits.given:
        return answer
    smallest = next(iter(front(all_)), choice.candidate)
    whole = next(item.memory for item in all_ if item.variant is model)
    smaller = [item for item in all_ if item.memory < whole and math.isfinite(item.worst)] or all_
    balanced = choose(smaller, replace(limits, loss=limits.tolerance), shown)
    return replace(answer, smallest=smallest, balanced=balanced)


def choose(candidates: list[Candidate], limits: Limits, shown: Shown) -> Choice:
    """Return the variant that the rule chooses under some limits, and the runner-up.

    Args:
        candidates: at least one.
        limits: any.
        shown: tolerance -> the variants whose loss is shown to be below it.
    """
    standings = _standings(candidates, limits, shown)
    ranked = []
    for standing in STANDINGS:
        pool = [item for item in candidates if standings[item.variant.name] == standing]
        ranked += [(item, standing) for item in _ranked(pool, standing, limits, 2 - len(ranked))]
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else (None, None)
    return Choice(*first, *second)


def _ranked(pool: list[Candidate], standing: Standing, limits: Limits, count: int) -> list[Candidate]:
    """Return so many candidates of one standing, the best first; none after one that beats it."""

    def key(item: Candidate) -> tuple:
        cost = (item.memory, item.taken.slowest or 0.0)
        if standing == "over":
            return _excess(item, limits), item.worst, *cost
        if limits.loss is None:
            return item.loss, item.worst, *cost
        if standing == "shown":
            return item.memory, item.loss, item.worst, *cost
        return item.worst, item.loss, *cost

    ranked, rest = [], sorted(pool, key=key)
    while rest and len(ranked) < count:
        best = rest[0]
        while better := next((item for item in rest if item.beats(best)), None):
            best = better
        rest.remove(best)
        ranked.append(best)
    return ranked


def _standings(candidates: list[Candidate], limits: Limits, shown: Shown) -> dict[str, Standing]:
    """Return variant -> how it stands to the limits."""
    claimed = shown(limits.loss) if limits.loss is not None else set()
    standings: dict[str, Standing] = {}
    for item in candidates:
        name = item.variant.name
        if _excess(item, limits) > 1:
            standings[name] = "over"
        elif limits.loss is None:
            standings[name] = "shown" if math.isfinite(item.worst) else "beyond"
        elif not item.worst < limits.loss:
            standings[name] = "beyond"
        else:
            standings[name] = "shown" if name in claimed else "measured"
    return standings


def _excess(item: Candidate, limits: Limits) -> float:
    """Return the largest ratio of what a variant takes to its limit; infinite if that was not measured."""
    ratios = [0.0]
    if limits.memory is not None:
        ratios.append(item.memory / limits.memory)
    if limits.latency is not None:
        ratios.append(math.inf if item.taken.slowest is None else item.taken.slowest / limits.latency)
    return max(ratios)


def _shown(report: Report, candidates: list[Candidate], tolerance: float) -> set[str]:
    """Return the variants whose loss the data show to be below a tolerance on every evaluation that counts.

    p-values are adjusted by Holm's method among all variants of the model in an evaluation.
    """
    model = candidates[0].variant.model
    shown = {item.variant.name for item in candidates}
    for evaluation in {name for item in candidates for name in item.changes}:
        family = {item.name: item.scores[evaluation].from_root for item in report.having(evaluation)}
        family = {name: it for name, it in family.items() if it and report.variants[name].model == model}
        claims = families.holm([replace(it, tolerance=tolerance).p_within() for it in family.values()])
        shown -= {name for name, claim in zip(family, claims, strict=True) if not claim <= CLAIMED}
    return shown


def _apart(one: Candidate, other: Candidate, evaluations: tuple[str, ...]) -> tuple[str, ...]:
    pairs = {name: [item.variant.scores[name].letters for item in (one, other)] for name in evaluations}
    return tuple(name for name, (a, b) in pairs.items() if a and b and not set(a) & set(b))


def _turns(candidates: list[Candidate], limits: Limits, choice: Choice, shown: Shown) -> Iterable[Turn]:
    """Yield, for each limit, the nearest looser and the nearest tighter one with another choice."""
    known = {
        "memory": sorted({item.memory for item in candidates if math.isfinite(item.memory)}),
        "latency": sorted({item.taken.slowest for item in candidates if item.taken.slowest is not None}),
        "loss": sorted(ROUND_LOSSES),
    }
    for limit, values in known.items():
        now = getattr(limits, limit)
        if now is None:
            continue
        for looser, tried in ((True, values), (False, values[::-1])):
            for value in tried:
                if (value > now) is not looser or value == now:
                    continue
                other = choose(candidates, replace(limits, **{limit: value}), shown)
                changed = other.candidate is not choice.candidate or choice.standing == "over"
                if changed and other.standing != "over":
                    yield Turn(limit, value, looser, other.candidate, other.standing)
                    break


def _open(candidates: list[Candidate], limits: Limits, choice: Choice, standings: dict[str, Standing]) -> Open | None:
    """Return the variant that more data would settle: the chosen one, or one that the rule would prefer to it."""
    if limits.loss is None:
        return None
    measured = [item for item in candidates if standings[item.variant.name] == "measured"]
    if choice.standing == "shown":
        measured = [item for item in measured if item.memory < choice.candidate.memory]
    for item in sorted(measured, key=lambda it: (it is not choice.candidate, it.memory)):
        unsettled = {name: change for name, change in item.changes.items() if not change.bounded}
        needed = {name: change.needed() for name, change in unsettled.items()}
        if needed and None not in needed.values():
            return Open(item, needed)
    return None
