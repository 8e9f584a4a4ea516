"""What the pictures of trade-offs draw: quality, and what it costs (size, memory, speed)."""

from collections.abc import Callable
from dataclasses import dataclass

from quantune.evaluations.metrics.metric import Metric
from quantune.report.gather import Report, VariantResult
from quantune.report.limits import taken
from quantune.report.scores import Score
from quantune.report.speed import REAL_TIME_FACTOR, Performance

SPEEDS = {
    "text": ("quality-speed", "decoding, tokens/s"),
    "speech": ("quality-real-time-factor", "real-time factor"),
}
"""Track -> a figure's name and its axis, but for the batch size."""
Measured = tuple[float, float, float]
"""Value, low, high."""


@dataclass(frozen=True)
class Axis:
    """What quality is drawn against."""

    label: str
    """With `{unit}` where it is in bytes."""
    of: Callable[[VariantResult], Measured | None]
    """Value, low and high of a variant; None where it was not measured."""
    short: str
    """For the chooser."""
    more_is_better: bool = False
    best: str = "best for its size"
    limit: float | None = None
    """The limit of the variant to ship, on this axis."""


def axes_of(report: Report, evaluation: str) -> dict[str, Axis]:
    """Return figure -> axis, for all that was measured of an evaluation's variants: size on disk, memory, and by batch
    size the speed of decoding or, of speech, the real-time factor.
    """
    limits = report.limits
    one = next((item.performance for item in report.having(evaluation) if item.performance), None)
    label, on_disk = "size on disk of the files to load, {unit}", None if one else limits.memory
    axes = {"quality-size": Axis(label, lambda item: _exactly(item.size_bytes), "size on disk", limit=on_disk)}
    if one is None:
        return axes
    where, on_gpu = f"{one.dtype}, on {one.machine}", one.kind == "gpu"
    quantity = "device memory in use" if on_gpu else "memory that its tensors take in use"
    axes["quality-memory"] = Axis(
        f"{quantity}, {{unit}}, {where}",
        lambda item: _exactly(item.performance.running_bytes) if item.performance else None,
        "memory in use",
        best="best for its memory",
        limit=None if on_gpu else limits.memory,
    )
    decisive = limits.batch or one.batches[0]
    if on_gpu:
        label = f"device memory at its peak, batch size {decisive}, {{unit}}, {where}"
        short = f"peak memory, batch {decisive}"
        axes["quality-peak"] = Axis(label, _peak(decisive), short, best="best for its memory", limit=limits.memory)
    figure, quantity = SPEEDS[one.track]
    for batch in one.batches:
        axes[f"{figure}-batch{batch}"] = Axis(
            f"{quantity} at batch size {batch}, {where}",
            _speed(one.leading, batch),
            f"{quantity}, batch {batch}",
            one.phases[one.leading].more_is_faster,
            "best for its speed",
            _as_speed(limits.latency, one, batch) if batch == decisive else None,
        )
    return axes


def metric_of(report: Report, evaluation: str) -> Metric:
    """Return the metric that is drawn: with several models the one that compares them whatever their tokens are."""
    metric = report.metric(evaluation)
    return metric.across_models or metric if report.of_several_models(evaluation) else metric


def quality(score: Score, metric: Metric) -> Measured:
    """Return the value of a metric and the ends of its 95 % interval, as shown: shares in per cent."""
    value, low, high = (metric.scale * score.numbers[f"{metric.key}{end}"] for end in ("", "_low", "_high"))
    return value, low, high


def _exactly(value: float) -> Measured:
    return value, value, value


def _peak(batch: int) -> Callable[[VariantResult], Measured | None]:
    def of(variant: VariantResult) -> Measured | None:
        peak = taken(variant.size_bytes, variant.performance, batch).memory if variant.performance else None
        return None if peak is None else _exactly(peak)

    return of


def _speed(phase: str, batch: int) -> Callable[[VariantResult], Measured | None]:
    def of(variant: VariantResult) -> Measured | None:
        speed = variant.performance and variant.performance.shown(phase).get(batch)
        return (speed.median, speed.low, speed.high) if speed else None

    return of


def _as_speed(latency: float | None, one: Performance, batch: int) -> float | None:
    """Return the speed at which a batch takes as long as the limit."""
    if latency is None:
        return None
    of_audio = one.phases[one.leading] is REAL_TIME_FACTOR
    return latency / (batch * one.length) if of_audio else batch / latency
