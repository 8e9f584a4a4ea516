"""What lies in the work folder, what the configuration no longer asks for, and how much room both take."""

import fcntl
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantune.artefacts import layout
from quantune.artefacts.freshness import State, differences, state
from quantune.artefacts.record import Artefact
from quantune.core.errors import ConfigError, told
from quantune.core.units import size
from quantune.planning import costs, load
from quantune.planning.plan import Plan
from quantune.upkeep import dvc


@dataclass(frozen=True)
class Item:
    """Something on disk: an artefact, or in `tmp` what a job left behind."""

    path: Path
    kind: str
    """The folder below the work folder."""
    bytes: int
    stale: str | None
    """Why the configuration does not ask for it; None if it does."""


def clean(path: str = "config.yaml", sure: str = "") -> None:
    """List what the configuration does not ask for and, once that is confirmed, remove it (`make clean-stale`).

    Args:
        path: the configuration file.
        sure: `1` or `yes` removes without asking; anything else but nothing is refused.
    """
    with told():
        if sure not in ("", "1", "y", "yes"):
            raise ConfigError(f"YES={sure} is not allowed: write YES=1 to remove without being asked, or leave it out")
        plan = Plan(load.read(path))
        items = list(found(plan))
    print(table(items))
    if kept := dvc.cache(Path.cwd()):
        print(f"DVC's cache holds {size(occupied(kept))}; `dvc gc --help` tells how to shrink it")
    stale = [item for item in items if item.stale]
    if not stale:
        return print(f"\nNothing is stale: all of it is asked for by {path}.")
    print(f"\nNot asked for by {path}:")
    for item in stale:
        print(f"  {size(item.bytes):>9}  {item.path}  ({item.stale})")
    if not sure and not sys.stdin.isatty():
        return print("Nothing was removed; `make clean-stale YES=1` removes them.")
    if not sure and input(f"Remove these {len(stale)}? [y/N] ").strip().lower() not in ("y", "yes"):
        return print("Nothing was removed.")
    if busy(Path(plan.work)):
        sys.exit("Nothing was removed: jobs are running here, or a killed run left its locks (`snakemake --unlock`).")
    for item in stale:
        remove(item.path)
    print(f"removed {size(sum(item.bytes for item in stale))}")


def found(plan: Plan) -> Iterator[Item]:
    """Yield everything in the work folder, with why it is stale if it is."""
    asked, tmp, logs = wanted(plan), layout.unfinished(plan.work), layout.logs(plan.work)
    for path in layout.present(plan.work):
        place = layout.parse(path, plan.work)
        on_command_line = place.folder == "transcripts" and place.last not in plan.config.recordings
        why = None if on_command_line else unasked(asked.get(str(path)), place)
        yield Item(path, place.folder, occupied(path), why)
    digests = {item.digest[:16] for item in asked.values() if state(item) is not State.CURRENT}
    for path in sorted(tmp.glob("*")):
        if path.suffix != ".lock" and not in_use(path):
            why = None if layout.digest_of(path) in digests else "left over by a job that is not asked for"
            yield Item(path, tmp.name, occupied(path), why)
    if logs.exists():
        yield Item(logs, logs.name, occupied(logs), None)


def wanted(plan: Plan) -> dict[str, Artefact]:
    """Return path -> artefact of all that the report rests on, and of the transcripts that are asked for."""
    asked = list(costs.needed(plan.report()))
    if plan.config.recordings:
        asked += [plan.transcript(*names) for names in plan.config.transcribed]
    return {item.path: item for item in asked}


def unasked(artefact: Artefact | None, place: layout.Place) -> str | None:
    """Return why the configuration does not ask for what lies at a path, or None."""
    if artefact is None:
        return "in no chain of the configuration" if place.folder == "checkpoints" else "not in the configuration"
    return None if state(artefact) is State.CURRENT else "; ".join(differences(artefact)[:3]) or "incomplete"


def table(items: list[Item]) -> str:
    """Return how much room each stage takes, current and stale, as a table."""
    rows = defaultdict(lambda: [0, 0, 0])
    for item in items:
        for name in (item.kind, "in all"):
            rows[name][0] += 1
            rows[name][2 if item.stale else 1] += item.bytes
    rows["in all"] = rows.pop("in all", [0, 0, 0])
    lines = [f"{'':<12}{'number':>8}{'asked for':>12}{'stale':>12}"]
    for name, (count, current, stale) in rows.items():
        lines.append(f"{name:<12}{count:>8}{size(current) if current else '–':>12}{size(stale) if stale else '–':>12}")
    return "\n".join(lines)


def occupied(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(os.lstat(Path(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def in_use(path: Path) -> bool:
    """Return whether a running job holds the lock of what it is making in `tmp`."""
    try:
        with layout.lock(path).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def busy(work: Path) -> bool:
    """Return whether Snakemake, or a job of it, is at work in this folder."""
    return any(in_use(path.with_suffix("")) for path in layout.unfinished(work).glob("*.lock")) or any(
        Path(".snakemake").glob("locks/*")
    )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, with the folder it leaves empty and its lock."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)
    layout.lock(path).unlink(missing_ok=True)
    if len(layout.FOLDERS.get(path.parent.parent.name, ())) == 2 and not any(path.parent.iterdir()):
        path.parent.rmdir()
