"""Speed and memory, read from the benchmarks and derived from their raw runs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas

from quantune.artefacts import layout
from quantune.core import hardware
from quantune.core.errors import QuantuneError


@dataclass(frozen=True)
class Quantity:
    """The quantity that is shown of a phase."""

    key: str
    """In the table and the metrics."""
    form: str
    """In sentences, the number in its place."""
    more_is_faster: bool = True
    energy: str = "token"
    """The unit that joules are counted for: token, or second of audio."""


RATE = Quantity("tokens_per_second", "{} tokens/s")
LATENCY = Quantity("seconds", "{} s", more_is_faster=False, energy="audio_second")
REAL_TIME_FACTOR = Quantity("real_time_factor", "real-time factor {}", more_is_faster=False, energy="audio_second")
"""Seconds that encoding a batch of windows and decoding a fixed number of tokens for each take, over the seconds of
audio in the batch: 0.01 is a hundred times as fast as speech. Making log-mel spectrograms is left out."""
PHASES = {
    "text": {"prefill": RATE, "decode": RATE},
    "speech": {"transcribe": REAL_TIME_FACTOR, "encode": LATENCY, "decode": RATE},
}
"""Track -> phase -> the quantity that is shown; "transcribe" is encode and decode together."""
LEADING = {"text": "decode", "speech": "transcribe"}
"""Track -> the phase that decides which variant is fastest."""
LENGTHS = {"text": "prompt_length", "speech": "window_seconds"}
"""Track -> what a point of the sweep has beside its batch size."""


@dataclass(frozen=True)
class Speed:
    """How fast one phase is at one point of the sweep, over the repeats."""

    median: float
    low: float
    """Least of the repeats: the slowest where more is faster, else the fastest."""
    high: float
    repeats: int
    peak_bytes: int
    """Most memory in use during the phase; on a CPU resident memory, libraries that the model brought in included."""
    joules: float | None
    """For a token, or a second of audio; None where no driver measures it."""
    quantity: Quantity = RATE

    @property
    def spread(self) -> float:
        """Largest less least, over the median."""
        return (self.high - self.low) / self.median

    def times(self, other: "Speed") -> float:
        """Return how many times as fast as another it is, at the median."""
        return self.median / other.median if self.quantity.more_is_faster else other.median / self.median

    def beats(self, other: "Speed") -> bool:
        """Return whether its slowest repeat is faster than the other's fastest."""
        return self.low > other.high if self.quantity.more_is_faster else self.high < other.low

    def columns(self, prefix: str) -> dict[str, float | None]:
        """Return name -> number, for the table and the metrics."""
        key = f"{prefix}.{self.quantity.key}"
        numbers = {key: self.median, f"{key}_low": self.low, f"{key}_high": self.high}
        numbers[f"{prefix}.peak_bytes"] = self.peak_bytes
        return numbers | {f"{prefix}.joules_per_{self.quantity.energy}": self.joules}


