"""The frame of every job: logging, threads, seeds, and an output that exists only once it is whole."""

import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from quantune import hardware, turns
from quantune.artefacts import PROVENANCE, RUN, UNRECORDED, content, locked, recipe_digest, recorded
from quantune.artefacts import damage as damaged
from quantune.errors import QuantuneError
from quantune.hashes import file_sha256
from quantune.hashes import of as hashes_of

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


def announce(root: str, arguments: list[str]) -> None:
    """Tell the jobs that this process starts where the code lies and by which command they were asked for."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("QUANTUNE_COMMAND", shlex.join(["snakemake", *arguments[1:]]))
    if "QUANTUNE_COMMIT" not in os.environ:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            told = subprocess.run(describe, cwd=root, text=True, capture_output=True).stdout
        except OSError:
            told = ""
        os.environ["QUANTUNE_COMMIT"] = told.strip()


def run(snakemake: Any, body: Callable[..., dict[str, Any] | None], imports: bool = True) -> None:
    """Make a rule's output.

    It takes a GPU when it first needs one, if the rule asks for one; a benchmark takes all of them.
    `body(order, inputs, folder, scratch)` fills the empty `folder` and returns facts for the provenance; `scratch` is
    kept until the output is complete, so that a killed job can go on from what it saved there. The folder is renamed
    into place at the end: an artefact that exists is whole.

    Args:
        snakemake: the object Snakemake gives to scripts.
        body: the stage.
        imports: whether to set up torch (threads, determinism, seeds); false for stages that need no torch.
    """
    order = snakemake.params.order
    inputs = {role: [Path(path) for path in paths] for role, paths in _by_role(snakemake.input).items()}
    with _framed(snakemake, order, imports) as started:
        make(order, partial(body, order, inputs), started)


def run_all(snakemake: Any, body: Callable[..., dict[str, Any] | None]) -> None:
    """Make those outputs of a rule that are not current, one after the other; see `run`.

    Snakemake removes what a failed job has made. What is finished is kept in `tmp` until the last output is, and the
    next job takes it from there.
    """
    orders = snakemake.params.orders
    with _framed(snakemake, orders[0]) as started:
        for order in orders:
            make(order, partial(body, order, _inputs(order)), started, kept=True)
            _start_again(order["options"])
            started = time.time()
        for order in orders:
            shutil.rmtree(_place(order), ignore_errors=True)


@contextmanager
def _framed(snakemake: Any, order: dict[str, Any], imports: bool = True) -> Iterator[float]:
    """Log, threads, seeds and a turn at the GPU; errors end the process. Yields when the job started."""
    _log_to(snakemake.log[0])
    if snakemake.params.why:
        print(snakemake.params.why.strip())
    if snakemake.resources.get("gpu"):
        turns.want(everything=order["stage"] == "benchmark")
    started = time.time()
    try:
        _prepare(snakemake.threads, order["options"])
        if imports:
            _start_torch(snakemake.threads, order["options"].get("deterministic", True))
        yield started
    except QuantuneError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        if "does not have a deterministic implementation" in str(error):
            print("Error: to use it all the same, write `deterministic: false` in the configuration", file=sys.stderr)
        sys.exit(1)


def make(order: dict[str, Any], body: Callable, started: float, kept: bool = False) -> None:
    """Build an artefact in the work folder's `tmp` and rename it into place.

    Args:
        order: what to make.
        body: called with the folder to fill and the scratch folder.
        started: when work on it began.
        kept: keep a copy in `tmp` for `run_all`, which removes it.

    Raises:
        QuantuneError: if a parent on disk is not the one the order was made for, or a file from outside changed.
    """
    target, place = Path(order["path"]), _place(order)
    with locked(place.with_name(place.name + ".lock")):
        if not kept and _is_made(target, order):
            print("made by another process while this one waited")
            return
        parents = _parents(order)
        folder, scratch, finished = place / "output", place / "scratch", place / "finished"
        target.parent.mkdir(parents=True, exist_ok=True)
        if kept and _is_made(finished, order, parents):
            _replace(target, finished, place)
            print(f"finished by a job that was interrupted later: {target}")
            return
        digests = {role: [item["digest"] for item in items] for role, items in parents.items()}
        digest = recipe_digest(*(order[key] for key in ("stage", "version", "recipe", "sources")), digests)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        facts = body(folder, scratch) or {}
        _require_same_sources(order)
        timing = facts.pop("run", {})
        _write(folder / RUN, _run_facts(started, order["options"]) | {"predicted": order.get("predicted")} | timing)
        provenance = _provenance(order, digest, parents, facts, folder)
        _write(folder / PROVENANCE, provenance)
        _settle(folder)
        _replace(target, folder, place)
        for item in provenance["files"]:
            hashes_of(order["options"]["work"]).learn(target / item["path"], item["sha256"])
        if kept:
            shutil.rmtree(finished, ignore_errors=True)
            shutil.copytree(target, finished, copy_function=os.link)
        else:
            shutil.rmtree(place, ignore_errors=True)
    place.with_name(place.name + ".lock").unlink(missing_ok=True)
    print(f"done in {time.time() - started:.1f} s: {target}")


def _place(order: dict[str, Any]) -> Path:
    """Return the folder in which an artefact is built."""
    return Path(order["options"]["work"], "tmp", f"{order['digest'][:16]}.{Path(order['path']).name}")


def _is_made(folder: Path, order: dict[str, Any], parents: dict[str, Any] | None = None) -> bool:
    """Return whether a folder holds what is ordered, whole; with `parents`, made from the same bytes."""
    found = recorded(folder)
    if not found or found["digest"] != order["digest"] or damaged(folder, found):
        return False
    return parents is None or found["parents"] == parents


def _replace(target: Path, folder: Path, place: Path) -> None:
    """Rename a folder to the target; what lies there goes to `place` and is removed with it."""
    shutil.rmtree(place / "replaced", ignore_errors=True)
    if os.path.lexists(target):
        os.rename(target, place / "replaced")
    os.rename(folder, target)


def _log_to(path: str) -> None:
    """Send everything that this process prints, libraries included, to a file."""
    with open(path, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)


def _require_same_sources(order: dict[str, Any]) -> None:
    """Raise QuantuneError if a file on this machine, from outside, is not the one that was there at planning."""
    files = order["options"].get("files", []) if "download" not in order["options"] else []
    paths = [path for found in files.values() for path in found] if isinstance(files, dict) else files
    for path in paths:
        if hashes_of(order["options"]["work"]).file(path) not in order["sources"].values():
            raise QuantuneError(f"'{path}' changed while it was read; run the same snakemake command again")


def _parents(order: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return role -> path, digest and content of the parents on disk, which are the ones asked for."""
    made_from = {role: [] for role in order["parents"]}
    for role, parents in order["parents"].items():
        for parent in parents:
            found = recorded(parent["path"])
            if found is None or found["digest"] != parent["digest"]:
                raise QuantuneError(
                    f"{parent['path']} is not what the configuration asks for (another run or checkout changed it"
                    " meanwhile?); run the same snakemake command again"
                )
            made_from[role].append({**parent, "digest": found["digest"], "content": content(found)})
    return made_from


