"""What every number of a report rests on: the provenance of its inputs and of all they were made from."""

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


def read_lineage(asked: Iterable[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return path -> provenance of artefacts and of all they were made from, down to the sources.

    Args:
        asked: the report's inputs, each with path and digest.

    Each has "run" too: when, where and how it was made. An ancestor that is no longer on disk, or is there with another
    digest, is given by its digest alone.
    """
    waiting, found = list(asked), {}
    while waiting:
        item, *waiting = waiting
        path = item["path"]
        if path in found:
            continue
        provenance = record.recorded(path)
        if provenance is None or provenance["digest"] != item["digest"]:
            provenance = {"digest": item["digest"]}
        elif (facts := Path(path, record.RUN)).exists():
            run = json.loads(facts.read_text())
            provenance |= {"run": {key: run[key] for key in RUN_FACTS if key in run}}
        found[path] = provenance
        waiting += [parent for made_from in provenance.get("parents", {}).values() for parent in made_from]
    return dict(sorted(found.items()))
