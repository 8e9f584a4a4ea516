"""Recordings of any length: where they are cut, what is heard in them, and the target that writes them."""

import itertools
import json

import jiwer
import numpy
import pytest
import soundfile

from quantune.core.errors import QuantuneError
from quantune.data import longform, speech
from quantune.evaluations.metrics import normalizers
from quantune.models import loading
from quantune.sources import audio
from tests.voices import WHISPER, sound
from tests.workflow import Folder

RATE = 16000


def frames(*parts: tuple[int, float]) -> numpy.ndarray:
    """Return the loudness of frames, in runs."""
    return numpy.concatenate([numpy.full(count, value, float) for count, value in parts])


def test_windows_end_in_pauses_and_leave_silence_out():
    loud = frames((100, 0), (90, 1), (40, 0), (120, 1), (300, 0), (50, 1))
    found = longform.windows(loud, 200)
    assert [(window.begin, window.end) for window in found] == [(100, 190), (230, 350), (650, 700)]
    assert longform.windows(frames((500, 0)), 200) == []


def test_a_pause_inside_a_window_is_no_reason_to_end_it_early():
    assert longform.windows(frames((50, 1), (20, 0), (80, 1), (20, 0), (90, 1)), 200) == [
        longform.Window(0, 150),
        longform.Window(170, 260),
    ]


def test_where_nobody_pauses_windows_end_at_the_quietest_moment():
    loud = frames((60, 1), (10, 0.2), (70, 1), (10, 0.4), (200, 1))
    found = longform.windows(loud, 150)
    assert found[0].begin == 0 and abs(found[0].end - 65) <= 1, "the third before is too short for a window"
    assert abs(found[1].end - 145) <= 1 and found[-1].end == len(loud)
    for before, window in itertools.pairwise(found):
        assert before.end == window.begin and window.end - window.begin <= 150


@pytest.mark.parametrize("decibels", [32, 45])
def test_a_faint_speaker_beside_a_loud_one_is_not_silence(decibels):
    """Speech at -22 dB of full scale for 19 s, then for 10 s so much fainter; the room is at -90 dB between."""
    room, near = 3e-5, 0.08
    far = near * 10 ** (-decibels / 20)
    loud = frames((450, near), (30, room), (470, near), (30, room), (300, far), (20, room), (180, far), (20, room))
    held = {place for window in longform.windows(loud, 1100) for place in range(window.begin, window.end)}
    assert held >= set(numpy.flatnonzero(loud > room)) and max(held) < len(loud) - 20


