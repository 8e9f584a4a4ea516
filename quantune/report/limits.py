"""The limits of the variant to ship, and what a variant takes beside them: memory and latency at a batch size."""

from dataclasses import dataclass
from typing import Any, Literal

from quantune.report.scores import TOLERANCE
from quantune.report.speed import REAL_TIME_FACTOR, Performance


@dataclass(frozen=True)
class Limits:
    """Limits of the configuration; None: no limit."""

    memory: float | None = None
    """Bytes."""
    loss: float | None = None
    """Share of perplexity, or difference of rates."""
    latency: float | None = None
    """Seconds."""
    batch: int | None = None
    """Batch size at which memory and latency count; None: the first of the benchmark."""
    evaluations: tuple[str, ...] | None = None
    """Evaluations on which the loss counts; None: all."""

    @classmethod
    def of(cls, ship: dict[str, Any] | None) -> "Limits":
        """Return the limits of the report's recipe."""
        given = dict(ship or {})
        names = given.pop("evaluations", None)
        return cls(**given, evaluations=tuple(names) if names else None)

    @property
    def given(self) -> bool:
        """Whether there is a limit at all."""
        return any(value is not None for value in (self.memory, self.loss, self.latency))

    @property
    def tolerance(self) -> float:
        """The loss that the report compares with."""
        return TOLERANCE if self.loss is None else self.loss


@dataclass(frozen=True)
class Taken:
    """What a variant takes; None where the batch did not fit, or nothing was measured."""

    memory: float | None
    """Bytes."""
    kind: Literal["peak", "tensors", "disk"]
    """Device memory at its peak; bytes of the tensors in use; size on disk, where nothing was measured."""
    latency: float | None = None
    """Seconds to the next token of each sequence, or to the transcripts of a batch: median of the repeats."""
    slowest: float | None = None
    """The same in the slowest repeat."""


def taken(size_bytes: int, performance: Performance | None, batch: int | None, measured: bool = False) -> Taken:
    """Return what a variant takes at a batch size, the first of the benchmark if it is None.

    Args:
        size_bytes: on disk.
        performance: None where it was not measured.
        batch: the batch size.
        measured: whether other variants were measured: then the size on disk does not count.
    """
    if performance is None:
        return Taken(None, "tensors") if measured else Taken(size_bytes, "disk")
    batch = performance.batches[0] if batch is None else batch
    speeds = {phase: performance.shown(phase).get(batch) for phase in performance.phases}
    leading = speeds[performance.leading]
    on_gpu = performance.kind == "gpu"
    if leading is None:
        return Taken(None, "peak" if on_gpu else "tensors")
    peak = max(speed.peak_bytes for speed in speeds.values() if speed)
    memory = Taken(peak, "peak") if on_gpu else Taken(performance.running_bytes, "tensors")
    if leading.quantity is REAL_TIME_FACTOR:
        audio = batch * performance.length
        return Taken(memory.memory, memory.kind, leading.median * audio, leading.high * audio)
    return Taken(memory.memory, memory.kind, batch / leading.median, batch / leading.low)
