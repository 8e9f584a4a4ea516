"""Predicted memory beside what was measured, job by job, from what each job recorded when it ran.

On a GPU the tensors that were predicted are compared with the most device memory that was allocated. Without one they
are part of the process, and the process is compared: tensors and what is allowed for libraries, with the most resident
memory.
"""

import statistics
from dataclasses import dataclass
from typing import Any

from quantune.core import units
from quantune.core.hardware import LIBRARY_BYTES
from quantune.report.gather import Report

FEW = 12  # rows of the table up to which it is open at first


@dataclass(frozen=True)
class JobMemory:
    """The memory of one job: predicted before it ran, and measured."""

    path: str
    """Of what it made."""
    stage: str
    hardware: str
    """What computed, in words."""
    on_gpu: bool
    terms: dict[str, int]
    """Predicted tensors at the peak -> bytes."""
    measured: int
    """Most bytes of the device's memory; without a GPU of resident memory, libraries included."""

    @property
    def predicted(self) -> int:
        """The predicted peak, in bytes."""
        return sum(self.terms.values())

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted


def compare(report: Report) -> list[JobMemory]:
    """Return the comparison of every job whose prediction and peak are recorded, in the order of their paths."""
    ran = {path: item for path, item in report.artefacts.items() if "run" in item}
    compared = [_compare(path, item["stage"], item["run"]) for path, item in ran.items()]
    return [item for item in compared if item]


def _compare(path: str, stage: str, run: dict[str, Any]) -> JobMemory | None:
    terms, hardware = run.get("predicted"), run["hardware"]
    on_gpu = "gpu" in hardware
    measured = run.get("peak_device_bytes" if on_gpu else "peak_memory_bytes")
    if not terms or not measured:
        return None
    terms = terms if on_gpu else {"libraries": LIBRARY_BYTES} | terms
    return JobMemory(path, stage, hardware["gpu" if on_gpu else "cpu"], on_gpu, terms, measured)


def sentences(comparisons: list[JobMemory]) -> list[str]:
    """Return in sentences how far measured and predicted memory agree, on each kind of hardware."""
    texts = []
    for hardware in dict.fromkeys(item.hardware for item in comparisons):
        alike = [item for item in comparisons if item.hardware == hardware]
        ratios = [item.ratio for item in alike]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} times, median {statistics.median(ratios):.2f}"
        jobs = units.plural(len(alike), "job")
        texts.append(f"On {hardware} {jobs} took {spread}, what was predicted before they ran.")
        if not alike[0].on_gpu:
            share = statistics.median(item.terms["libraries"] / item.predicted for item in alike)
            texts.append(
                f"Without a GPU this is the resident memory of the whole process: {units.size(LIBRARY_BYTES)} of each"
                f" prediction ({100 * share:.0f} % of it, at the median) are allowed for Python and its libraries,"
                " whatever the model."
            )
    return texts
