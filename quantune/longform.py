"""Transcribe a recording of any length: in windows that end in pauses, or overlap where nobody pauses.

What two overlapping windows both heard is joined at the longest run of words that they agree on, because a word at the
end of a window may be cut off. Silence is not transcribed: Whisper writes words into it.
"""

import math
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy

from quantune import audio, speech
from quantune.errors import QuantuneError
from quantune.normalizers import UNSPACED

FRAME = 0.02  # seconds whose loudness is looked at together
PAUSE = 0.3  # seconds of quiet that are a pause
QUIET = 0.05  # of the loudness that nineteen of twenty frames stay below
OVERLAP = 1 / 3  # of a window, shared with the next one where nobody pauses


@dataclass(frozen=True)
class Window:
    """A stretch of the recording, in frames."""

    begin: int
    end: int
    shared: int = 0
    """Frames that the window before holds too."""


def read(path: Path, rate: int) -> numpy.ndarray:
    """Return a recording's samples, mono, at a rate in Hz: shape (frames,), float32; decoded block by block.

    Raises:
        QuantuneError: if it cannot be decoded, or is empty.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            stream = soxr.ResampleStream(file.samplerate, rate, 1, quality="VHQ")
            blocks = file.blocks(60 * file.samplerate, dtype="float32", always_2d=True)
            parts = [stream.resample_chunk(block.mean(axis=1, dtype="float32")) for block in blocks]
            parts.append(stream.resample_chunk(numpy.empty(0, "float32"), last=True))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise QuantuneError(f"'{path}' cannot be decoded ({error}); convert it, for example with ffmpeg") from None
    samples = numpy.concatenate(parts)
    if not len(samples):
        raise QuantuneError(f"'{path}' holds no samples")
    return audio.from_pcm(audio.to_pcm(samples))


def loud(samples: numpy.ndarray, rate: int) -> numpy.ndarray:
    """Return whether each frame is louder than the quiet of this recording: shape (frames,), bool."""
    size = round(FRAME * rate)
    padded = numpy.pad(samples, (0, -len(samples) % size)).reshape(-1, size)
    loudness = numpy.sqrt(numpy.square(padded).mean(axis=1))
    return loudness > QUIET * numpy.quantile(loudness, 0.95)


def windows(spoken: numpy.ndarray, longest: int) -> list[Window]:
    """Return windows that hold all that was spoken.

    Args:
        spoken: whether each frame is loud.
        longest: frames in a window at most.
    """
    found, begin, shared, pause = [], 0, 0, round(PAUSE / FRAME)
    while begin < len(spoken):
        if not shared:
            quiet = _first(spoken[begin:], True)
            begin += max(0, quiet - pause // 2)
        end = min(begin + longest, len(spoken))
        if not spoken[begin + shared : end].any():
            begin, shared = end, 0
            continue
        cut = None if end == len(spoken) else _last_pause(spoken, begin + longest // 3, end, pause)
        found.append(Window(begin, cut or end, shared))
        if end == len(spoken):
            break
        shared = 0 if cut else round(OVERLAP * longest)
        begin = (cut or end) - shared
    return found


def join(left: list[str], right: list[str], share: tuple[float, float]) -> tuple[list[str], list[str]]:
    """Return the words of two neighbours without what both have written.

    Args:
        left: words of the earlier window.
        right: words of the later one.
        share: the part of each window that both heard.
    """
    tail, head = (math.ceil(1.5 * part * len(words)) for words, part in zip((left, right), share, strict=True))
    tail, head = min(tail, len(left)), min(head, len(right))
    first = len(left) - tail
    ends, begins = [_bare(word) for word in left[first:]], [_bare(word) for word in right[:head]]
    same = SequenceMatcher(None, ends, begins, autojunk=False).find_longest_match()
    if same.size:
        return left[: first + same.a + same.size // 2], right[same.b + same.size // 2 :]
    kept, dropped = (round(part * len(words) / 2) for words, part in zip((left, right), share, strict=True))
    return left[: len(left) - kept], right[dropped:]


def transcribe(model, processor, samples: numpy.ndarray, language: str, batch_size: int, task: speech.Task, **options):
    """Return what is said: segments with start and end in seconds, and text; none of silence.

    Args:
        model: a Whisper model.
        processor: its feature extractor and tokenizer.
        samples: of the recording, at the extractor's rate.
        language: Whisper's code of the language spoken.
        batch_size: windows transcribed together.
        task: transcribe or translate.
        options: of `generate`, such as num_beams.
    """
    rate = processor.feature_extractor.sampling_rate
    spoken, size = loud(samples, rate), round(FRAME * rate)
    found = windows(spoken, math.floor(processor.feature_extractor.n_samples / size))
    waves = [samples[window.begin * size : window.end * size] for window in found]
    written = speech.transcribe(model, processor, waves, [language] * len(found), batch_size, task, **options)
    unspaced = (language if task == "transcribe" else "en") in UNSPACED
    words = [list(text.replace(" ", "")) if unspaced else text.split() for text in written]
    for place in range(1, len(found)):
        before, window = found[place - 1 : place + 1]
        if window.shared:
            share = tuple(window.shared / (item.end - item.begin) for item in (before, window))
            words[place - 1], words[place] = join(words[place - 1], words[place], share)
    segments = [
        _segment(spoken, found, place, ("" if unspaced else " ").join(text)) for place, text in enumerate(words) if text
    ]
    return [segment for segment in segments if segment["end"] > segment["start"]]


def _segment(spoken: numpy.ndarray, found: list[Window], place: int, text: str) -> dict[str, Any]:
    """Return a window's segment: what is spoken in it, up to the middle of what it shares with its neighbours."""
    window = found[place]
    after = found[place + 1].shared if place + 1 < len(found) else 0
    begin, end = window.begin + window.shared // 2, window.end - (after - after // 2)
    begin += _first(spoken[begin:end], True)
    end -= _first(spoken[begin:end][::-1], True)
    return {"start": round(begin * FRAME, 2), "end": round(end * FRAME, 2), "text": text}


def _first(values: numpy.ndarray, wanted: bool) -> int:
    """Return where a value is first found, or the length where it is not."""
    there = numpy.flatnonzero(values == wanted)
    return int(there[0]) if len(there) else len(values)


def _last_pause(spoken: numpy.ndarray, first: int, end: int, length: int) -> int | None:
    """Return the middle of the last pause between two frames, or None."""
    quiet = 0
    for place in range(end - 1, first - 1, -1):
        quiet = 0 if spoken[place] else quiet + 1
        if quiet == length:
            return place + length // 2
    return None


def _bare(word: str) -> str:
    """Return a word as it is compared: lower case, letters and digits only."""
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word
