"""Transcribe a recording of any length: in windows that are cut where it is quietest.

A window ends in its last pause, or without a pause at its quietest moment. Neighbouring windows overlap by a margin.
Longer overlaps, joined at the words that both windows contain, improved no model. They made a model of single sentences
worse: it fails at windows with parts of several sentences. Whisper writes words into silence and noise: silence is left
out, and so are windows in which the model itself recognizes no speech. Loudness is compared with its surroundings, so
that a faint speaker beside a loud one is not taken for silence.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy

from quantune.core.errors import QuantuneError
from quantune.data import speech
from quantune.sources import audio
from quantune.sources.entries import UNSPACED

FRAME = 0.02  # seconds for which one loudness is computed
PAUSE = 0.3  # seconds of quiet that make a pause
QUIET = 0.05  # frames below this share of the loudness's 95th percentile are quiet, unless far above the noise
ABOVE = 4  # times the noise around it: a frame from here on is not quiet
AROUND = 10.0  # seconds before and after a frame, at least, whose quietest moment is taken for the noise
SILENT = 1e-4  # root mean square below which a frame is silent whatever surrounds it (-80 dB of full scale)
MOMENT = 0.2  # seconds over which loudness is averaged to find the quietest moment
MARGIN = 0.1  # seconds of audio beyond both ends of a window
FILLED = 0.75  # largest share of the model's window: models expect windows that end in silence


@dataclass(frozen=True)
class Window:
    """A stretch of the recording, in frames."""

    begin: int
    end: int


def read(path: Path, rate: int) -> numpy.ndarray:
    """Return a recording's samples at a rate in Hz: shape (frames,), float32; decoded and mixed block by block.

    Raises:
        QuantuneError: if it cannot be decoded, or is empty.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            stream = soxr.ResampleStream(file.samplerate, rate, 1, quality="VHQ")
            blocks = file.blocks(60 * file.samplerate, dtype="float32", always_2d=True)
            parts = [stream.resample_chunk(audio.mixed(block)[0]) for block in blocks]
            parts.append(stream.resample_chunk(numpy.empty(0, "float32"), last=True))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise QuantuneError(f"'{path}' cannot be decoded ({error}); convert it, for example with ffmpeg") from None
    samples = numpy.concatenate(parts)
    if not len(samples):
        raise QuantuneError(f"'{path}' holds no samples")
    return audio.from_pcm(audio.to_pcm(samples))


def levels(samples: numpy.ndarray, rate: int) -> numpy.ndarray:
    """Return the root mean square of each frame: shape (frames,), float."""
    size = round(FRAME * rate)
    frames = numpy.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
    return numpy.sqrt(numpy.square(frames).mean(axis=1))


def spoken(loud: numpy.ndarray) -> numpy.ndarray:
    """Return which frames may hold speech: shape (frames,), bool.

    They are loud for the recording, or far above the noise around them.
    """
    size = round(AROUND / FRAME)
    lowest = numpy.pad(_smooth(loud), (size, size + -len(loud) % size), mode="edge").reshape(-1, size).min(axis=1)
    noise = numpy.minimum(numpy.minimum(lowest[:-2], lowest[1:-1]), lowest[2:]).repeat(size)[: len(loud)]
    return (loud > SILENT) & ((loud > QUIET * numpy.quantile(loud, 0.95)) | (loud > ABOVE * noise))


def _smooth(loud: numpy.ndarray) -> numpy.ndarray:
    moment = round(MOMENT / FRAME)
    return numpy.convolve(numpy.pad(loud, moment, mode="edge"), numpy.ones(moment) / moment, "same")[moment:-moment]


def windows(loud: numpy.ndarray, longest: int) -> list[Window]:
    """Return windows that hold all frames that may hold speech.

    Args:
        loud: the root mean square of each frame.
        longest: frames in a window at most.
    """
    speech_in, smooth, pause = spoken(loud), _smooth(loud), round(PAUSE / FRAME)
    parts, begin = [], 0
    while begin < len(loud):
        begin += _first(speech_in[begin:])
        end = min(begin + longest, len(loud))
        if end < len(loud):
            first = begin + longest // 3
            end = _last_pause(speech_in, first, end, pause) or first + int(smooth[first:end].argmin())
        if begin < end:
            parts.append(Window(begin, end - _first(speech_in[begin:end][::-1])))
        begin = end
    return parts


def transcribe(model, processor, samples: numpy.ndarray, language: str, batch_size: int, task: speech.Task, **options):
    """Return the transcript: segments with start and end in seconds, and text; silence and noise give no segment.

    Args:
        model: a Whisper model.
        processor: its feature extractor and tokenizer.
        samples: of the recording, at the extractor's rate.
        language: Whisper's code of the language spoken.
        batch_size: windows transcribed together.
        task: transcribe or translate.
        options: of `generate`, such as num_beams.
    """
    rate, room = processor.feature_extractor.sampling_rate, processor.feature_extractor.n_samples
    size, margin = round(FRAME * rate), round(MARGIN * rate)
    parts = windows(levels(samples, rate), math.floor((FILLED * room) / size))
    waves = [samples[max(0, window.begin * size - margin) : window.end * size + margin] for window in parts]
    languages = [language] * len(parts)
    texts = speech.transcribe(model, processor, waves, languages, batch_size, task, drop_noise=True, **options)
    if (language if task == "transcribe" else "en") in UNSPACED:
        texts = [text.replace(" ", "") for text in texts]
    return [
        {"start": round(window.begin * FRAME, 2), "end": round(window.end * FRAME, 2), "text": text}
        for window, text in zip(parts, texts, strict=True)
        if text
    ]


def _first(spoken: numpy.ndarray) -> int:
    """Return the index of the first spoken frame, or the length if no frame is spoken."""
    positions = numpy.flatnonzero(spoken)
    return int(positions[0]) if len(positions) else len(spoken)


def _last_pause(spoken: numpy.ndarray, first: int, end: int, length: int) -> int | None:
    """Return the middle of the last pause between two frames, or None."""
    quiet = 0
    for place in range(end - 1, first - 1, -1):
        quiet = 0 if spoken[place] else quiet + 1
        if quiet == length:
            return place + length // 2
    return None
