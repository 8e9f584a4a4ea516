"""The frame of every job: logging, threads, seeds, and an output that exists only when it is complete."""

import json
import os
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

from quantune.artefacts import record
from quantune.artefacts.making import build_folder_of, make
from quantune.core import gpu_turns, hardware
from quantune.core.credentials import RedactedStream, redacted
from quantune.core.errors import QuantuneError


def announce(root: str, arguments: list[str]) -> None:
    """Pass the folder of the code, the command and the commit to the jobs that this process starts.

    Credentials are taken out of the command, and out of what this process prints as errors and warnings.
    """
    sys.stderr = RedactedStream(sys.stderr)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("QUANTUNE_COMMAND", redacted(shlex.join(["snakemake", *arguments[1:]])))
    if "QUANTUNE_COMMIT" not in os.environ:
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            commit = subprocess.run(describe, cwd=root, text=True, capture_output=True).stdout
        except OSError:
            commit = ""
        os.environ["QUANTUNE_COMMIT"] = commit.strip()


def run(snakemake: Any, body: Callable[..., dict[str, Any] | None], imports: bool = True) -> None:
    """Make a rule's output.

    The job takes a GPU when it first needs one, if the rule requests one; a benchmark takes all of them.
    `body(order, inputs, folder, scratch)` fills the empty `folder` and returns facts for the provenance; `scratch` is
    kept until the output is complete, so that a killed job can resume from the files in it. The folder is renamed into
    place at the end: an artefact that exists is complete.

    Args:
        snakemake: the object Snakemake gives to scripts.
        body: the function of the stage.
        imports: whether to set up torch (threads, determinism, seeds); false for stages that need no torch.
    """
    (order,) = json.loads(snakemake.params.job["orders"])
    with _prepared(snakemake, order, imports) as started:
        make(order, partial(body, order, _inputs(order)), started)


def run_all(snakemake: Any, body: Callable[..., dict[str, Any] | None]) -> None:
    """Make the outputs of a rule that are not current, one after the other; see `run`.

    Snakemake removes the outputs of a failed job. A copy of each finished output is kept in `tmp` until the last one is
    finished; the next job takes it from that folder.
    """
    orders = json.loads(snakemake.params.job["orders"])
    with _prepared(snakemake, orders[0]) as started:
        for order in orders:
            make(order, partial(body, order, _inputs(order)), started, kept=True)
            _reset(order["options"])
            started = time.time()
        for order in orders:
            shutil.rmtree(build_folder_of(order), ignore_errors=True)


@contextmanager
def _prepared(snakemake: Any, order: dict[str, Any], imports: bool = True) -> Iterator[float]:
    """Set up log, threads, seeds and a turn at the GPU; yield the start time (Unix). An error ends the process."""
    _log_to(snakemake.log[0])
    if why := snakemake.params.job["why"]:
        print(why.strip())
    if snakemake.resources.get("gpu"):
        gpu_turns.want(all_gpus=order["stage"] == "benchmark")
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
            print("Error: to use it nevertheless, write `deterministic: false` in the configuration", file=sys.stderr)
        sys.exit(1)


def _log_to(path: str) -> None:
    """Send all output of this process, libraries included, to a file; credentials are taken out of it."""
    with open(path, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)


def _inputs(order: dict[str, Any]) -> dict[str, list[Path]]:
    """Return role -> paths of the parents of an order, of the artefacts that it reads, and of files from outside."""
    parents = {role: [item["path"] for item in items] for role, items in order["parents"].items()}
    inputs = parents | order["reads"] | {"outside": record.outside(order["options"])}
    return {role: list(map(Path, paths)) for role, paths in inputs.items()}


def _prepare(threads: int, options: dict[str, Any]) -> None:
    """Set threads and the seed of `random`; forbid the network, unless the job downloads."""
    if "download" not in options:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # testing for a GPU must not start CUDA
    if options.get("deterministic", True):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("TQDM_MININTERVAL", "2")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    random.seed(0)


def _start_torch(threads: int, deterministic: bool) -> None:
    """Set threads, seeds and determinism of torch and numpy."""
    import numpy
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    numpy.random.seed(0)
    if deterministic:
        be_deterministic()


def _reset(options: dict[str, Any]) -> None:
    """Reset seeds and peaks of memory to those of a new process."""
    import torch

    random.seed(0)
    _start_torch(torch.get_num_threads(), options.get("deterministic", True))
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    hardware.reset_resident_peak()


def be_deterministic() -> None:
    """Make torch use only deterministic algorithms, and raise an error if an operation has none.

    With a warning alone, the backward pass of fused attention would stay nondeterministic on a GPU. Uninitialized
    memory is not filled: that costs time, and no computation of a job reads it.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
