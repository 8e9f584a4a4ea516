"""Recordings of any length: where they are cut, how two windows are joined, and the target that writes them."""

import itertools
import json

import jiwer
import numpy
import pytest
import soundfile

from quantune import audio, loading, longform, normalizers, speech
from quantune.errors import QuantuneError
from tests.voices import WHISPER, sound
from tests.workflow import Folder

RATE = 16000


def frames(*parts: tuple[int, bool]) -> numpy.ndarray:
    """Return frames, loud or quiet, in runs."""
    return numpy.concatenate([numpy.full(count, value) for count, value in parts])


def test_windows_end_in_pauses_and_leave_silence_out():
    spoken = frames((100, False), (90, True), (40, False), (120, True), (300, False), (50, True))
    found = longform.windows(spoken, 200)
    assert all(window.end - window.begin <= 200 and not window.shared for window in found)
    assert not spoken[[window.end - 1 for window in found[:-1]]].any()
    covered = numpy.zeros(len(spoken), bool)
    for window in found:
        covered[window.begin : window.end] = True
    assert covered[spoken].all() and len(found) == 3
    assert longform.windows(frames((500, False)), 200) == []


def test_windows_overlap_where_nobody_pauses():
    found = longform.windows(frames((1000, True)), 300)
    assert found[0] == longform.Window(0, 300) and found[-1].end == 1000
    for before, window in itertools.pairwise(found):
        assert window.shared == 100 == before.end - window.begin


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        ("a b c d e f", "e f g h i j", "a b c d e f g h i j"),
        ("one two three four fi", "three, four five six seven", "one two three four five six seven"),
        ("a b c d x", "y z g h i", "a b c d z g h i"),  # nothing in common: each keeps its half
        ("", "a b", "a b"),
        ("a b", "", "a b"),
    ],
)
def test_neighbours_are_joined_at_what_they_agree_on(left, right, wanted):
    one, other = longform.join(left.split(), right.split(), (0.34, 0.34))
    assert " ".join([*one, *other]) == wanted


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


def test_without_pauses_windows_are_joined_and_times_stay_in_order(heard, processor):
    spoken = numpy.concatenate([wave[numpy.abs(wave) > 0.002] for wave in heard[0][:4]])
    model = loading.model([WHISPER], "float32")
    found = longform.windows(longform.loud(spoken, RATE), 200)
    assert any(window.shared for window in found)
    segments = longform.transcribe(model, processor, spoken, "en", 8, "transcribe")
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
