"""List and remove the parts of the work folder that the configuration does not need; show the disk use."""

import fcntl
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantune.artefacts import layout
from quantune.artefacts.freshness import Disk, State
from quantune.artefacts.record import Artefact
from quantune.core.errors import ConfigError, printable, reported
from quantune.core.units import size
from quantune.planning import costs, exports, load
from quantune.planning.plan import Plan
from quantune.upkeep import dvc


@dataclass(frozen=True)
class WorkItem:
    """An entry of the work folder: an artefact, or a folder of an unfinished job in `tmp`."""

    path: Path
    kind: str
    """Name of the folder below the work folder."""
    bytes: int
    stale: str | None
    """Why the configuration does not need this item; None if it does."""


def clean(path: str = "config.yaml", confirmed: str = "") -> None:
    """List the stale items of the work folder and, after confirmation, remove them (`make clean-stale`).

    Args:
        path: the configuration file.
        confirmed: `1`, `y` or `yes` removes without a question; empty asks for confirmation; others are an error.
    """
    with reported():
        if confirmed not in ("", "1", "y", "yes"):
            raise ConfigError(f"YES={confirmed} is not allowed: write YES=1 to remove without a question, or omit YES")
        plan = Plan(load.read(path))
        items = list(work_items(plan))
    print(table(items))
    if cache := dvc.cache_folder(Path.cwd()):
        print(f"DVC's cache holds {size(disk_use(cache))}; `dvc gc --help` explains how to shrink it")
    stale = [item for item in items if item.stale]
    if not stale:
        return print(f"\nNothing is stale: {path} needs all of it.")
    print(f"\nNot needed by {path}:")
    for item in stale:
        print(printable(f"  {size(item.bytes):>9}  {item.path}  ({item.stale})"))
    if not confirmed and not sys.stdin.isatty():
        return print("Nothing was removed; `make clean-stale YES=1` removes them.")
    if not confirmed and input(f"Remove these {len(stale)}? [y/N] ").strip().lower() not in ("y", "yes"):
        return print("Nothing was removed.")
    if busy(Path(plan.work)):
        sys.exit("Nothing was removed: jobs are running here, or a killed run left its locks (`snakemake --unlock`).")
    for item in stale:
        remove(item.path)
    print(f"removed {size(sum(item.bytes for item in stale))}")


def work_items(plan: Plan) -> Iterator[WorkItem]:
    """Yield each item of the work folder."""
    needed, tmp, logs = needed_artefacts(plan), layout.unfinished(plan.work), layout.logs(plan.work)
    disk = Disk()
    for path in layout.artefact_folders(plan.work):
        place = layout.parse(path, plan.work)
        on_command_line = place.folder == "transcripts" and place.last not in plan.config.recordings
        on_command_line |= place.folder == "exports" and str(path) not in needed
        reason = None if on_command_line else stale_reason(needed.get(str(path)), place, disk)
        yield WorkItem(path, place.folder, disk_use(path), reason)
    digests = {item.digest[:16] for item in needed.values() if disk.state(item) is not State.CURRENT}
    for path in sorted(tmp.glob("*")):
        if path.suffix != ".lock" and not in_use(path):
            reason = None if layout.digest_of(path) in digests else "left by a job that is not needed"
            yield WorkItem(path, tmp.name, disk_use(path), reason)
    if logs.exists():
        yield WorkItem(logs, logs.name, disk_use(logs), None)


def needed_artefacts(plan: Plan) -> dict[str, Artefact]:
    """Return path -> artefact of the report, its ancestors, and the transcripts and exports of the configuration."""
    artefacts = list(costs.with_ancestors(plan.report()))
    if plan.config.recordings:
        artefacts += [plan.transcript(*names) for names in plan.config.transcribed]
    artefacts += [item for pair in exports.requested(plan.config) for item in costs.with_ancestors(plan.export(*pair))]
    return {item.path: item for item in artefacts}


def stale_reason(artefact: Artefact | None, place: layout.Place, disk: Disk) -> str | None:
    """Return why the configuration does not need the folder at a place, or None; `artefact` is the one it needs."""
    if artefact is None:
        return "in no chain of the configuration" if place.folder == "checkpoints" else "not in the configuration"
    current = disk.state(artefact) is State.CURRENT
    return None if current else "; ".join(disk.differences(artefact)[:3]) or "incomplete"


def table(items: list[WorkItem]) -> str:
    """Return the number and disk use of current and stale items in each folder, as a text table."""
    rows = defaultdict(lambda: [0, 0, 0])
    for item in items:
        for name in (item.kind, "in all"):
            rows[name][0] += 1
            rows[name][2 if item.stale else 1] += item.bytes
    rows["in all"] = rows.pop("in all", [0, 0, 0])
    lines = [f"{'':<12}{'number':>8}{'needed':>12}{'stale':>12}"]
    for name, (count, current, stale) in rows.items():
        lines.append(f"{name:<12}{count:>8}{size(current) if current else '–':>12}{size(stale) if stale else '–':>12}")
    return "\n".join(lines)


def disk_use(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(os.lstat(Path(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def in_use(path: Path) -> bool:
    """Return whether a running job holds the lock of this folder in `tmp`."""
    try:
        with layout.lock(path).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def busy(work: Path) -> bool:
    """Return whether Snakemake or one of its jobs is running on this work folder."""
    return any(in_use(path.with_suffix("")) for path in layout.unfinished(work).glob("*.lock")) or any(
        Path(".snakemake").glob("locks/*")
    )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with its lock, and the parent folder if that is empty then."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)
    layout.lock(path).unlink(missing_ok=True)
    if len(layout.FOLDERS.get(path.parent.parent.name, ())) == 2 and not any(path.parent.iterdir()):
        path.parent.rmdir()