def _provenance(order: dict, digest: str, parents: dict, facts: dict, folder: Path) -> dict[str, Any]:
    """Return what the artefact is: all of it follows from the recipe and the packages, none from the run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNRECORDED)
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
            {"path": str(path.relative_to(folder)), "size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        ],
    }


def _run_facts(started: float, options: dict[str, Any]) -> dict[str, Any]:
    """Return when, where and at what cost the artefact was made."""
    import psutil

    facts = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started - turns.waited(started), 2),
        "peak_memory_bytes": hardware.resident("VmHWM"),
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


def _settle(folder: Path) -> None:
    """Give every file its ordinary permissions and see it on disk before the rename makes it official."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _inputs(order: dict[str, Any]) -> dict[str, list[Path]]:
    """Return role -> folders of all that an order is made from."""
    parents = {role: [item["path"] for item in items] for role, items in order["parents"].items()}
    return {role: list(map(Path, paths)) for role, paths in (parents | order["reads"]).items()}


def _by_role(inputs: Any) -> dict[str, list[str]]:
    """Return the rule's named inputs, each as a list."""
    return {role: [value] if isinstance(value, str) else list(value) for role, value in inputs.items()}


def _prepare(threads: int, options: dict[str, Any]) -> None:
    """Threads for this job alone, a seed; no network, unless the job is to download."""
    if "download" not in options:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not start CUDA
    if options.get("deterministic", True):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("TQDM_MININTERVAL", "2")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    random.seed(0)


def _start_torch(threads: int, deterministic: bool) -> None:
    """Set up threads, seeds and determinism."""
    import numpy
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    numpy.random.seed(0)
    if deterministic:
        be_deterministic()


def _start_again(options: dict[str, Any]) -> None:
    """Set seeds and peaks of memory back, as a new process would have them."""
    import torch

    random.seed(0)
    _start_torch(torch.get_num_threads(), options.get("deterministic", True))
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    hardware.reset_resident_peak()


def be_deterministic() -> None:
    """Let torch use deterministic algorithms alone, and fail where an operation has none.

    If it only warned, the backward pass of fused attention would stay nondeterministic on a GPU. Memory that nobody
    has written is not filled beforehand: that costs time, and nothing of what is computed here reads it.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
