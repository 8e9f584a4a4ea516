"""The report on speech, on a small set of artefacts whose numbers are known."""

import base64
import csv
import io
import json
import math
import re

import pytest

from quantune.core import units
from quantune.evaluations.metrics import edits, quantiles
from quantune.evaluations.metrics.edits import Piece
from quantune.evaluations.metrics.metric import CHARACTER_ERROR_RATE, WORD_ERROR_RATE
from quantune.report import findings, gather, listening, page, table, wording
from quantune.report.scores import Change
from tests.reports import write
from tests.spoken import COUNT, RATE, SECONDS, first_wrong, speech, transcription


def told(gathered: gather.Report) -> dict[str, str]:
    return {finding.heading: " ".join(finding.sentences) for finding in findings.findings(gathered)}


def test_error_rates_change_in_points(spoken):
    score = gather.gather(spoken.order()).variants["w+fine"].scores["radio"]
    assert score.numbers["wer"] == 17 / (4 * COUNT) and score.metric.label == "WER"
    change = score.from_root
    share = quantiles.largest_share(1, COUNT)  # one clip differs, by one word: another could be lost
    assert change.change == pytest.approx(1 / 160)
    assert (change.low, change.high) == pytest.approx((-share, share))
    assert change.verdict == "unclear" and change.against == "w"


def test_points_in_words():
    change = Change("w", 0.032, 0.011, 0.053, 0.001, WORD_ERROR_RATE)
    assert wording.evidence(change) == "+3.2 points (95 % interval +1.1 to +5.3 points)"
    alone = Change("w", -0.032, math.nan, math.nan, math.nan, CHARACTER_ERROR_RATE)
    assert wording.evidence(alone) == "−3.200 points (too few clips for an interval)"


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (134.0, "2 min 14 s"), (7200, "2 h 00 min")])
def test_durations_in_words(seconds, text):
    assert units.duration(seconds) == text


def test_findings_say_what_the_numbers_say(spoken):
    found = told(gather.gather(spoken.order()))
    assert found["Compared"] == (
        "4 variants of `w`, by how well each writes down radio (40 clips in 20 s) and street (40 clips in 20 s, general"
        " speech). WER: in per cent of what was said, lower is better; changes are in points."
    )
    smallest = found["Smallest without a loss against `w` (2.00 kB)"]
    assert "On every evaluation, no smaller variant is shown to lose less than 1 point." in smallest
    unclear = "On street, the data cannot tell whether `w+fine` (900 bytes) loses less than 1 point: WER unchanged"
    settled = "; about 480 clips instead of 40 would settle it if the loss is as measured."
    assert f"{unclear} (the same in every clip; 95 % interval −8.8 to +8.8 points){settled}" in smallest
    assert "`w+tune` against `w`: WER −10.0 points" in found["What fine-tuning changed"]
    assert "on its target domain (radio) and +2.5 points" in found["What fine-tuning changed"]
    assert "on general speech (street)" in found["What fine-tuning changed"]
    assert "On street, WER from unchanged (the same in every clip; 95 % interval" in found["What quantizing changed"]


def test_table_counts_the_errors_by_kind(spoken, tmp_path):
    gathered, _ = write(spoken.order(), tmp_path / "report")
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    rough = rows["w+rough"]
    assert [rough[f"radio.wer_{kind}"] for kind in ("substitutions", "insertions", "deletions")] == ["0", "1", "20"]
    assert float(rough["radio.wer"]) == 21 / 160 and float(rough["radio.change_from_full_precision"]) == 5 / 160
    assert float(rough["radio.cer_raw"]) > 0 and float(rough["radio.real_time_factor"]) == 0.25
    assert table.metrics(gathered)["w+rough"]["radio.wer_deletions"] == 20


def test_clips_that_tell_variants_apart_are_played(spoken):
    gathered = gather.gather(spoken.order())
    clips = listening.played(gathered)
    # In odd clips below 16 three texts differ, in clip 0 too; the first three of equals are the first by name.
    assert [clip.name for clip in clips["radio"]] == ["clip-00", "clip-01", "clip-03", "clip-05"]
    first = clips["radio"][1]
    assert [[variant.name for variant in item.variants] for item in first.transcripts] == [
        ["w", "w+fine"],
        ["w+rough"],
        ["w+tune"],
    ]
    assert first.transcripts[0].pieces[0] == Piece("substitute", "alpha", "delta")
    assert first.transcripts[1].pieces[1] == Piece("delete", "bravo", "")
    assert first.said == "alpha bravo charlie 1" and listening.played(gathered) == clips


def test_audio_is_the_clip(spoken):
    soundfile = pytest.importorskip("soundfile")
    clip = listening.played(gather.gather(spoken.order()))["radio"][0]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clip.audio.partition(",")[2])))
    assert rate == RATE and len(samples) / rate == pytest.approx(SECONDS, abs=0.1)
    assert 0.3 < abs(samples).max() < 0.7