@dataclass(frozen=True)
class Performance:
    """The benchmark of one variant."""

    path: str
    machine: str
    """Hardware, driver and threads, in words."""
    kind: Literal["gpu", "cpu"]
    dtype: str
    track: Literal["text", "speech"]
    loaded_bytes: int
    """What its tensors take after loading."""
    running_bytes: int
    """What they take once it has run: libraries may keep more by then."""
    footprint_bytes: int
    """Parameters and buffers alone, without quantization constants, as transformers' `get_memory_footprint` counts."""
    new_tokens: int | None
    """Of speech: tokens decoded for each window."""
    points: tuple[tuple[int, int], ...]
    """Batch sizes and lengths (tokens of a prompt, seconds of a window), in the order of the configuration; those
    without a speed did not fit."""
    decoders: dict[tuple[int, int], str]
    """(batch size, length) -> how tokens were decoded."""
    speeds: dict[tuple[str, int, int], Speed]
    """(phase, batch size, length) -> speed, in the order of the configuration."""

    def shown(self, phase: str) -> dict[int, Speed]:
        """Return batch size -> speed with the first length, the one in the table and figures; if it fit."""
        return {
            batch: item for (name, batch, length), item in self.speeds.items() if (name, length) == (phase, self.length)
        }

    @property
    def length(self) -> int:
        """The length that is shown: tokens of a prompt, seconds of a window."""
        return self.points[0][1]

    @property
    def phases(self) -> dict[str, Quantity]:
        """Its phases, and the quantity that is shown of each."""
        return PHASES[self.track]

    @property
    def leading(self) -> str:
        """The phase that decides which variant is fastest."""
        return LEADING[self.track]

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are shown, whether they fit or not."""
        return [batch for batch, length in self.points if length == self.length]

    @property
    def unfit(self) -> list[tuple[int, int]]:
        """The batch sizes and lengths for which memory did not suffice."""
        return [point for point in self.points if point not in self.decoders]

    def columns(self) -> dict[str, float | str | None]:
        """Return name -> number, for the table and the metrics."""
        numbers = {name: getattr(self, name) for name in ("loaded_bytes", "running_bytes", "footprint_bytes")}
        for (phase, batch, length), item in self.speeds.items():
            numbers |= item.columns(f"{phase}.batch{batch}.{LENGTHS[self.track].partition('_')[0]}{length}")
        return numbers


def read(paths: list[str]) -> dict[str, Performance]:
    """Return variant -> performance, from the folders of benchmarks.

    Raises:
        QuantuneError: if they were not all measured on the same hardware with the same number of threads.
    """
    performances = {layout.names(path, "benchmarks")[0]: _read(path) for path in paths}
    machines = {item.machine: item.path for item in performances.values()}
    if len(machines) > 1:
        listed = "; ".join(f"{path}: {machine}" for machine, path in machines.items())
        raise QuantuneError(
            f"benchmarks of different machines are not shown together ({listed}); delete the benchmarks folder and run"
            " the same snakemake command again"
        )
    return performances


def _read(path: str) -> Performance:
    result = json.loads(Path(path, "result.json").read_text())
    runs = pandas.read_parquet(Path(path, "items.parquet"))
    runs = runs[~runs.warmup.astype(bool)]
    track = "speech" if "window_seconds" in runs else "text"
    of_length = LENGTHS[track]
    speeds, decoders, measured = {}, {}, "measured" if result["hardware"]["kind"] == "gpu" else "tensors"
    for point in result["points"]:
        batch, length = point["batch_size"], point[of_length]
        if not point.get("fits", True):
            continue
        decoders[batch, length] = point["decoder"]
        chosen = runs[(runs.batch_size == batch) & (runs[of_length] == length)]
        for phase, quantity in PHASES[track].items():
            if quantity is REAL_TIME_FACTOR:
                speeds[phase, batch, length] = _together(chosen, batch * length, point)
            else:
                speeds[phase, batch, length] = _speed(chosen[chosen.phase == phase], quantity, point[phase])
    return Performance(
        path=path,
        machine=_machine(result),
        kind=result["hardware"]["kind"],
        dtype=result["dtype"],
        track=track,
        loaded_bytes=result["loaded_bytes"][measured],
        running_bytes=result["running_bytes"][measured],
        footprint_bytes=result["footprint_bytes"],
        new_tokens=result.get("new_tokens"),
        points=tuple((point["batch_size"], point[of_length]) for point in result["points"]),
        decoders=decoders,
        speeds=speeds,
    )


def _speed(runs: pandas.DataFrame, quantity: Quantity, point: dict[str, Any]) -> Speed:
    values = runs.tokens / runs.seconds if quantity is RATE else runs.seconds
    numbers = map(float, (values.median(), values.min(), values.max()))
    return Speed(*numbers, len(values), point["peak_bytes"], point[f"joules_per_{quantity.energy}"], quantity)


def _together(runs: pandas.DataFrame, audio: float, point: dict[str, Any]) -> Speed:
    """Return encode and decode together over so many seconds of audio: the sums of their medians, of their fastest
    repeats and of their slowest.
    """
    seconds = runs.groupby("phase").seconds
    numbers = (float(values.sum()) / audio for values in (seconds.median(), seconds.min(), seconds.max()))
    encode, decode = point["encode"], point["decode"]
    joules, tokens = (
        (encode["joules_per_audio_second"], decode["joules_per_token"]),
        runs.tokens[runs.phase == "decode"],
    )
    whole = None if None in joules else joules[0] + joules[1] * float(tokens.iloc[0]) / audio
    peak = max(encode["peak_bytes"], decode["peak_bytes"])
    return Speed(*numbers, int(seconds.count().min()), peak, whole, REAL_TIME_FACTOR)


def _machine(result: dict[str, Any]) -> str:
    machine = hardware.describe(result["hardware"])
    threads = result["threads"]
    return (
        machine
        if result["hardware"]["kind"] == "gpu"
        else f"{machine}, {threads} thread{'s' if threads > 1 else ''} used"
    )
