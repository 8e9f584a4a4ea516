"""Speed and memory as the report tells them: read from the benchmarks, derived from their raw runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas

from quantune import hardware
from quantune.errors import QuantuneError

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one phase at one batch size and prompt length, over the repeats."""

    median: float
    low: float
    """Of the slowest repeat."""
    high: float
    """Of the fastest repeat."""
    repeats: int
    peak_bytes: int
    """Most memory in use during the phase; on a CPU resident memory, libraries that the model brought in included."""
    joules_per_token: float | None
    """None where no driver tells."""

    @property
    def spread(self) -> float:
        """Fastest less slowest, over the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Performance:
    """The benchmark of one variant."""

    path: str
    machine: str
    """Hardware, driver and threads, in words."""
    kind: Literal["gpu", "cpu"]
    dtype: str
    loaded_bytes: int
    """What its tensors take after loading."""
    running_bytes: int
    """What they take once it has run: libraries may keep more by then."""
    points: tuple[tuple[int, int], ...]
    """Batch sizes and prompt lengths, in the order of the configuration; those without a speed did not fit."""
    decoders: dict[tuple[int, int], str]
    """(batch size, prompt length) -> how tokens were decoded."""
    speeds: dict[tuple[str, int, int], Speed]
    """(phase, batch size, prompt length) -> speed, in the order of the configuration."""

    def shown(self, phase: str) -> dict[int, Speed]:
        """Return batch size -> speed with the first prompt length, the one in the table and figures; if it fit."""
        return {
            batch: item for (name, batch, length), item in self.speeds.items() if (name, length) == (phase, self.prompt)
        }

    @property
    def prompt(self) -> int:
        """The prompt length that is shown, in tokens."""
        return self.points[0][1]

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are shown, whether they fit or not."""
        return [batch for batch, length in self.points if length == self.prompt]

    @property
    def unfit(self) -> list[tuple[int, int]]:
        """The batch sizes and prompt lengths for which memory did not suffice."""
        return [point for point in self.points if point not in self.decoders]

    def columns(self) -> dict[str, float | str | None]:
        """Return name -> number, for the table and the metrics."""
        found = {"loaded_bytes": self.loaded_bytes, "running_bytes": self.running_bytes}
        for (phase, batch, length), item in self.speeds.items():
            prefix = f"{phase}.batch{batch}.prompt{length}"
            found[f"{prefix}.tokens_per_second"] = item.median
            found |= {f"{prefix}.tokens_per_second_{end}": getattr(item, end) for end in ("low", "high")}
            found |= {f"{prefix}.peak_bytes": item.peak_bytes, f"{prefix}.joules_per_token": item.joules_per_token}
        return found


def read(paths: list[str]) -> dict[str, Performance]:
    """Return variant -> performance, from the folders of benchmarks.

    Raises:
        QuantuneError: if they were not all measured on the same hardware with the same number of threads.
    """
    found = {Path(path).name: _read(path) for path in paths}
    machines = {item.machine: item.path for item in found.values()}
    if len(machines) > 1:
        told = "; ".join(f"{path}: {machine}" for machine, path in machines.items())
        raise QuantuneError(
            f"benchmarks of different machines are not shown together ({told}); delete the benchmarks folder and run"
            " the same snakemake command again"
        )
    return found


def _read(path: str) -> Performance:
    result = json.loads(Path(path, "result.json").read_text())
    runs = pandas.read_parquet(Path(path, "items.parquet"))
    runs = runs[~runs.warmup.astype(bool)].assign(rate=lambda rows: rows.tokens / rows.seconds)
    speeds, decoders, measured = {}, {}, "measured" if result["hardware"]["kind"] == "gpu" else "tensors"
    for point in result["points"]:
        batch, length = point["batch_size"], point["prompt_length"]
        if not point.get("fits", True):
            continue
        decoders[batch, length] = point["decoder"]
        for phase in PHASES:
            chosen = (runs.phase == phase) & (runs.batch_size == batch) & (runs.prompt_length == length)
            rates = runs.rate[chosen]
            numbers = map(float, (rates.median(), rates.min(), rates.max()))
            speeds[phase, batch, length] = Speed(*numbers, len(rates), **point[phase])
    return Performance(
        path=path,
        machine=_machine(result),
        kind=result["hardware"]["kind"],
        dtype=result["dtype"],
        loaded_bytes=result["loaded_bytes"][measured],
        running_bytes=result["running_bytes"][measured],
        points=tuple((point["batch_size"], point["prompt_length"]) for point in result["points"]),
        decoders=decoders,
        speeds=speeds,
    )


def _machine(result: dict[str, Any]) -> str:
    told = hardware.told(result["hardware"])
    threads = result["threads"]
    return told if result["hardware"]["kind"] == "gpu" else f"{told}, {threads} thread{'s' if threads > 1 else ''} used"
