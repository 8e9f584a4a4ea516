"""Write a collection's clips, each decoded once; broken, empty, too short or too long ones are only counted."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from quantune.core.errors import QuantuneError
from quantune.sources import archives, audio, clips
from quantune.sources.entries import LAYOUT_SPLITS

SCHEMA = pyarrow.schema(
    [
        ("id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("translation", pyarrow.string()),
        ("language", pyarrow.string()),
        ("seconds", pyarrow.float64()),
        ("audio", pyarrow.binary()),
    ]
)
ROWS = 256  # rows in one row group
THREADS = 2  # threads that decode; libsndfile works outside the interpreter lock
AHEAD = 16  # clips that are decoded before the first of them is needed
GROUP_BYTES = 2**28  # of audio in one row group
DROPPED = ("broken", "without_transcript", "too_short", "too_long")
CANCELLED = "opposite_phase"


def tables(recipe: dict[str, Any], files: dict[str, list[Path]], unpacked: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Return the folder of a collection and split -> its tables; an archive is unpacked first.

    Raises:
        QuantuneError: if a table is missing or the archive cannot be unpacked.
    """
    first = next(iter(files.values()))[0]
    if recipe["layout"] != "common-voice":
        return Path(os.path.commonpath([path.parent for paths in files.values() for path in paths])), files
    if first.suffix != ".tsv":
        archives.unpack(first, unpacked, recipe["locale"])
        root = clips.locale_folder(unpacked, recipe["locale"])
        return root, clips.release_tables(root, recipe["splits"] or LAYOUT_SPLITS["common-voice"], str(first))
    return first.parent, files


def language(recipe: dict[str, Any], root: Path) -> str:
    """Return Whisper's code of the language spoken: the one given, or the first part of the locale (zh of zh-CN)."""
    return recipe["language"] or (recipe["locale"] or root.name).split("-")[0]


def write(splits: dict[str, list[clips.Clip]], recipe: dict[str, Any], spoken: str, folder: Path) -> dict[str, Any]:
    """Write one Parquet file for each split; return language, counts, hours and broken files.

    Raises:
        QuantuneError: if more clips are broken than the recipe allows, naming them, or a split has none left.
    """
    facts: dict[str, Any] = {"language": spoken, "splits": {}, "broken_files": []}
    for split, listed in splits.items():
        counts, seconds = dict.fromkeys((*DROPPED, CANCELLED), 0), []
        with pyarrow.parquet.ParquetWriter(folder / f"{split}.parquet", SCHEMA) as writer:
            for rows in _groups(_kept(listed, recipe, spoken, counts, facts["broken_files"], split)):
                seconds += [row["seconds"] for row in rows]
                writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))
        cancelled, dropped = counts.pop(CANCELLED), counts
        more = {"speakers": len({clip.speaker for clip in listed if clip.speaker}), CANCELLED: cancelled}
        facts["splits"][split] = audio.durations(seconds) | {"dropped": dropped}
        facts["splits"][split] |= {name: count for name, count in more.items() if count}
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items() if count)
        print(f"{split}: {len(seconds)} clips, {sum(seconds) / 3600:.3f} h; left out: {reasons or 'none'}")
        if not seconds:
            first = f"; {facts['broken_files'][0]}" if counts["broken"] else ""
            raise QuantuneError(f"split '{split}' has no clips left (read {len(listed)}; {reasons}){first}")
    facts["speakers_shared_with_train"] = shared_speakers(splits)
    _require_few_broken(facts["broken_files"], sum(map(len, splits.values())), recipe["max_broken"])
    return facts


def shared_speakers(splits: dict[str, list[clips.Clip]]) -> dict[str, int]:
    """Return split -> number of its speakers that also speak in "train", for splits whose clips name speakers."""
    speakers = {split: {clip.speaker for clip in listed if clip.speaker} for split, listed in splits.items()}
    train = speakers.pop("train", set())
    return {split: len(names & train) for split, names in speakers.items() if names and train}


@dataclass(frozen=True)
class Checked:
    """A clip that was decoded."""

    data: bytes = b""
    """Its audio file."""
    seconds: float = 0.0
    problem: str | None = None
    """Why it is broken, in words."""
    cancelled: bool = False
    """Whether its channels have opposite phases."""


def _kept(
    listed: list[clips.Clip], recipe: dict[str, Any], spoken: str, counts: dict[str, int], broken: list, split: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows to write; count the clips left out in `counts`, list the broken ones in `broken`."""
    from tqdm import tqdm

    def check(clip: clips.Clip) -> Checked:
        return _checked(clip, recipe["max_seconds"])

    with ThreadPoolExecutor(THREADS) as pool:
        groups = (pool.map(check, listed[first : first + AHEAD]) for first in range(0, len(listed), AHEAD))
        checked = tqdm(chain.from_iterable(groups), desc=split, total=len(listed), unit="clip")
        for clip, sound in zip(listed, checked, strict=True):
            if sound.problem:
                counts["broken"] += 1
                broken.append(f"{clip.name}: {sound.problem}")
                tqdm.write(f"broken: {clip.name}: {sound.problem}")
            elif not clip.text.strip():
                counts["without_transcript"] += 1
            elif sound.seconds < recipe["min_seconds"]:
                counts["too_short"] += 1
            elif sound.seconds > recipe["max_seconds"]:
                counts["too_long"] += 1
            else:
                if sound.cancelled:
                    counts[CANCELLED] += 1
                    tqdm.write(f"{clip.name}: the channels cancel each other; the louder one is used")
                row = {"id": clip.name, "text": clip.text.strip(), "translation": clip.translation, "language": spoken}
                yield row | {"seconds": sound.seconds, "audio": sound.data}


def _checked(clip: clips.Clip, longest: float) -> Checked:
    """Decode a clip, at most little more than its longest allowed length, and check it."""
    try:
        source, duration = clip.source(), clip.duration
        samples, rate = audio.read(source, clip.begin or 0, longest + 1)
        seconds, segment = len(samples) / rate, clip.begin is not None
        if segment and duration and seconds < min(duration, longest) - audio.TOLERANCE:
            return Checked(problem=f"the recording ends {duration - seconds:.3f} s before the segment's end")
        if duration and (segment or seconds > duration + audio.TOLERANCE):
            samples, segment = samples[: round(duration * rate)], True
            seconds = len(samples) / rate
        mono, cancelled = audio.mixed(samples)
        if seconds > longest:
            return Checked(seconds=seconds)
        if segment:
            return Checked(audio.to_flac(mono, rate), seconds, None, cancelled)
        return Checked(source if isinstance(source, bytes) else source.read_bytes(), seconds, None, cancelled)
    except (OSError, audio.BrokenAudioError) as error:
        return Checked(problem=str(error))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group, size = [], 0
    for row in rows:
        group.append(row)
        size += len(row["audio"])
        if len(group) == ROWS or size > GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _require_few_broken(broken: list[str], total: int, allowed: float) -> None:
    """Raise QuantuneError if more clips than allowed are broken."""
    if len(broken) > allowed * total:
        shown = "; ".join(broken[:5]) + (f"; and {len(broken) - 5} more" if len(broken) > 5 else "")
        raise QuantuneError(
            f"{len(broken)} of {total} clips are broken ({len(broken) / total:.1%}), more than the {allowed:.1%} that"
            f" 'max_broken' allows: {shown}"
        )
