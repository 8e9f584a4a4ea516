"""Build an artefact in a temporary folder, write its provenance, and rename it into place when it is complete."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantune.artefacts import hashes, layout, record, sealed
from quantune.core import gpu_turns, hardware
from quantune.core.errors import QuantuneError

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "compressed-tensors",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "pandas",
    "matplotlib",
    "jinja2",
    "soundfile",
    "soxr",
    "jiwer",
    "opencc",
    "cn2an",
)
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=[^<>]*>)")


def make(order: dict[str, Any], body: Callable, started: float, kept: bool = False) -> None:
    """Build an artefact in the work folder's `tmp` and rename it into place.

    Args:
        order: the artefact to make, as `Artefact.order` returns it.
        body: called with the folder to fill and the scratch folder.
        started: when the work began (Unix time).
        kept: keep a copy in `tmp` for `run_all`, which removes it.

    Raises:
        QuantuneError: if a parent on disk is not the one that the order names, or a file from outside changed.
    """
    target, place = Path(order["path"]), build_folder_of(order)
    with record.locked(layout.lock(place)):
        done = _make(order, target, place, body, started, kept)
    layout.lock(place).unlink(missing_ok=True)
    print(done)


def _make(order: dict[str, Any], target: Path, place: Path, body: Callable, started: float, kept: bool) -> str:
    """Build an artefact unless it is complete, while no other process does; return what was done."""
    if not kept and _is_complete(target, order):
        return f"made by another process while this one waited: {target}"
    parents = _parents(order)
    folder, scratch, finished = place / "output", place / "scratch", place / "finished"
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept and _is_complete(finished, order, parents):
        _replace(target, finished, place)
        return f"finished by a job that was interrupted later: {target}"
    digests = {role: [item["digest"] for item in items] for role, items in parents.items()}
    digest = record.recipe_digest(*(order[key] for key in ("stage", "version", "recipe", "sources")), digests)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    facts = body(folder, scratch) or {}
    _require_same_sources(order)
    run = {"digest": digest, "predicted": order.get("predicted")} | facts.pop("run", {})
    sealed.write(folder / record.RUN, _run_facts(started, order["options"]) | run)
    provenance = _provenance(order, digest, parents, without_addresses(facts), folder)
    sealed.write(folder / record.PROVENANCE, provenance)
    if broken := record.problem(folder):  # else every run would make it again
        raise TypeError(f"the stage {order['stage']} records other types than it should: {broken}")
    _flush(folder)
    _replace(target, folder, place)
    for item in provenance["files"]:
        hashes.work_hashes(order["options"]["work"]).remember(target / item["path"], item["sha256"])
    if kept:
        shutil.rmtree(finished, ignore_errors=True)
        shutil.copytree(target, finished, copy_function=os.link)
    else:
        shutil.rmtree(place, ignore_errors=True)
    return f"done in {time.time() - started:.1f} s: {target}"


def build_folder_of(order: dict[str, Any]) -> Path:
    """Return the folder in which the artefact of an order is built."""
    return layout.build_folder(order["options"]["work"], order["digest"], Path(order["path"]).name)


def _is_complete(folder: Path, order: dict[str, Any], parents: dict[str, Any] | None = None) -> bool:
    """Return whether a folder holds the complete artefact of an order; with `parents`, made from their bytes."""
    provenance = record.read_provenance(folder)
    if not provenance or provenance["digest"] != order["digest"] or record.damage(folder, provenance):
        return False
    return parents is None or provenance["parents"] == parents


def _replace(target: Path, folder: Path, place: Path) -> None:
    """Rename a folder to the target; a folder at the target is moved to `place` and removed with it."""
    shutil.rmtree(place / "replaced", ignore_errors=True)
    if os.path.lexists(target):
        os.rename(target, place / "replaced")
    os.rename(folder, target)


def _require_same_sources(order: dict[str, Any]) -> None:
    """Raise QuantuneError if a file from outside, on this machine, has changed since planning."""
    for path in record.outside(order["options"]):
        if hashes.work_hashes(order["options"]["work"]).file(path) not in order["sources"].values():
            raise QuantuneError(f"'{path}' changed while it was read; run the same snakemake command again")


def _parents(order: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return role -> path, digest and content digest of the parents; raises QuantuneError if one has another digest."""
    known = {role: [] for role in order["parents"]}
    for role, parents in order["parents"].items():
        for parent in parents:
            provenance = record.read_provenance(parent["path"])
            if provenance is None or provenance["digest"] != parent["digest"]:
                raise QuantuneError(
                    f"{parent['path']} is not the artefact that the configuration describes (did another run or"
                    " checkout change it meanwhile?); run the same snakemake command again"
                )
            known[role].append({**parent, "digest": provenance["digest"], "content": record.content_digest(provenance)})
    return known


def _provenance(order: dict, digest: str, parents: dict, facts: dict, folder: Path) -> dict[str, Any]:
    """Return the provenance of an artefact: it follows from the recipe and the packages alone, not from the run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in record.UNRECORDED)
    return {
        "digest": digest,
        "stage": order["stage"],
        "version": order["version"],
        "recipe": order["recipe"],
        "sources": order["sources"],
        "parents": parents,
        "facts": facts,
        "packages": {"python": platform.python_version(), **{name: hardware.version(name) for name in PACKAGES}},
        "files": [
            {"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": hashes.file_sha256(path)}
            for path in files
        ],
    }


def _run_facts(started: float, options: dict[str, Any]) -> dict[str, Any]:
    """Return when and where the artefact was made, in how many seconds, and its peak memory in bytes."""
    import psutil

    facts = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started - gpu_turns.waited(started), 2),
        "peak_memory_bytes": hardware.resident_bytes("VmHWM"),
        "command": os.environ.get("QUANTUNE_COMMAND", ""),
        "commit": os.environ.get("QUANTUNE_COMMIT", ""),
        "deterministic": options.get("deterministic", True),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 1)),
        "hardware": {"cpu": hardware.cpu(), "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total},
        "platform": platform.platform(),
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        facts["hardware"]["gpu"] = torch.cuda.get_device_name()
        facts["peak_device_bytes"] = torch.cuda.max_memory_allocated()
        facts["cuda"] = torch.version.cuda
    return facts


def _flush(folder: Path) -> None:
    """Give every file its ordinary permissions and write it to disk (fsync) before the rename."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def without_addresses(value: Any) -> Any:
    """Return a value without the memory addresses in its texts: they differ from run to run.

    Python writes `<function f at 0x7f2c>` for an object that has no text of its own.
    """
    if isinstance(value, dict):
        return {key: without_addresses(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_addresses(item) for item in value]
    return ADDRESS.sub("", value) if isinstance(value, str) else value