def test_audio_stays_within_its_room(spoken, monkeypatch):
    gathered = gather.gather(spoken.order())
    largest = max(len(clip.audio) for clip in listening.played(gathered)["radio"])
    monkeypatch.setattr(listening, "BYTES", 2 * 2 * largest * 3 // 4)  # two clips for each of two evaluations
    assert [len(clips) for clips in listening.played(gathered).values()] == [2, 2]


def test_worst_transcripts(spoken):
    score = gather.gather(spoken.order()).variants["w+rough"].scores["radio"]
    failures = listening.worst(score)
    assert [(item.name, item.wrong, item.length) for item in failures] == [
        ("clip-00", 1, 4),
        ("clip-01", 1, 4),
        ("clip-03", 1, 4),
    ]
    assert listening.worst(gather.gather(spoken.order()).variants["w+tune"].scores["radio"]) == []


def test_recordings_are_told(spoken):
    rows = listening.durations(gather.gather(spoken.order()))
    assert [(row["dataset"], row["clips"], row["speakers"]) for row in rows] == [
        ("radio", COUNT, 3),
        ("street", COUNT, 3),
    ]
    assert rows[0]["dropped"] == "2 broken, 1 longer than the window"


def test_characters_lead_where_words_are_not_told_apart(spoken):
    for name in ("w", "w+fine", "w+rough", "w+tune"):
        transcription(spoken, name, "street", first_wrong(8 if name == "w" else 9), language="zh")
    gathered = gather.gather(spoken.order())
    assert gathered.variants["w+fine"].scores["street"].from_root.metric.label == "CER"
    assert "WER and CER: in per cent of what was said" in told(gathered)["Compared"]
    assert "WER −10.0 points" in told(gathered)["What fine-tuning changed"]
    assert "and CER +" in told(gathered)["What fine-tuning changed"]
    (clip, *_) = listening.played(gathered)["street"]
    right, wrong = clip.transcripts
    assert right.pieces == [Piece("equal", clip.said, clip.said)] and clip.name == "clip-08"
    assert "".join(piece.written for piece in wrong.pieces) == "delta bravo charlie 8"


def test_pieces_are_those_that_are_counted():
    assert edits.aligned("a b c", "a x c d", "words") == [
        Piece("equal", "a", "a"),
        Piece("substitute", "b", "x"),
        Piece("equal", "c", "c"),
        Piece("insert", "", "d"),
    ]
    assert edits.aligned("你好", "你", "characters") == [Piece("equal", "你", "你"), Piece("delete", "好", "")]
    assert edits.aligned("", "a b", "words") == [Piece("insert", "", "a b")] and edits.aligned("", "", "words") == []
    assert edits.aligned("a b", "", "words") == [Piece("delete", "a b", "")]


def test_transcripts_are_escaped():
    pieces = [Piece("substitute", '"said"', "<b>"), Piece("delete", "</dd>", ""), Piece("equal", "&", "&")]
    assert page.marked(pieces, " ") == (
        '<mark title="said: &#34;said&#34;">&lt;b&gt;</mark> <del>&lt;/dd&gt;</del> &amp;'
    )


def test_page_holds_the_audio(spoken, tmp_path):
    _, html = write(spoken.order(), tmp_path / "report")
    addresses = re.findall(r'\b(?:src|srcset|href|action|data)="([^"]*)"', html)
    assert sum(address.startswith("data:audio/mpeg;base64,") for address in addresses) == 8
    beside = {"table.csv", *(f"quality-size.{name}.{kind}" for name in ("radio", "street") for kind in ("svg", "png"))}
    beside |= {address for address in addresses if address.startswith("tables/")}
    assert all(address.startswith("data:") or address in beside for address in addresses)
    assert "Perplexity" not in html and "WER, %, on radio" in (tmp_path / "report/quality-size.radio.svg").read_text()
    lineage = json.loads(re.search(r'id="lineage">(.*?)</script>', html)[1])
    numbers = lineage[str(spoken.folder / "evaluations/w+rough/radio")]["numbers"]
    assert numbers["WER"].startswith("13.1 % (95 % interval ") and numbers["real-time factor"] == "0.2500"
    assert numbers["edits of WER"] == "0 substitutions, 1 insertion, 20 deletions in 160 words"
    assert numbers["normalizer"] == "basic 2" and numbers["measured over"] == "40 clips in 20 s"


def test_text_and_speech_in_one_report(work, tmp_path):
    gathered, html = write(speech(work).order(), tmp_path / "report")
    assert [evaluations for evaluations, _ in gathered.groups] == [["home", "away"], ["radio", "street"]]
    assert html.count('<th rowspan="2" scope="col" class="number">Size</th>') == 2
    names = {path.stem for path in (tmp_path / "report").glob("*.svg")}
    assert names == {f"quality-size.{name}" for name in gathered.scored()} | {
        "loss-curves",
        "forgetting-perplexity",
        "forgetting-error-rate",
    }
    assert "+lora" not in html and "w+rough" not in (tmp_path / "report/quality-size.home.svg").read_text()
    assert "bits per byte" not in (tmp_path / "report/quality-size.home.svg").read_text()
    rows = {row["variant"]: row for row in csv.DictReader((tmp_path / "report/table.csv").open())}
    assert rows["w"]["home.token_perplexity"] == "" and float(rows["m"]["home.token_perplexity"]) > 0
    assert rows["m"]["radio.wer"] == "" and float(rows["w"]["radio.wer"]) == 0.1
    found = told(gathered)
    assert "Perplexity: lower is better. WER: in per cent" in found["Compared"]
    assert "9 variants of `m` and `w`" in found["Compared"] and "bits per byte" not in found["Compared"]
    assert "general text (away)" in found["What fine-tuning changed"]
    assert "general speech (street)" in found["What fine-tuning changed"]
