"""Check the files on disk (`make check`), and make chosen artefacts again to compare them (`make verify`).

Artefacts are made again in a scratch folder, with links to all artefacts that were not chosen. So a difference comes
from the chosen artefact, not from its parents.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from quantune.artefacts import layout, likeness
from quantune.artefacts.freshness import Disk, State
from quantune.artefacts.hashes import file_sha256
from quantune.artefacts.record import PROVENANCE, Artefact, damage, locked, problem, read_provenance, recipe_digest
from quantune.core.errors import ConfigError, QuantuneError, listed, printable, reported
from quantune.planning import costs, load
from quantune.planning.plan import Plan
from quantune.upkeep import dvc

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("models", "datasets", "recordings")


def check(path: str = "config.yaml") -> None:
    """Compare every file below the work folder, and in DVC's cache, with its recorded hash (`make check`).

    Prints each file that differs, and the remedy; exits with 1 if any differs.
    """
    with reported():
        work = Path(load.read(path).work)
        damaged = [*corrupted(work), *dvc.corrupted(Path.cwd())]
        for line in damaged:
            print(printable(line))
        count = len(list(artefacts_in(work)))
        if damaged:
            sys.exit(
                f"{len(damaged)} damaged: remove the named files; `make pull`, or else `make commit`, restores them"
            )
        print(f"{count} artefacts: every file is as recorded")


def corrupted(work: Path) -> Iterator[str]:
    """Yield a message for each file that is not as it was made, and for each folder without provenance.

    This shows damage and edits. It does not show forgery: a new file with a new checksum passes.
    """
    from tqdm import tqdm

    for folder in layout.artefact_folders(work):
        if folder.is_dir() and not (folder / PROVENANCE).exists():
            yield f"{folder} has no {PROVENANCE}: the artefact is incomplete"
    for folder in tqdm(sorted(artefacts_in(work)), desc="reading", unit=" artefacts", disable=None):
        if broken := problem(folder):
            yield f"{folder}/{broken}"
            continue
        provenance = read_provenance(folder)
        if broken := damage(folder, provenance):
            yield f"{folder}: {broken}"
        elif provenance["digest"] != recomputed_digest(provenance):
            yield f"{folder}/{PROVENANCE} was changed: its digest does not match its recipe and parents"
        else:
            for file in provenance["files"]:
                if file_sha256(folder / file["path"]) != file["sha256"]:
                    yield f"{folder}/{file['path']} is not what was made: its SHA-256 is not the recorded one"


def recomputed_digest(provenance: dict[str, Any]) -> str:
    """Return the digest of the recipe, sources and parents that a provenance records."""
    parents = {role: [item["digest"] for item in items] for role, items in provenance["parents"].items()}
    return recipe_digest(*(provenance[key] for key in ("stage", "version", "recipe", "sources")), parents)


def artefacts_in(work: Path) -> Iterator[Path]:
    """Yield the folders below the work folder that hold an artefact."""
    return (path.parent for path in work.rglob(PROVENANCE) if layout.parse(path.parent, work))


def verify(path: str = "config.yaml", only: str = "", cores: str = "all") -> None:
    """Make artefacts again in a scratch folder and compare (`make verify`).

    Prints for each whether it is bit-equal, equal within `likeness.TOLERANCE`, or different, with the place and
    size of the difference; exits with 1 if any is different.

    Args:
        path: the configuration file.
        only: variants, or paths below the work folder, separated by spaces; if empty, all artefacts except downloads
            and benchmarks.
        cores: number of cores for Snakemake, or "all".
    """
    with reported():
        plan = Plan(load.read(path))
        if os.path.isabs(plan.work) or ".." in Path(plan.work).parts:
            raise ConfigError(f"work: to verify, the work folder must be below this one, not '{plan.work}'")
        needed = {item.path: item for item in costs.with_ancestors(plan.report()) if item.stage != "report"}
        chosen = choose(plan, needed, only.split())
        require_current(needed.values() if not only else chosen.values())
        scratch = Path(tempfile.mkdtemp(prefix="verify-", dir=_created(layout.unfinished(plan.work))))
        print(f"making {len(chosen)} artefacts again in {scratch}", flush=True)
        with locked(layout.lock(scratch)):  # `make clean-stale` leaves it alone
            rebuild(plan, path, needed, chosen, scratch, cores)
            verdicts = [compare(item, scratch) for item in chosen]
    layout.lock(scratch).unlink()
    print(f"{verdicts.count('bit-equal')} of {len(chosen)} bit-equal, {verdicts.count('different')} different")
    if "different" in verdicts:
        sys.exit(f"the new artefacts are kept in {scratch}")
    shutil.rmtree(scratch)


def choose(plan: Plan, needed: dict[str, Artefact], names: list[str]) -> dict[str, Artefact]:
    """Return path -> artefact to make again; a variant stands for its checkpoint and evaluations.

    Raises:
        ConfigError: if a name matches no artefact of the configuration's report.
    """
    if not names:
        return {
            path: item for path, item in needed.items() if "download" not in item.options and item.stage != "benchmark"
        }
    chosen = {}
    for name in map(os.path.normpath, names):
        if name == plan.report().path:
            raise ConfigError(f"'{name}' contains its date and cannot be verified; everything it rests on can be")
        matching = {path: item for path, item in needed.items() if name == path or _of_variant(item, name)}
        if not matching:
            variants = listed(map(str, plan.config.evaluated))
            raise ConfigError(f"'{name}' is not in the configuration's report; variants: {variants}")
        chosen |= matching
    return chosen


def _of_variant(item: Artefact, variant: str) -> bool:
    """Return whether an artefact is a variant's checkpoint or an evaluation of it."""
    return item.place.folder in ("checkpoints", "evaluations") and item.place.variant == variant


