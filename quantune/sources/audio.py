"""Recordings as arrays: decoded by libsndfile (WAV, FLAC, MP3, OGG), mixed to mono, resampled by soxr."""

import io
from pathlib import Path
from typing import Any

import numpy

PCM = 32767  # the largest 16-bit sample
CANCELLED = 0.05  # energy of the mean of the channels, relative to theirs, below which they cancel each other
TOLERANCE = 0.1  # seconds by which a manifest's duration may differ from the recording's


class BrokenAudioError(Exception):
    """A recording that cannot be decoded."""


def read(source: bytes | Path, begin: float = 0, longest: float | None = None) -> tuple[numpy.ndarray, int]:
    """Decode a recording, or a part of it.

    Args:
        source: the content of an audio file, or its path.
        begin: seconds to skip.
        longest: seconds to decode at most; None: to the end.

    Returns:
        Samples in [-1, 1], shape (frames, channels), float32; rate in Hz.

    Raises:
        BrokenAudioError: with the reason, if it cannot be decoded or is empty.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate, first = file.samplerate, round(begin * file.samplerate)
            if first and first >= file.frames:
                raise BrokenAudioError(f"begins at {begin:g} s, but the recording has {file.frames / rate:.3f} s")
            if first:
                file.seek(first)
            samples = file.read(-1 if longest is None else round(longest * rate), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        empty = not source if isinstance(source, bytes) else not source.stat().st_size
        reason = str(error).removeprefix("Error opening ") or type(error).__name__
        raise BrokenAudioError("0 bytes" if empty else reason) from None
    if not len(samples):
        raise BrokenAudioError("holds no samples")
    if not numpy.isfinite(samples).all():
        raise BrokenAudioError("holds samples that are no numbers")
    return samples, rate


def mixed(samples: numpy.ndarray) -> tuple[numpy.ndarray, bool]:
    """Return the mean of the channels, shape (frames,), and false.

    If the channels cancel each other (opposite phase), return the loudest channel, and true.
    """
    mean = samples.mean(axis=1, dtype="float32")
    if samples.shape[1] == 1:
        return mean, False
    energies = numpy.einsum("ij,ij->j", samples, samples, dtype="float64")
    if numpy.einsum("i,i->", mean, mean, dtype="float64") < CANCELLED * energies.mean():
        return samples[:, energies.argmax()].copy(), True
    return mean, False


def decode(data: bytes) -> tuple[numpy.ndarray, int, int]:
    """Decode a recording.

    Returns:
        Samples in [-1, 1], mono, as `mixed` returns them, shape (frames,), float32; rate in Hz; number of channels.

    Raises:
        BrokenAudioError: with the reason, if it cannot be decoded or is empty.
    """
    samples, rate = read(data)
    return mixed(samples)[0], rate, samples.shape[1]


def to_flac(samples: numpy.ndarray, rate: int) -> bytes:
    """Return mono samples as a FLAC file of 24 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_24")
    return file.getvalue()


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
