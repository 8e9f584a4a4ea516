"""The cost of a plan before anything runs: memory, disk and, from earlier runs, time (`snakemake plan`)."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantune.artefacts import layout
from quantune.artefacts.freshness import Disk, State
from quantune.artefacts.record import RUN, Artefact, by_role, read_provenance, read_run
from quantune.core import hardware
from quantune.core.units import UNKNOWN, duration, size
from quantune.planning import resources
from quantune.planning.plan import Plan


@dataclass(frozen=True)
class Cost:
    """The cost of making one artefact; None: not known."""

    artefact: Artefact
    device: int | None
    """Peak bytes of device memory; without a GPU they are part of `host`."""
    host: int | None
    """Peak bytes of main memory."""
    disk: int | None
    """Bytes of the artefact."""
    seconds: float | None
    """Median time of earlier runs on this hardware."""


def of_plan(plan: Plan) -> list[Cost]:
    """Return the costs of the artefacts of the report that are not current, parents before children."""
    times, disk = times_of(past_runs(plan.work), this_hardware(), plan.work), Disk()
    artefacts = with_ancestors(plan.report())
    return [_cost(plan, item, times) for item in artefacts if disk.state(item) is not State.CURRENT]


def table(costs: list[Cost]) -> str:
    """Return the costs as a text table with totals."""
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
    notes = ["Memory is predicted from sizes alone; without a GPU, host memory includes the device memory."]
    notes += [f"Times are medians of earlier runs on this hardware; {len(costs) - len(times)} have none."]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *notes])


def with_ancestors(artefact: Artefact, seen: set[str] | None = None) -> Iterator[Artefact]:
    """Yield the ancestors of an artefact and the artefact itself, each once and after its own parents."""
    seen = set() if seen is None else seen
    for parents in (by_role(artefact.parents), artefact.reads):
        for parent in (item for made_from in parents.values() for item in made_from):
            if parent.path not in seen:
                yield from with_ancestors(parent, seen)
    if artefact.path not in seen:
        seen.add(artefact.path)
        yield artefact


def _cost(plan: Plan, artefact: Artefact, times: dict[tuple, list[float]]) -> Cost:
    estimate = resources.estimate(plan, artefact)
    return Cost(
        artefact,
        estimate.total if estimate else None,
        resources.host_bytes(plan, artefact),
        resources.disk_bytes(plan, artefact),
        seconds(artefact, times),
    )


def past_runs(work: str) -> list[dict[str, Any]]:
    """Return stage, path, hardware and seconds of the run that made each artefact in the work folder."""
    runs = []
    for path in sorted(path.parent for path in Path(work).rglob(RUN)):
        provenance, run = read_provenance(path), read_run(path)
        if provenance and run:
            made = {"path": str(path), "stage": provenance["stage"]}
            runs.append(made | {"seconds": run["seconds"], "hardware": run["hardware"]})
    return runs


def this_hardware() -> dict[str, str | None]:
    """Return the names of CPU and GPU; an earlier run's time is a prediction only on the same ones."""
    gpus = hardware.gpus()
    return {"cpu": hardware.cpu(), "gpu": gpus[0]["name"] if gpus else None}


def times_of(past: list[dict[str, Any]], here: dict[str, str | None], work: str) -> dict[tuple, list[float]]:
    """Return the seconds of earlier runs on the same hardware, by each of their `_keys`."""
    times = defaultdict(list)
    for run in past:
        parts = here if resources.computes(run["stage"]) else ("cpu",)
        if all(run["hardware"].get(part) == here[part] for part in parts):
            for key in _keys(run["path"], run["stage"], work):
                times[key].append(run["seconds"])
    return times


def seconds(artefact: Artefact, times: dict[tuple, list[float]]) -> float | None:
    """Return the median seconds of earlier runs of an artefact's stage and model, or None; `times` is of `times_of`.

    Runs of the same artefact are preferred, then runs with the same last step or evaluation.
    """
    alike = (times.get(key) for key in _keys(artefact.path, artefact.stage, artefact.options["work"]))
    return next((statistics.median(runs) for runs in alike if runs), None)


def _keys(path: str, stage: str, work: str) -> list[tuple]:
    """Return what the run of an artefact is alike to others in: its path; its last step or name; its model."""
    place = layout.parse(path, work)
    model, step = (place.variant.split("+")[0], place.last.split("+")[-1]) if place else ("", "")
    return [(stage, model, "path", path), (stage, model, "step", step), (stage, model)]


def _aligned(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
