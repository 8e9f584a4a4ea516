"""The lineage of a report: the provenance of its inputs and of all their ancestors."""

import os
from collections.abc import Iterable
from typing import Any

from quantune.artefacts import record
from quantune.core.errors import QuantuneError

RUN_FACTS = (
    "started",
    "seconds",
    "audio_seconds",
    "real_time_factor",
    "steps_per_second",
    "predicted",
    "peak_memory_bytes",
    "peak_device_bytes",
    "hardware",
    "platform",
    "cuda",
    "command",
    "commit",
    "deterministic",
    "threads",
)


def read_lineage(inputs: Iterable[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return path -> provenance of artefacts and of all their ancestors, down to the sources.

    Args:
        inputs: the report's inputs, each with path and digest.

    Each has "run" too: when, where and how it was made. An ancestor that is missing on disk, or has another digest now,
    is given by its digest alone.

    Raises:
        QuantuneError: if a provenance or the record of a run was changed after it was written.
    """
    waiting, lineage = list(inputs), {}
    while waiting:
        item, *waiting = waiting
        path = item["path"]
        if path in lineage:
            continue
        provenance = record.read_provenance(path)
        if provenance is None and not os.path.lexists(path):
            provenance = {"digest": item["digest"]}
        elif broken := record.problem(path):
            raise QuantuneError(f"{path}/{broken}; run the same snakemake command again, which makes it again")
        elif provenance["digest"] != item["digest"]:
            provenance = {"digest": item["digest"]}
        else:
            run = record.read_run(path)
            provenance |= {"run": {key: run[key] for key in RUN_FACTS if key in run}}
        lineage[path] = provenance
        waiting += [parent for parents in provenance.get("parents", {}).values() for parent in parents]
    return dict(sorted(lineage.items()))
