"""Train all weights of the pruned model on the pre-training corpus.

    python pretrain.py pruned corpus tiny --evaluate assets/speech/cv-corpus-*

About 6 minutes on an H200. Each use of a clip is augmented: its speed, its place in the window, its filter and its
noise change, and parts of its spectrogram are hidden. A quarter of the transcripts have the times of their beginning
and end. The same seed on the same machine gives the same weights.
"""

import argparse
import csv
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.utils import logging

RATE = 16000  # Hz
WINDOW = 4 * RATE
STEP = 0.02  # seconds between timestamps


def read(release: Path, split: str, device: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return a split's clips, int16 (clips, WINDOW), padded with zeros; their lengths; their sentences."""
    with (release / "en" / f"{split}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with ThreadPoolExecutor() as pool:
        clips = list(pool.map(lambda row: soundfile.read(release / "en/clips" / row["path"], dtype="int16")[0], rows))
    samples = numpy.zeros((len(clips), WINDOW), "int16")
    for row, clip in zip(samples, clips, strict=True):
        row[: min(len(clip), WINDOW)] = clip[:WINDOW]
    lengths = torch.tensor([min(len(clip), WINDOW) for clip in clips])
    return torch.from_numpy(samples).to(device), lengths.to(device), [row["sentence"] for row in rows]


def augment(samples: torch.Tensor, lengths: torch.Tensor, chance: torch.Generator):
    """Return clips (clips, WINDOW) changed in speed, place, spectrum and noise, and the seconds of their two ends."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(len(samples), 1, generator=chance, device=samples.device) * (high - low) + low

    speed = max(
        0.87 + 0.26 * torch.rand((), generator=chance, device=samples.device).item(), lengths.max().item() / WINDOW
    )
    samples = torch.nn.functional.interpolate(samples[:, None], scale_factor=1 / speed, mode="linear")[:, 0, :WINDOW]
    samples = torch.nn.functional.pad(samples, (0, WINDOW - samples.shape[1]))
    lengths = (lengths[:, None] / speed).clamp(max=WINDOW)
    begin = ((WINDOW - lengths) * uniform(0, 1) * (uniform(0, 1) < 0.5)).long()
    places = (torch.arange(WINDOW, device=samples.device) - begin) % WINDOW
    spectrum = torch.fft.rfft(samples.gather(1, places))
    hertz = torch.arange(spectrum.shape[1], device=samples.device) * RATE / WINDOW + 1
    radio = uniform(0, 1) < 0.35
    low, high = torch.where(radio, uniform(100, 400), 1), torch.where(radio, uniform(2500, 5000), 10 * RATE)
    tilt = (hertz / 1000) ** uniform(-0.3, 0.3) * torch.exp(0.3 * torch.cos(hertz / uniform(300, 1500) + uniform(0, 6)))
    spectrum = spectrum * tilt / torch.sqrt((1 + (low / hertz) ** 8) * (1 + (hertz / high) ** 16))
    samples = torch.fft.irfft(spectrum, WINDOW)
    loudness = (samples.square().sum(1, keepdim=True) / lengths).sqrt()
    noise = torch.randn(samples.shape, generator=chance, device=samples.device)
    noise = noise * ((places < lengths) | (uniform(0, 1) < 0.5))  # half of the clips have digital silence around them
    return (
        samples + noise * loudness * 10 ** (-uniform(12, 50) / 20),
        begin[:, 0] / RATE,
        (begin + lengths)[:, 0] / RATE,
    )


def features(samples: torch.Tensor, filters: torch.Tensor, chance: torch.Generator | None = None) -> torch.Tensor:
    """Return Whisper's log-mel features (clips, 80, frames); with `chance` some bands and some frames are hidden."""
    window = torch.hann_window(400, device=samples.device)
    power = torch.stft(samples, 400, 160, window=window, return_complex=True)[..., :-1].abs().square()
    mel = (filters.T @ power).clamp(min=1e-10).log10()
    mel = (mel.maximum(mel.amax((1, 2), keepdim=True) - 8) + 4) / 4
    for axis, longest in ((1, 10), (1, 10), (2, 20), (2, 20)) if chance else ():
        size = mel.shape[axis]
        start, width = torch.rand(2, len(mel), 1, generator=chance, device=mel.device)
        place = torch.arange(size, device=mel.device) - (start * size).floor()
        hidden = (place >= 0) & (place < width * longest)
        mel = mel.masked_fill(hidden[:, :, None] if axis == 1 else hidden[:, None], 0.0)
    return mel


def labels(tokenizer, texts: list[list[int]], begin: list[float], end: list[float], timed: list[bool]) -> torch.Tensor:
    """Return the target tokens after <|startoftranscript|>, (clips, longest), padded with -100."""
    prompt = tokenizer.convert_tokens_to_ids(["<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    stop, zero = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|0.00|>")
    rows = []
    for text, first, last, with_times in zip(texts, begin, end, timed, strict=True):
        if with_times:
            rows.append([*prompt[:2], zero + round(first / STEP), *text, zero + round(last / STEP), stop])
        else:
            rows.append([*prompt, *text, stop])
    longest = max(map(len, rows))
    return torch.tensor([row + [-100] * (longest - len(row)) for row in rows])


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return the smallest number of words to replace, add or remove, and the reference's length; case is ignored."""
    right, spoken = (re.findall(r"[\w']+", text.lower()) for text in (reference, hypothesis))
    row = list(range(len(spoken) + 1))
    for number, word in enumerate(right, 1):
        above, row[0] = row[:], number
        for place, other in enumerate(spoken, 1):
            row[place] = min(above[place] + 1, row[place - 1] + 1, above[place - 1] + (word != other))
    return row[-1], len(right)


@torch.no_grad()
def evaluate(model, tokenizer, filters: torch.Tensor, release: Path, split: str, shown: int = 0) -> float:
    """Return the word error rate of a split, in per cent, with greedy decoding."""
    samples, _, sentences = read(release, split, model.device.type)
    hypotheses = []
    for batch in samples.float().div(32768).split(64):
        tokens = model.generate(features(batch, filters).to(model.dtype), language="en", task="transcribe")
        hypotheses += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    for sentence, hypothesis in list(zip(sentences, hypotheses, strict=True))[:shown]:
        print(f"    {sentence} | {hypothesis}")
    errors, words = map(sum, zip(*map(word_errors, sentences, hypotheses), strict=True))
    return 100 * errors / words


def main(
    source: Path, corpus: Path, target: Path, steps: int, batch: int, rate: float, seed: int, releases: list[Path]
):
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(seed)
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chance = torch.Generator(device).manual_seed(seed)
    tokenizer, extractor = WhisperTokenizer.from_pretrained(source), WhisperFeatureExtractor.from_pretrained(source)
    filters = torch.tensor(extractor.mel_filters, dtype=torch.float32, device=device)
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32, dropout=0.1).to(device)
    samples, lengths, sentences = read(corpus, "train", device)
    texts = tokenizer(sentences, add_special_tokens=False).input_ids
    print(f"{len(texts)} clips, {lengths.sum().item() / RATE / 60:.0f} minutes, on {device}", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, steps // 20)
    shape = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    start, losses = time.monotonic(), []
    model.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(texts), (batch,), generator=chance, device=device)
        augmented, begin, end = augment(samples[chosen].float() / 32768, lengths[chosen], chance)
        timed = torch.rand(batch, generator=chance, device=device) < 0.25
        numbers = [each.tolist() for each in (begin, end, timed)]
        wanted = labels(tokenizer, [texts[number] for number in chosen.tolist()], *numbers).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_features=features(augmented, filters, chance), labels=wanted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % max(1, steps // 40) == 0:
            mean, losses = torch.stack(losses).mean().item(), []
            print(f"step {step} of {steps}, loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
        if step % 1000 == 0 or step == steps:
            save(model, tokenizer, extractor, target)
            model.eval()
            print(f"  WER dev {evaluate(model, tokenizer, filters, corpus, 'dev'):.1f} %", flush=True)
            model.train()

    model = WhisperForConditionalGeneration.from_pretrained(target, dtype=torch.float32).to(device)  # as written
    for release in (corpus, *releases):
        wer = evaluate(model, tokenizer, filters, release, "test", shown=12)
        print(f"  WER {release.name} test {wer:.1f} %", flush=True)


def save(model, tokenizer, extractor, target: Path) -> None:
    model.config.dropout = 0.0
    weights = {name: weight.half() for name, weight in model.state_dict().items() if name != "proj_out.weight"}
    model.config.dtype = torch.float16
    model.save_pretrained(target, state_dict=weights)
    tokenizer.save_pretrained(target)
    extractor.save_pretrained(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "corpus", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", dest="releases", type=Path, nargs="*", default=[], metavar="RELEASE")
    main(**vars(parser.parse_args()))
