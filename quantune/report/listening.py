"""What the report plays and prints of transcripts: the clips that tell variants apart, each variant's worst, and how
long the recordings are.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from quantune.artefacts import layout, record
from quantune.data.clips import Clips
from quantune.evaluations.metrics import edits, rates
from quantune.report.gather import Report, VariantResult
from quantune.report.scores import Score

PLAYED = 4  # clips of an evaluation
WORST = 3  # clips of a variant
BYTES = 700_000  # of all clips that are played; as text in the page, a third more


@dataclass(frozen=True)
class Transcript:
    """What variants wrote of a clip, all the same."""

    variants: list[VariantResult]
    pieces: list[edits.Piece]
    """Beside what was said, both normalized."""


@dataclass(frozen=True)
class Clip:
    """A recording that is played, and what was written of it."""

    name: str
    seconds: float
    reference: str
    said: str
    """The reference, normalized."""
    audio: str
    """A data: address with an MP3 file."""
    transcripts: list[Transcript]


@dataclass(frozen=True)
class Failure:
    """One of a variant's worst transcripts."""

    name: str
    reference: str
    wrong: int
    """Words or characters."""
    length: int
    """Of the reference, in words or characters."""
    pieces: list[edits.Piece]


def played(report: Report) -> dict[str, list[Clip]]:
    """Return evaluation -> the clips whose transcripts differ most between variants, a few."""
    evaluations = [name for name in report.scored() if report.evaluations[name]["kind"] == "transcription"]
    return {name: _played(report, name, BYTES // len(evaluations)) for name in evaluations}


def worst(score: Score) -> list[Failure]:
    """Return the transcripts with the highest error rates, none of those without errors."""
    rate, items = score.metric.key, score.items[:0] if score.broken else score.items
    clips = items.assign(wrong=rates.error_counts(items, rate), length=items[f"{rate}_length"])
    clips = clips[clips.wrong > 0].assign(share=lambda item: item.wrong / item.length.clip(lower=1))
    clips = clips.sort_values(["share", "wrong", "id"], ascending=[False, False, True]).head(WORST)
    rows = [row._asdict() for row in clips.itertuples()]
    pieces = [_pieces(score, row["normal_reference"], row["normal_hypothesis"]) for row in rows]
    return [
        Failure(row["id"], row["reference"], row["wrong"], row["length"], piece)
        for row, piece in zip(rows, pieces, strict=True)
    ]


def durations(report: Report) -> list[dict[str, Any]]:
    """Return a row for each split of each dataset of recordings: how many clips, how long, and what was left out."""
    rows = []
    for path, item in report.artefacts.items():
        if item.get("stage") != "clips":
            continue
        for split, facts in item["facts"]["splits"].items():
            dropped = {name.replace("_", " "): count for name, count in facts["dropped"].items()}
            for prepared in report.artefacts.values():
                if prepared.get("stage") == "resample" and prepared["parents"]["dataset"][0]["path"] == path:
                    longer = prepared["facts"]["splits"][split]["longer_than_window"]
                    dropped["longer than the window"] = max(longer, dropped.get("longer than the window", 0))
            reasons = ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count)
            rows.append(
                {"path": path, "dataset": layout.names(path, "sources")[0], "split": split, **facts, "dropped": reasons}
            )
    return rows


def _played(report: Report, evaluation: str, room: int) -> list[Clip]:
    variants = [variant for variant in report.having(evaluation) if not variant.scores[evaluation].broken]
    if not variants:
        return []
    first = variants[0].scores[evaluation]
    tables = [variant.scores[evaluation].items.drop_duplicates("id").set_index("id") for variant in variants]
    recipe = report.evaluations[evaluation]
    prepared = Path(first.path).parents[2] / "prepared" / recipe["dataset"] / variants[0].model
    rate = record.read_provenance(prepared)["facts"]["sampling_rate"]
    recordings, clips = Clips(prepared, recipe["split"]), []
    places = {name: place for place, name in reversed(list(enumerate(recordings.column("id"))))}
    for name in _telling(tables, first.metric.key):
        data = mp3(recordings[places[name]], rate)
        if len(data) > room:
            continue
        room -= len(data)
        address = f"data:audio/mpeg;base64,{base64.b64encode(data).decode()}"
        row = tables[0].loc[name]
        written: dict[str, list[VariantResult]] = {}
        for variant, table in zip(variants, tables, strict=True):
            written.setdefault(table.at[name, "normal_hypothesis"], []).append(variant)
        transcripts = [Transcript(same, _pieces(first, row.normal_reference, text)) for text, same in written.items()]
        clips.append(Clip(name, float(row.seconds), row.reference, row.normal_reference, address, transcripts))
        if len(clips) == PLAYED:
            break
    return clips


def mp3(samples: Any, rate: int) -> bytes:
    """Return samples in [-1, 1] at a rate in Hz as an MP3 file: the same bytes from the same samples."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="MP3")
    return file.getvalue()


def _telling(tables: list[pandas.DataFrame], rate: str) -> list[str]:
    """Return the clips that all variants transcribed: first those with most different transcripts, then those whose
    numbers of errors lie furthest apart.
    """
    written = pandas.concat([table.normal_hypothesis for table in tables], axis=1, join="inner")
    wrong = pandas.concat([rates.error_counts(table, rate) for table in tables], axis=1, join="inner")
    order = pandas.DataFrame({"different": written.nunique(axis=1), "apart": wrong.max(axis=1) - wrong.min(axis=1)})
    order = order.rename_axis("id").reset_index()
    return order.sort_values(["different", "apart", "id"], ascending=[False, False, True]).id.tolist()


def _pieces(score: Score, reference: str, hypothesis: str) -> list[edits.Piece]:
    return edits.aligned(reference, hypothesis, "words" if score.metric.key == "wer" else "characters")