def require_current(chosen: Iterable[Artefact]) -> None:
    """Raise QuantuneError if one of the artefacts, or one of their ancestors, is not current."""
    disk, seen = Disk(), set()
    for item in (item for target in chosen for item in costs.with_ancestors(target, seen)):
        if disk.state(item) is not State.CURRENT:
            raise QuantuneError(f"{item.path} is {disk.state(item).value}; run `snakemake` first, then verify")


def rebuild(plan: Plan, path: str, needed: dict, chosen: dict, scratch: Path, cores: str) -> None:
    """Make the chosen artefacts in the scratch folder: run Snakemake with absolute paths of sources.

    Raises:
        QuantuneError: if Snakemake fails; the scratch folder is kept.
    """
    disk = Disk()
    for item in needed.values():
        if item.path not in chosen and disk.state(item) is State.CURRENT:
            _created((scratch / item.path).parent).joinpath(Path(item.path).name).symlink_to(Path(item.path).resolve())
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for entry in (entry for section in SOURCES for entry in raw.get(section, {}).values()):
        if "path" in entry:
            entry["path"] = os.path.abspath(os.path.expanduser(os.path.expandvars(entry["path"])))
    raw["lock"] = os.path.abspath(plan.config.lock)
    if (known := layout.hash_cache(plan.work)).exists():  # linked files need not be read again
        shutil.copy(known, _created(scratch / plan.work))
    (scratch / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", *chosen, "--cores", cores, "--quiet", "rules"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--workflow-profile", str(ROOT / "profiles/default")]
    if _run([*command, "--configfile", "config.yaml"], scratch):
        raise QuantuneError(f"making again failed; the logs and the finished artefacts are in {scratch}")


def compare(path: str, scratch: Path) -> str:
    """Print how an artefact differs from the new one; return "bit-equal", "within tolerance" or "different"."""
    differences = likeness.differences(Path(path), scratch / path)
    worst = max(differences, key=lambda item: item.distance, default=None)
    if worst is None:
        print(f"bit-equal         {path}")
        return "bit-equal"
    verdict = "within tolerance" if worst.tolerable else "different"
    print(f"{verdict:<16}  {path}")
    for item in differences:
        print(f"    {item.file}: relative distance {item.distance:.2g}, {item.where}")
    before, after = (read_provenance(folder)["packages"] for folder in (path, scratch / path))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            print(f"    made with {name} {before[name]}, now {after[name]}")
    return verdict


def _run(command: list[str], folder: Path) -> int:
    """Return a command's exit status; the command ends when this process is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with subprocess.Popen(command, cwd=folder) as running:
        try:
            return running.wait()
        except BaseException:
            running.terminate()  # Snakemake ends its jobs, and leaving the block waits for it
            raise


def _created(folder: Path) -> Path:
    """Return the folder, created if it did not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
