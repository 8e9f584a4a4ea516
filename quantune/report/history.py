"""Two runs compared: what changed in recipes, in numbers, and in the variant to ship."""

import math
from dataclasses import dataclass, replace
from typing import Any

from quantune.artefacts import freshness
from quantune.evaluations.metrics import families
from quantune.report import scores
from quantune.report.gather import Report
from quantune.report.recommended import recommended
from quantune.report.scores import Change, Score
from quantune.report.speed import Speed


@dataclass(frozen=True)
class Remade:
    """An artefact of both runs with another recipe, other sources or another version of its stage."""

    path: str
    """Below the work folder."""
    changes: list[str]


@dataclass(frozen=True)
class Moved:
    """An evaluation of a variant in both runs."""

    variant: str
    evaluation: str
    before: Score
    now: Score
    change: Change | None
    """Now against before, paired; its p-value is adjusted for all that are compared. None if the windows or clips are
    not the same."""

    @property
    def same(self) -> bool:
        """Whether every item is the same."""
        return self.before.items.equals(self.now.items)


@dataclass(frozen=True)
class Cost:
    """Size, memory or speed of a variant in both runs."""

    variant: str
    name: str
    before: float | Speed
    now: float | Speed


@dataclass(frozen=True)
class History:
    """What changed from one run to another."""

    added: list[str]
    """Variants of the later run alone."""
    removed: list[str]
    remade: list[Remade]
    moved: list[Moved]
    costs: list[Cost]
    """Those that changed."""
    ship: dict[str, tuple[str | None, str | None]]
    """Model -> the recommended variant before and now."""
    limits: list[str]
    """Limits of the variant to ship that changed."""


def compare(before: Report, now: Report) -> History:
    """Return what changed between two runs."""
    both = [name for name in now.variants if name in before.variants]
    ships = [recommended(report) for report in (before, now)]
    chosen = {
        model: tuple(ship.get(model, {}).get("variant") for ship in ships)
        for model in dict.fromkeys([*ships[0], *ships[1]])
    }
    return History(
        added=[name for name in now.variants if name not in before.variants],
        removed=[name for name in before.variants if name not in now.variants],
        remade=_remade(before, now),
        moved=_moved(before, now, both),
        costs=[cost for name in both for cost in _costs(before, now, name)],
        ship=chosen,
        limits=list(freshness.changed("", vars(before.limits), vars(now.limits))),
    )


def _remade(before: Report, now: Report) -> list[Remade]:
    """Return the artefacts of both runs that differ in themselves, not only in what they are made from."""
    old, new = (
        {_below(path, report): _located(item, report) for path, item in report.artefacts.items() if "stage" in item}
        for report in (before, now)
    )
    remade = []
    for path in (path for path in new if path in old):
        changes = freshness.changes(old[path], new[path])
        own = [change for change in changes if not change.startswith("made anew: ")]
        if own:
            remade.append(Remade(path, own))
    return remade


def _located(item: dict[str, Any], report: Report) -> dict[str, Any]:
    """Return a provenance whose parents have paths below the work folder."""
    parents = {
        role: [parent | {"path": _below(parent["path"], report)} for parent in made_from]
        for role, made_from in item.get("parents", {}).items()
    }
    return item | {"parents": parents}


def _below(path: str, report: Report) -> str:
    """Return a path below the work folder of a run."""
    return path.removeprefix(report.path.removesuffix("report"))


def _moved(before: Report, now: Report, both: list[str]) -> list[Moved]:
    """Return the evaluations of both runs, with p-values adjusted by Holm's method."""
    moved = []
    for name in both:
        for evaluation, score in now.variants[name].scores.items():
            old = before.variants[name].scores.get(evaluation)
            if old and old.metric.key == score.metric.key:
                moved.append(Moved(name, evaluation, old, score, _change(old, score)))
    tested = [item for item in moved if item.change and not math.isnan(item.change.p_value)]
    adjusted = iter(families.holm([item.change.p_value for item in tested if not item.same]))
    count = sum(not item.same for item in tested)
    known = [
        replace(item, change=replace(item.change, adjusted=next(adjusted), family=count))
        if item in tested and not item.same
        else item
        for item in moved
    ]
    return known


def _change(old: Score, new: Score) -> Change | None:
    try:
        return scores.change(new, "before", old)
    except ValueError:
        return None


def _costs(before: Report, now: Report, name: str) -> list[Cost]:
    """Return size, memory and speeds of a variant that changed; those of benchmarks on one machine alone."""
    old, new = before.variants[name], now.variants[name]
    costs = [Cost(name, "size on disk", old.size_bytes, new.size_bytes)]
    was, is_ = old.performance, new.performance
    if was and is_ and was.machine == is_.machine:
        costs.append(Cost(name, "memory in use", was.running_bytes, is_.running_bytes))
        points = [point for point in is_.speeds if point in was.speeds]
        for phase, batch, length in points:
            pair = was.speeds[phase, batch, length], is_.speeds[phase, batch, length]
            costs.append(Cost(name, f"{phase}, batch {batch}, {length}", *pair))
    return [cost for cost in costs if cost.before != cost.now]
