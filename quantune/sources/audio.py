"""Recordings as arrays: decoded by libsndfile (WAV, FLAC, MP3, OGG), mixed to mono, resampled by soxr."""

import io
from typing import Any

import numpy

PCM = 32767  # the largest 16-bit sample


class BrokenAudioError(Exception):
    """A recording that cannot be decoded."""


def decode(data: bytes) -> tuple[numpy.ndarray, int, int]:
    """Decode a recording.

    Returns:
        Samples in [-1, 1], mean of the channels, shape (frames,), float32; rate in Hz; number of channels.

    Raises:
        BrokenAudioError: with the reason, if it cannot be decoded or is empty.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise BrokenAudioError("0 bytes" if not data else str(error).removeprefix("Error opening ")) from None
    if not len(samples):
        raise BrokenAudioError("holds no samples")
    if not numpy.isfinite(samples).all():
        raise BrokenAudioError("holds samples that are no numbers")
    return samples.mean(axis=1, dtype="float32"), rate, samples.shape[1]


def resample(samples: numpy.ndarray, rate: int, target: int) -> numpy.ndarray:
    """Return samples, shape (frames,), at another rate in Hz (soxr, very high quality)."""
    import soxr

    return samples if rate == target else soxr.resample(samples, rate, target, quality="VHQ")


def to_pcm(samples: numpy.ndarray) -> numpy.ndarray:
    """Return samples in [-1, 1] as 16-bit integers; louder samples are clipped."""
    return numpy.round(numpy.clip(samples, -1, 1) * PCM).astype("<i2")


def from_pcm(samples: numpy.ndarray) -> numpy.ndarray:
    """Return 16-bit samples as float32 in [-1, 1]."""
    return samples.astype("float32") / PCM


def durations(seconds: list[float]) -> dict[str, Any]:
    """Return the number of clips, their hours in total, and the shortest, median and longest length in seconds."""
    if not seconds:
        return {"clips": 0, "hours": 0.0}
    low, middle, high = numpy.quantile(seconds, [0, 0.5, 1])
    return {
        "clips": len(seconds),
        "hours": round(sum(seconds) / 3600, 5),
        "shortest_seconds": round(float(low), 3),
        "median_seconds": round(float(middle), 3),
        "longest_seconds": round(float(high), 3),
    }
