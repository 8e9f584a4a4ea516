"""The hardware and software that this machine computes with, detected without importing torch.

A benchmark's identity holds both, so that a measurement of another machine is never shown as one of this machine.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

LIBRARY_BYTES = 750_000_000
"""Bytes of main memory that Python, torch, transformers and peft take before a model is loaded; measured on a CPU."""
DRIVER_BYTES = 2_000_000_000
"""Bytes of main memory that a job on a GPU takes in addition."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with tensor cores for FP8."""
COMPUTE = ("torch", "transformers", "bitsandbytes", "compressed-tensors", "peft")  # packages that set the speed


@cache
def detect() -> dict[str, Any]:
    """Return the hardware in use: kind (gpu or cpu), device, count (of GPUs or cores), driver, software (versions)."""
    software = {name: version(name) for name in COMPUTE}
    if used := gpus():
        names = " and ".join(dict.fromkeys(gpu["name"] for gpu in used))
        return {"kind": "gpu", "device": names, "count": len(used), "driver": used[0]["driver"], "software": software}
    return {"kind": "cpu", "device": cpu(), "count": os.cpu_count(), "driver": None, "software": software}


@cache
def gpus() -> tuple[dict[str, str], ...]:
    """Return index, uuid, name and driver of each GPU that jobs of this process compute on.

    GPUs hidden by `CUDA_VISIBLE_DEVICES`, or from a torch that was not built for them, are left out.
    """
    return tuple(_visible(_installed(), os.environ.get("CUDA_VISIBLE_DEVICES"))) if _torch_has_cuda() else ()


def describe(hardware: dict[str, Any]) -> str:
    """Return a text for the result of `detect`: `NVIDIA H200, driver 570.1`, `AMD EPYC, 2 cores`."""
    count = hardware["count"]
    if hardware["kind"] == "cpu":
        return f"{hardware['device']}, {count} core{'s' if count > 1 else ''}"
    several = f" (the first of {count})" if count > 1 else ""
    return f"{hardware['device']}{several}, driver {hardware['driver']}"


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch_has_cuda() -> bool:
    """Return whether torch was built with CUDA, read from its `version.py`: importing it would take seconds."""
    spec = util.find_spec("torch")
    if spec is None or not spec.origin:
        return False
    try:
        lines = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return False
    built = re.search(r"^cuda\b.*= *(.+)$", lines, re.MULTILINE)
    return bool(built) and built[1].strip() != "None"


@cache
def weakest_gpu() -> tuple[str, tuple[int, int]] | None:
    """Return name and compute capability of the GPU with the lowest one that jobs may compute on.

    None without a GPU, or if the driver is too old to say.
    """
    used = {gpu["uuid"]: gpu["name"] for gpu in gpus()}
    answers = _listed({"uuid": "uuid", "compute_cap": "capability"}) if used else []
    capabilities = [(re.fullmatch(r"(\d+)\.(\d+)", gpu["capability"]), gpu["uuid"]) for gpu in answers]
    known = [((int(match[1]), int(match[2])), used[uuid]) for match, uuid in capabilities if match and uuid in used]
    return min(known)[::-1] if known else None


def without_fp8(name: str, capability: tuple[int, int]) -> str | None:
    """Return why a GPU of this name and compute capability cannot multiply FP8, with a remedy, or None."""
    if capability >= FP8_CAPABILITY:
        return None
    return (
        f"{name} cannot multiply FP8: its compute capability is {capability[0]}.{capability[1]}, and FP8 needs 8.9 or "
        "higher (Ada, Hopper, Blackwell); take 'activations: none' (FP8 weights only), or the method int8-dynamic"
    )


def _installed() -> list[dict[str, str]]:
    """Return index, uuid, name and driver of each GPU that `nvidia-smi` lists; none if it fails or is missing."""
    return _listed({"index": "index", "uuid": "uuid", "driver_version": "driver", "name": "name"})


def _listed(fields: dict[str, str]) -> list[dict[str, str]]:
    """Return properties of each GPU that `nvidia-smi` lists; none if it fails or is missing.

    Args:
        fields: name of a property for the driver -> its key in the result.
    """
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        printed = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [
        [cell.strip() for cell in line.split(",", len(fields) - 1)] for line in printed.splitlines() if line.strip()
    ]
    return [dict(zip(fields.values(), row, strict=True)) for row in rows]


def _visible(gpus: list[dict[str, str]], chosen: str | None) -> list[dict[str, str]]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` leaves; if its names match none (parts of a GPU), the first GPU."""
    if chosen is None or not gpus:
        return gpus
    names = [item.strip() for item in chosen.split(",") if item.strip() not in ("", "-1")]
    kept = [gpu for item in names for gpu in gpus if item == gpu["index"] or gpu["uuid"].startswith(item)]
    return kept or gpus[: len(names)][:1]


def resident_bytes(field: str) -> int:
    """Return the bytes of this process's resident set: now (`VmRSS`), or its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset_resident_peak() -> None:
    """Reset the peak of the resident set, if the kernel allows this."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