def test_noise_alone_is_not_far_above_the_noise():
    hiss = 0.01 + 0.001 * numpy.sin(numpy.arange(1500))
    talk = numpy.where((numpy.arange(1500) // 40) % 2, 0.3, hiss)
    assert not longform.spoken(numpy.concatenate([talk, hiss]))[1500:].any()


def test_clips_in_which_the_model_recognizes_no_speech_have_no_text(heard, processor, monkeypatch):
    """A model that took every start for silence and every transcript for improbable would drop them all."""
    model, few = loading.model([WHISPER], "float32"), stitched(heard[0][:2], 0.8)
    plain = [part["text"] for part in longform.transcribe(model, processor, few, "en", 8, "transcribe")]
    monkeypatch.setattr(speech, "NO_SPEECH", -1.0)
    kept = [part["text"] for part in longform.transcribe(model, processor, few, "en", 8, "transcribe")]
    monkeypatch.setattr(speech, "IMPROBABLE", 0.0)
    assert kept == plain != [] and longform.transcribe(model, processor, few, "en", 8, "transcribe") == []


def stitched(waves: list[numpy.ndarray], gap: float) -> numpy.ndarray:
    quiet = 0.002 * numpy.random.default_rng(0).standard_normal(round(gap * RATE)).astype("float32")
    return numpy.concatenate([part for wave in waves for part in (wave, quiet)])


def test_a_long_recording_is_transcribed_as_well_as_clip_by_clip(heard, processor):
    waves, texts = heard
    model, normal = loading.model([WHISPER], "float32"), normalizers.normalizer("english", WHISPER)
    said = " ".join(map(normal, texts))
    alone = speech.transcribe(model, processor, waves, ["en"] * len(waves), 8, "transcribe")
    whole = stitched(waves, 0.8)
    segments = longform.transcribe(model, processor, whole, "en", 8, "transcribe")
    wrong = [
        jiwer.wer(said, " ".join(map(normal, written))) for written in (alone, [part["text"] for part in segments])
    ]
    assert wrong[1] <= wrong[0] + 0.05 < 0.35
    times = [time for part in segments for time in (part["start"], part["end"])]
    assert times == sorted(times) and times[-1] <= len(whole) / RATE
    starts = numpy.cumsum([0, *(len(wave) / RATE + 0.8 for wave in waves[:-1])])
    assert all(min(abs(part["start"] - start) for part in segments) < 0.5 for start in starts)


@pytest.mark.parametrize("quiet", [0, 0.002], ids=["between clips", "at all"])
def test_a_recording_without_pauses_is_transcribed_nearly_as_well_as_clip_by_clip(prepared, processor, quiet):
    model, normal = loading.model([WHISPER], "float32"), normalizers.normalizer("english", WHISPER)
    clips = speech.Clips(prepared, "test")
    waves = [clips[number][numpy.abs(clips[number]) >= quiet] for number in range(len(clips))]
    spoken = numpy.concatenate(waves)
    found = longform.windows(longform.levels(spoken, RATE), 150)
    assert any(before.end == window.begin for before, window in itertools.pairwise(found)), "there is no pause"
    said = " ".join(map(normal, clips.column("text")))
    alone = speech.transcribe(model, processor, waves, ["en"] * len(waves), 8, "transcribe")
    segments = longform.transcribe(model, processor, spoken, "en", 8, "transcribe")
    wrong = [
        jiwer.wer(said, " ".join(map(normal, written))) for written in (alone, [part["text"] for part in segments])
    ]
    assert wrong[1] <= wrong[0] + 0.05 < 0.4, wrong
    times = [time for part in segments for time in (part["start"], part["end"])]
    assert segments and times == sorted(times)


def test_silence_has_no_words(processor):
    model = loading.model([WHISPER], "float32")
    assert longform.transcribe(model, processor, numpy.zeros(10 * RATE, "float32"), "en", 8, "transcribe") == []


def test_a_file_is_read_in_blocks_as_it_is_at_once(tmp_path):
    path = sound(tmp_path / "long.wav", 130.0, rate=22050, channels=2)
    samples, rate, _ = audio.decode(path.read_bytes())
    once = audio.resample(samples, rate, RATE)
    found = longform.read(path, RATE)
    assert abs(len(found) - len(once)) <= 1 and numpy.abs(found[:-200] - once[: len(found) - 200]).max() < 1e-3
    wave = 0.3 * numpy.sin(numpy.arange(RATE) / 20)
    soundfile.write(path, numpy.stack([wave, -wave], axis=1), RATE)
    assert numpy.abs(longform.read(path, RATE)).max() > 0.25, "channels in opposite phase are no silence"
    path.write_bytes(b"nothing")
    with pytest.raises(QuantuneError, match=r"long.wav' cannot be decoded \(.*\); convert it, for example with ffmpeg"):
        longform.read(path, RATE)


@pytest.fixture
def folder(tmp_path, heard) -> Folder:
    made = Folder(tmp_path / "project", {"models": {"whisper": {"path": str(WHISPER)}}, "variants": ["whisper"]})
    soundfile.write(made.path / "talk.mp3", stitched(heard[0][:3], 0.8), RATE)
    return made


def test_one_command_transcribes_a_file_and_again_nothing_is_done(folder):
    asked = ("transcripts", "--cores", "1", "--config", "recordings={talk: {path: talk.mp3, language: en}}")
    folder.run(*asked)
    made = folder.work / "transcripts/whisper/talk"
    found = json.loads((made / "transcript.json").read_text())
    assert (found["variant"], found["language"], round(found["seconds"])) == ("whisper", "en", 8)
    assert (made / "transcript.txt").read_text().split() == found["text"].split() != []
    assert [list(part) for part in found["segments"]] == [["start", "end", "text"]] * len(found["segments"])
    assert folder.planned(*asked) == set()
    (folder.path / "talk.mp3").rename(folder.path / "renamed.mp3")
    moved = [word.replace("talk.mp3", "renamed.mp3") for word in asked]
    assert folder.planned(*moved) == set(), "a recording is told by its content"
    beams = [word.replace("language: en", "language: en, beams: 2") for word in moved]
    assert folder.planned(*beams) == {"transcripts/whisper/talk"}
    sound(folder.path / "renamed.mp3")
    assert folder.planned(*moved) == {"transcripts/whisper/talk"}


def test_without_recordings_the_command_is_told(folder):
    assert "snakemake transcripts --config 'recordings={talk: {path:" in folder.run("transcripts", check=False)
