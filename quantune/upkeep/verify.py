"""Is what lies on disk what it claims to be? `make check` reads it all; `make verify` makes chosen artefacts again.

Making again happens in a scratch folder, with the artefacts that were not chosen linked in as they are, so that a
difference is that of the chosen one and not of what it was made from.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from quantune.artefacts import layout, likeness
from quantune.artefacts.freshness import State, state
from quantune.artefacts.hashes import file_sha256
from quantune.artefacts.record import PROVENANCE, Artefact, damage, locked, recipe_digest, recorded
from quantune.core.errors import ConfigError, QuantuneError, listed, told
from quantune.planning import costs, load
from quantune.planning.plan import Plan
from quantune.upkeep import dvc

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("models", "datasets", "recordings")


def check(path: str = "config.yaml") -> None:
    """Compare every file below the work folder, and in DVC's cache, with its recorded hash (`make check`).

    Prints each that differs, and what to do; exits with 1 if there is any.
    """
    with told():
        work = Path(load.read(path).work)
        damaged = [*corrupted(work), *dvc.corrupted(Path.cwd())]
        for line in damaged:
            print(line)
        count = len(list(artefacts_in(work)))
        if damaged:
            sys.exit(
                f"{len(damaged)} damaged: remove what is named; `make pull`, or else `make commit`, brings it back"
            )
        print(f"{count} artefacts: every file is as recorded")


def corrupted(work: Path) -> Iterator[str]:
    """Yield, in words, each file that is not the one its artefact's provenance lists, and what has no provenance."""
    from tqdm import tqdm

    for folder in layout.present(work):
        if folder.is_dir() and not (folder / PROVENANCE).exists():
            yield f"{folder} has no {PROVENANCE}: it is half of an artefact"
    for folder in tqdm(sorted(artefacts_in(work)), desc="reading", unit=" artefacts", disable=None):
        provenance = recorded(folder)
        if provenance is None:
            yield f"{folder}/{PROVENANCE} cannot be read"
        elif broken := damage(folder, provenance):
            yield f"{folder}: {broken}"
        elif provenance["digest"] != redone(provenance):
            yield f"{folder}/{PROVENANCE} was changed: its digest is not that of the recipe and parents it tells of"
        else:
            for file in provenance.get("files", []):
                if file_sha256(folder / file["path"]) != file["sha256"]:
                    yield f"{folder}/{file['path']} is not what was made: its SHA-256 is not the recorded one"


def redone(provenance: dict[str, Any]) -> str:
    """Return the digest of what a provenance says its artefact was made from."""
    parents = {role: [item["digest"] for item in items] for role, items in provenance["parents"].items()}
    return recipe_digest(*(provenance[key] for key in ("stage", "version", "recipe", "sources")), parents)


def artefacts_in(work: Path) -> Iterator[Path]:
    """Yield the folders below the work folder that hold an artefact."""
    return (path.parent for path in work.rglob(PROVENANCE) if layout.parse(path.parent, work))


def verify(path: str = "config.yaml", only: str = "", cores: str = "all") -> None:
    """Make artefacts again in a scratch folder and compare (`make verify`).

    Prints for each whether it is bit-equal, equal within `likeness.TOLERANCE`, or different, where and by how much;
    exits with 1 if any is different.

    Args:
        path: the configuration file.
        only: variants, or paths below the work folder, separated by spaces; without any, all that is computed from
            sources on disk, but for benchmarks.
        cores: what Snakemake may use.
    """
    with told():
        plan = Plan(load.read(path))
        if os.path.isabs(plan.work) or ".." in Path(plan.work).parts:
            raise ConfigError(f"work: to verify, the work folder must be below this one, not '{plan.work}'")
        asked = {item.path: item for item in costs.needed(plan.report()) if item.stage != "report"}
        chosen = choose(plan, asked, only.split())
        require_current(asked.values() if not only else chosen.values(), asked)
        scratch = Path(tempfile.mkdtemp(prefix="verify-", dir=_made(layout.unfinished(plan.work))))
        print(f"making {len(chosen)} artefacts again in {scratch}", flush=True)
        with locked(layout.lock(scratch)):  # `make clean-stale` leaves it alone
            rebuild(plan, path, asked, chosen, scratch, cores)
            verdicts = [compare(item, scratch) for item in chosen]
    layout.lock(scratch).unlink()
    print(f"{verdicts.count('bit-equal')} of {len(chosen)} bit-equal, {verdicts.count('different')} different")
    if "different" in verdicts:
        sys.exit(f"what was made again is kept in {scratch}")
    shutil.rmtree(scratch)


