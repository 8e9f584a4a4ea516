"""Synthesized speech in the layout of a Common Voice release.

    python synthesize.py assets/speech              # the demo's two releases, as committed
    python synthesize.py corpus --pretraining 10000  # the pre-training corpus of the tiny model

Needs espeak-ng and flite (`apt-get install espeak-ng flite`; here 1.51 and 2.2), and soundfile and soxr. The same
versions give the same files. No speaker of a test or dev split, and none of the harbour's names, is in the pre-training
corpus.
"""

import argparse
import csv
import hashlib
import io
import random
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import phrases
import soundfile
import soxr

RATE = 16000  # Hz
LONGEST = 3.6  # seconds; the tiny model listens to 4
MP3 = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.95}  # 16 kbit/s
COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes"),
    *("age", "gender", "accents", "variant", "locale", "segment"),
)
VOICES = phrases.words(phrases.HERE / "voices.txt")


@dataclass(frozen=True)
class Speaker:
    """A synthesizer's voice; pitch 0–99 and words per minute for espeak-ng, mean pitch in Hz and stretch for flite."""

    synthesizer: str
    voice: str
    pitch: int
    speed: float

    @property
    def client_id(self) -> str:
        """128 hexadecimal digits, as Common Voice names its speakers."""
        return hashlib.sha512(repr(self).encode()).hexdigest()

    def say(self, sentence: str) -> numpy.ndarray:
        """Return the spoken sentence, without silence around it, float32 at `RATE`, peak 1."""
        if self.synthesizer == "espeak-ng":
            command = [
                "espeak-ng",
                "-v",
                self.voice,
                "-p",
                f"{self.pitch}",
                "-s",
                f"{self.speed}",
                "--stdout",
                sentence,
            ]
        else:
            manner = [f"int_f0_target_mean={self.pitch}", f"duration_stretch={self.speed}"]
            options = [part for setting in manner for part in ("--setf", setting)]
            command = ["flite", "-voice", self.voice, *options, "-t", sentence, "-o", "/dev/stdout"]
        output = subprocess.run(command, capture_output=True, check=True).stdout
        data = output.index(b"data") + 8  # neither synthesizer knows the length when it writes a pipe's header
        rate = int.from_bytes(output[24:28], "little")
        samples = numpy.frombuffer(output[data : len(output) // 2 * 2], "<i2").astype("float32")
        samples = soxr.resample(samples, rate, RATE)
        samples /= max(abs(samples).max(), 1)
        audible = numpy.flatnonzero(abs(samples) > 0.02)
        return samples[audible[0] : audible[-1] + 1]


TRAINING = (
    Speaker("espeak-ng", "en-gb-x-rp+Andy", 40, 185),
    Speaker("espeak-ng", "en-us+f2", 60, 190),
    Speaker("espeak-ng", "en-029+m3", 45, 180),
    Speaker("espeak-ng", "en-gb-scotland+f4", 50, 185),
    Speaker("flite", "slt", 175, 0.85),
    Speaker("flite", "awb", 125, 0.85),
)
DEV = (Speaker("espeak-ng", "en-us+belinda", 55, 185), Speaker("espeak-ng", "en-gb-x-gbclan+caleb", 50, 185))
TEST = (
    Speaker("flite", "rms", 100, 0.85),
    Speaker("espeak-ng", "en-gb-x-gbclan+zac", 45, 185),
    Speaker("espeak-ng", "en-gb+linda", 55, 190),
)


def anyone(rng: random.Random) -> Speaker:
    """Return a speaker of the pre-training corpus."""
    if rng.random() < 0.35:
        voice, pitch = rng.choice((("kal16", 105), ("awb", 130), ("slt", 180)))
        return Speaker("flite", voice, round(pitch * rng.uniform(0.8, 1.3)), round(rng.uniform(0.75, 1.15), 2))
    voice = f"{rng.choice(VOICES['accent'])}+{rng.choice(VOICES['variant'])}"
    return Speaker("espeak-ng", voice, rng.randint(20, 80), rng.randint(145, 210))


def record(samples: numpy.ndarray, rng: numpy.random.Generator, radio: bool) -> numpy.ndarray:
    """Return speech, float32 at `RATE`, with the echo and noise of a room or a radio: 10 to 30 dB SNR."""
    samples = numpy.pad(samples, [round(RATE * seconds) for seconds in rng.uniform(0.08, 0.2, 2)])
    decay = numpy.exp(-numpy.arange(RATE // 8) / RATE / rng.uniform(0.01, 0.05))
    room = numpy.append(1, rng.normal(size=decay.size) * decay * rng.uniform(0.01, 0.05))
    noise = rng.normal(size=samples.size)
    length = 1 << (samples.size + room.size).bit_length()  # a power of two, for the transform's speed
    spectrum = numpy.fft.rfft(samples, length) * numpy.fft.rfft(room, length)
    hertz = numpy.fft.rfftfreq(length, 1 / RATE) + 1
    hiss = numpy.fft.rfft(noise, length) * hertz ** -rng.uniform(0, 0.5)
    level = 10 ** (-(rng.uniform(10, 20) if radio else rng.uniform(15, 30)) / 20)
    mixed = spectrum + hiss * level * numpy.linalg.norm(spectrum) / numpy.linalg.norm(hiss)
    low, high = (300, 3400) if radio else (50, rng.uniform(4000, 8000))
    mixed /= numpy.sqrt((1 + (low / hertz) ** 8) * (1 + (hertz / high) ** 16))
    mixed = numpy.fft.irfft(mixed, length)[: samples.size]
    return (mixed / abs(mixed).max() * rng.uniform(0.3, 0.9)).astype("float32")


def clip(folder: Path, name: str, sentence: str, speaker: Speaker, radio: bool) -> dict | None:
    """Write one clip and return its row, with its length in ms; None if it would be too long."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    samples = record(speaker.say(sentence), numpy.random.default_rng(seed), radio)
    if samples.size > LONGEST * RATE:
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, **MP3)
    (folder / "clips" / f"{name}.mp3").write_bytes(buffer.getvalue())
    row = dict.fromkeys(COLUMNS, "") | {"client_id": speaker.client_id, "path": f"{name}.mp3", "sentence": sentence}
    row |= {
        "sentence_id": hashlib.sha256(sentence.encode()).hexdigest(),
        "up_votes": 2,
        "down_votes": 0,
        "locale": "en",
    }
    return row | {"up_votes": 2, "down_votes": 0, "duration[ms]": round(samples.size / RATE * 1000)}


def release(folder: Path, sentences, splits: dict, seed: int, radio: bool) -> None:
    """Write a release: `splits` is split -> number of clips, and a list of speakers or a function that draws one.

    No sentence is in two splits. `sentences` draws a sentence with a random.Random.
    """
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng, used, written, tried = random.Random(seed), set(), [], 0
    with ProcessPoolExecutor() as pool:
        for split, (number, speakers) in splits.items():
            jobs, own = [], set()
            while len(jobs) < number:
                sentence = sentences(rng)
                speaker = speakers(rng) if callable(speakers) else speakers[len(jobs) % len(speakers)]
                if sentence in used:
                    continue
                own.add(sentence)
                name = f"common_voice_en_{seed * 100000 + tried}"
                tried += 1
                jobs.append(pool.submit(clip, folder, name, sentence, speaker, radio))
            used |= own
            rows = [row for job in jobs if (row := job.result())]
            table(folder / f"{split}.tsv", rows, COLUMNS)
            written += rows
            print(
                f"{folder} {split}: {len(rows)} clips, {sum(row['duration[ms]'] for row in rows) / 60000:.1f} minutes"
            )
    table(folder / "validated.tsv", written, COLUMNS)
    lengths = [{"clip": row["path"], "duration[ms]": row["duration[ms]"]} for row in written]
    table(folder / "clip_durations.tsv", lengths, ("clip", "duration[ms]"))


def table(path: Path, rows: list[dict], columns) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pretraining", type=int, metavar="CLIPS")
    options = parser.parse_args()
    if options.pretraining:
        splits = {"train": (options.pretraining, anyone), "dev": (150, anyone), "test": (150, DEV + TEST)}
        release(options.folder / "en", phrases.pretraining, splits, 3, radio=False)
    else:
        splits = {"train": (128, TRAINING), "dev": (24, DEV), "test": (60, TEST)}
        release(options.folder / "cv-corpus-saltmere-1.0/en", phrases.harbour, splits, 1, radio=True)
        splits = {"train": (16, TRAINING), "test": (32, DEV + TEST)}
        release(options.folder / "cv-corpus-everyday-1.0/en", phrases.everyday, splits, 2, radio=False)
