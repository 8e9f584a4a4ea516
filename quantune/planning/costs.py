"""What a plan will cost before anything runs: memory, disk and, from earlier runs, time (`snakemake plan`)."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantune.artefacts import layout
from quantune.artefacts.freshness import State, state
from quantune.artefacts.record import RUN, Artefact, recorded, roles
from quantune.core import hardware
from quantune.core.units import UNKNOWN, duration, size
from quantune.planning import resources
from quantune.planning.plan import Plan


@dataclass(frozen=True)
class Cost:
    """What making one artefact takes; None: not known."""

    artefact: Artefact
    device: int | None
    """Bytes on the device that computes; without a GPU they are part of `host`."""
    host: int | None
    """Bytes of main memory."""
    disk: int | None
    """Bytes of the artefact."""
    seconds: float | None
    """Median of earlier runs on this hardware."""


def of_plan(plan: Plan) -> list[Cost]:
    """Return the cost of everything that the configuration asks for and that is not current, in an order to make it."""
    past, here = runs(plan.work), this_hardware()
    return [_cost(plan, item, past, here) for item in needed(plan.report()) if state(item) is not State.CURRENT]


def table(costs: list[Cost]) -> str:
    """Return the costs as a table to read, with totals."""
    if not costs:
        return "Everything is current: nothing to make."
    times = [item.seconds for item in costs if item.seconds is not None]
    rows = [
        ("to make", "stage", "device memory", "host memory", "disk", "time"),
        *(
            (
                item.artefact.path,
                item.artefact.stage,
                *map(size, (item.device, item.host, item.disk)),
                duration(item.seconds),
            )
            for item in costs
        ),
        (
            f"{len(costs)} in all",
            "",
            f"{size(max(item.device or 0 for item in costs))} at most",
            f"{size(max(item.host or 0 for item in costs))} at most",
            size(sum(item.disk or 0 for item in costs)),
            duration(sum(times)) if times else UNKNOWN,
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(_aligned, range(len(row)), row, widths)).rstrip() for row in rows]
    notes = ["Memory is predicted from sizes alone; without a GPU, host memory holds what a device would."]
    notes += [f"Times are medians of earlier runs on this hardware; {len(costs) - len(times)} have none."]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *notes])


def needed(artefact: Artefact, seen: set[str] | None = None) -> Iterator[Artefact]:
    """Yield what an artefact is made from, and the artefact itself, each once and after its own parents."""
    seen = set() if seen is None else seen
    for parents in (roles(artefact.parents), artefact.reads):
        for parent in (item for made_from in parents.values() for item in made_from):
            if parent.path not in seen:
                yield from needed(parent, seen)
    if artefact.path not in seen:
        seen.add(artefact.path)
        yield artefact


def _cost(plan: Plan, artefact: Artefact, past: list[dict[str, Any]], here: dict[str, str | None]) -> Cost:
    found = resources.estimate(plan, artefact)
    return Cost(
        artefact,
        found.total if found else None,
        resources.host_bytes(plan, artefact),
        resources.disk_bytes(plan, artefact),
        seconds(artefact, past, here),
    )


def runs(work: str) -> list[dict[str, Any]]:
    """Return stage, path, hardware and seconds of every artefact that lies in the work folder."""
    found = []
    for path in sorted(Path(work).rglob(RUN)):
        provenance = recorded(path.parent)
        try:
            run = json.loads(path.read_text())
            run = {"seconds": run["seconds"], "hardware": run["hardware"], "path": str(path.parent)}
        except (OSError, ValueError, KeyError):
            continue
        if provenance:
            found.append(run | {"stage": provenance["stage"]})
    return found


def this_hardware() -> dict[str, str | None]:
    """Return what must be equal for an earlier run's time to be a prediction."""
    there = hardware.gpus()
    return {"cpu": hardware.cpu(), "gpu": there[0]["name"] if there else None}


def seconds(artefact: Artefact, past: list[dict[str, Any]], here: dict[str, str | None]) -> float | None:
    """Return the median time of earlier runs of an artefact's stage on the same hardware and the same model.

    Those of the very same artefact are preferred, then those with the same last step or evaluation.
    """
    work = artefact.options["work"]
    parts = here if resources.computes(artefact) else ("cpu",)
    alike = [
        run
        for run in past
        if run["stage"] == artefact.stage
        and _model(run["path"], work) == _model(artefact.path, work)
        and all(run["hardware"].get(part) == here[part] for part in parts)
    ]
    for same in (
        lambda path: path == artefact.path,
        lambda path: _step(path, work) == _step(artefact.path, work),
        bool,
    ):
        if times := [run["seconds"] for run in alike if same(run["path"])]:
            return statistics.median(times)
    return None


def _model(path: str, work: str) -> str:
    """Return the model that a path below the work folder is about, or an empty text."""
    place = layout.parse(path, work)
    return place.variant.split("+")[0] if place else ""


def _step(path: str, work: str) -> str:
    """Return the last step of a checkpoint's variant, or the last name in the path of another artefact."""
    place = layout.parse(path, work)
    return place.last.split("+")[-1] if place else ""


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
