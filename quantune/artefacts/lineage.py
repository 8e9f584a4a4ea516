"""The lineage of a report: the provenance of its inputs and of all their ancestors."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantune.artefacts import record

RUN_FACTS = (
    "started",
    "seconds",
    "audio_seconds",
    "real_time_factor",
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
    """
    waiting, lineage = list(inputs), {}
    while waiting:
        item, *waiting = waiting
        path = item["path"]
        if path in lineage:
            continue
        provenance = record.read_provenance(path)
        if provenance is None or provenance["digest"] != item["digest"]:
            provenance = {"digest": item["digest"]}
        elif (facts := Path(path, record.RUN)).exists():
            run = json.loads(facts.read_text())
            provenance |= {"run": {key: run[key] for key in RUN_FACTS if key in run}}
        lineage[path] = provenance
        waiting += [parent for parents in provenance.get("parents", {}).values() for parent in parents]
    return dict(sorted(lineage.items()))
