"""What every number of a report rests on: the provenance of its inputs and of all they were made from."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantune import artefacts

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
)


def read_lineage(asked: Iterable[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return path -> provenance of artefacts and of all they were made from, down to the sources.

    Args:
        asked: the report's inputs, each with path and digest. They have "run" too: when, where and how they were made.

    An ancestor that is no longer on disk, or is there with another digest, is given by its digest alone.
    """
    asked = list(asked)
    inputs, waiting, found = {item["path"] for item in asked}, asked, {}
    while waiting:
        item, *waiting = waiting
        path = item["path"]
        if path in found:
            continue
        provenance = artefacts.recorded(path)
        if provenance is None or provenance["digest"] != item["digest"]:
            provenance = {"digest": item["digest"]}
        found[path] = provenance
        if path in inputs:
            run = json.loads(Path(path, artefacts.RUN).read_text())
            found[path] = provenance | {"run": {key: run[key] for key in RUN_FACTS if key in run}}
        waiting += [parent for made_from in provenance.get("parents", {}).values() for parent in made_from]
    return dict(sorted(found.items()))