def choose(plan: Plan, asked: dict[str, Artefact], names: list[str]) -> dict[str, Artefact]:
    """Return path -> artefact of what is to be made again; a variant stands for its checkpoint and evaluations.

    Raises:
        ConfigError: if a name is none of what the configuration asks for.
    """
    if not names:
        return {
            path: item for path, item in asked.items() if "download" not in item.options and item.stage != "benchmark"
        }
    found = {}
    for name in map(os.path.normpath, names):
        if name == plan.report().path:
            raise ConfigError(f"'{name}' tells when it was made and is not verified; all it tells of can be")
        matching = {path: item for path, item in asked.items() if name == path or _of_variant(item, name)}
        if not matching:
            variants = listed(map(str, plan.config.evaluated))
            raise ConfigError(f"nothing of '{name}' is in the configuration's report; variants: {variants}")
        found |= matching
    return found


def _of_variant(item: Artefact, variant: str) -> bool:
    """Return whether an artefact is a variant's checkpoint or an evaluation of it."""
    return item.place.folder in ("checkpoints", "evaluations") and item.place.variant == variant


def require_current(chosen: Any, asked: dict[str, Artefact]) -> None:
    """Raise QuantuneError if one of the artefacts, or of what they are made from, is not on disk as asked for."""
    for item in {item.path: item for target in chosen for item in costs.needed(target)}.values():
        if state(item) is not State.CURRENT:
            raise QuantuneError(f"{item.path} is {state(item).value}; run `snakemake` first, then verify")


def rebuild(plan: Plan, path: str, asked: dict, chosen: dict, scratch: Path, cores: str) -> None:
    """Run Snakemake in the scratch folder, on the same configuration with absolute paths of sources.

    Raises:
        QuantuneError: if Snakemake fails; the scratch folder is kept.
    """
    for item in asked.values():
        if item.path not in chosen and state(item) is State.CURRENT:
            _made((scratch / item.path).parent).joinpath(Path(item.path).name).symlink_to(Path(item.path).resolve())
    raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for entry in (entry for section in SOURCES for entry in raw.get(section, {}).values()):
        if "path" in entry:
            entry["path"] = os.path.abspath(os.path.expanduser(os.path.expandvars(entry["path"])))
    raw["lock"] = os.path.abspath(plan.config.lock)
    if (known := layout.remembered_hashes(plan.work)).exists():  # what is linked in need not be read again
        shutil.copy(known, _made(scratch / plan.work))
    (scratch / "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", *chosen, "--cores", cores, "--quiet", "rules"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--workflow-profile", str(ROOT / "profiles/default")]
    if _run([*command, "--configfile", "config.yaml"], scratch):
        raise QuantuneError(f"making again failed; what there is, and the logs, are in {scratch}")


def compare(path: str, scratch: Path) -> str:
    """Print how alike an artefact and what was made again are; return the verdict."""
    found = likeness.differences(Path(path), scratch / path)
    worst = max(found, key=lambda item: item.distance, default=None)
    if worst is None:
        print(f"bit-equal         {path}")
        return "bit-equal"
    verdict = "within tolerance" if worst.tolerable else "different"
    print(f"{verdict:<16}  {path}")
    for item in found:
        print(f"    {item.file}: relative distance {item.distance:.2g}, {item.where}")
    before, after = (recorded(folder)["packages"] for folder in (path, scratch / path))
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            print(f"    made with {name} {before[name]}, now {after[name]}")
    return verdict


def _run(command: list[str], folder: Path) -> int:
    """Return a command's exit status; it does not outlive this process when that is terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with subprocess.Popen(command, cwd=folder) as running:
        try:
            return running.wait()
        except BaseException:
            running.terminate()  # it ends its jobs, and this waits for it
            raise


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
