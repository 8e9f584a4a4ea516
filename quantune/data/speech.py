"""Speech as a model reads it: clips at its rate, log-mel features, and transcripts as labels."""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch

from quantune.core.errors import QuantuneError, listed
from quantune.data.batches import IGNORED
from quantune.data.clips import SCHEMA, Clips, Task
from quantune.models import finite, loading
from quantune.sources import audio

NO_SPEECH = 0.6  # probability of the token "no speech" from which on a clip may hold no speech
IMPROBABLE = -1.0  # mean log-probability of a transcript's tokens, in nats, below which it may be of noise
MULTILINGUAL = 51865  # tokens of a multilingual Whisper, at least; English-only ones have one fewer
LANGUAGE = re.compile(r"<\|[a-z]{2,3}\|>")
CLIPS = 8  # clips that pass through a layer at once during calibration
THREADS = 2  # threads that decode and resample; both release the interpreter lock


def prepare(source: Path, target: Path, extractor) -> tuple[list[float], int]:
    """Write a split's clips at the extractor's rate, mono, 16 bits, as an Arrow file.

    Returns:
        The lengths of the clips in seconds, and how many clips were left out because they exceed the window.

    Raises:
        QuantuneError: if no clip is left.
    """
    import pyarrow.parquet
    from tqdm import tqdm

    def convert(row: dict[str, Any]) -> tuple[dict[str, Any], numpy.ndarray]:
        samples, rate, _ = audio.decode(row.pop("audio"))
        return row, audio.to_pcm(audio.resample(samples, rate, extractor.sampling_rate))

    opened, seconds, dropped = pyarrow.parquet.ParquetFile(source), [], 0
    bar = tqdm(total=opened.metadata.num_rows, desc=f"resampling {source.stem}", unit="clip")
    with (
        ThreadPoolExecutor(THREADS) as pool,
        pyarrow.OSFile(str(target), "wb") as sink,
        pyarrow.ipc.new_file(sink, SCHEMA) as writer,
    ):
        for batch in opened.iter_batches(128):
            rows = []
            for row, samples in pool.map(convert, batch.to_pylist()):
                bar.update()
                if len(samples) > extractor.n_samples:
                    dropped += 1
                    continue
                seconds.append(len(samples) / extractor.sampling_rate)
                rows.append(row | {"seconds": seconds[-1], "samples": samples.tobytes()})
            writer.write_table(pyarrow.Table.from_pylist(rows, SCHEMA))
    if not seconds:
        raise QuantuneError(f"split '{source.stem}': all {dropped} clips are longer than {extractor.chunk_length} s")
    return seconds, dropped


def features(waves: list[numpy.ndarray], extractor, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return log-mel spectrograms, padded to the extractor's window: shape (clips, mel bins, frames), float32."""
    options = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt", "device": str(device)}
    return extractor(waves, **options).input_features


def encode(texts: list[str], languages: list[str], task: Task, tokenizer, multilingual: bool = True) -> list[list[int]]:
    """Return each transcript as token ids: start of transcript, language, task, no timestamps, text, end of text.

    Args:
        texts: the transcripts.
        languages: Whisper's language code for each transcript.
        task: transcribe or translate.
        tokenizer: of the model.
        multilingual: false for an English-only model, which has no tokens for language and task in its prompt.
    """
    encoded = []
    for text, language in zip(texts, languages, strict=True):
        tokenizer.language, tokenizer.task = (language, task) if multilingual else (None, None)
        tokenizer.set_prefix_tokens(predict_timestamps=False)
        encoded.append(tokenizer(text)["input_ids"])
    return encoded


def knows_languages(checkpoint: Path) -> bool:
    """Return whether a Whisper checkpoint has tokens for language and task, from its configuration files."""
    files = [Path(checkpoint) / name for name in ("generation_config.json", "config.json")]
    settings, config = (json.loads(path.read_text()) if path.exists() else {} for path in files)
    return _multilingual(settings, config.get("vocab_size", 0))


def labels(encoded: list[list[int]]) -> torch.Tensor:
    """Return transcripts as labels, shape (clips, longest), int64: without the start token, which the model prepends,
    and padded with the label that the loss ignores.
    """
    longest = max(map(len, encoded)) - 1
    padded = torch.full((len(encoded), longest), IGNORED)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids) - 1] = torch.tensor(ids[1:])
    return padded


class Examples:
    """The clips of a split as training examples."""

    def __init__(
        self,
        prepared: Path,
        split: str,
        task: Task,
        processor,
        positions: int,
        multilingual: bool = True,
        most: int | None = None,
    ):
        self.clips, self.extractor = Clips(prepared, split), processor.feature_extractor
        texts, languages = self.clips.texts(task)[:most], self.clips.column("language")[:most]
        if not multilingual and (other := sorted(set(languages) - {"en"})):
            raise QuantuneError(
                f"the model is English-only, and '{split}' holds clips in other languages: {listed(other)}"
            )
        self.encoded = encode(texts, languages, task, processor.tokenizer, multilingual)
        self.numbers = [number for number, ids in enumerate(self.encoded) if len(ids) <= positions]
        if dropped := len(self.encoded) - len(self.numbers):
            print(f"{split}: left out {dropped} transcripts longer than {positions} tokens")
        if not self.numbers:
            raise QuantuneError(f"split '{split}': every transcript is longer than the model's {positions} positions")

    def __len__(self) -> int:
        return len(self.numbers)

    def lengths(self) -> list[int]:
        """Return the tokens in each transcript."""
        return [len(self.encoded[number]) for number in self.numbers]

    unit = "clips"

    def content(self, number: int) -> bytes:
        """Return the bytes that identify an example."""
        ids = numpy.array(self.encoded[self.numbers[number]], dtype="<i8")
        return audio.to_pcm(self.clips[self.numbers[number]]).tobytes() + ids.tobytes()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in the transcripts of some examples."""
        return sum(len(self.encoded[self.numbers[number]]) for number in chosen)

    def labels(self, chosen: list[int]) -> int:
        """Return the labels of some examples: each token of a transcript but the start token."""
        return self.tokens(chosen) - len(chosen)

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield some examples as a model's inputs; transcripts in a batch have one length, so none is padded."""
        by_length: dict[int, list[int]] = {}
        for number in chosen:
            by_length.setdefault(len(self.encoded[self.numbers[number]]), []).append(self.numbers[number])
        for _, numbers in sorted(by_length.items()):
            for first in range(0, len(numbers), CLIPS):
                part = numbers[first : first + CLIPS]
                spectrograms = features([self.clips[number] for number in part], self.extractor)
                tokens = torch.tensor([self.encoded[number] for number in part])
                yield {"input_features": spectrograms, "decoder_input_ids": tokens}

    def batch(self, examples: list[int]) -> dict[str, torch.Tensor]:
        """Return features and labels of the examples with these numbers."""
        chosen = [self.numbers[example] for example in examples]
        waves = [self.clips[number] for number in chosen]
        encoded = [self.encoded[number] for number in chosen]
        return {"input_features": features(waves, self.extractor, loading.device()), "labels": labels(encoded)}


def transcribe(
    model,
    processor,
    waves: Sequence[numpy.ndarray],
    languages: list[str],
    batch_size: int,
    task: Task,
    drop_noise: bool = False,
    **options: Any,
) -> list[str]:
    """Transcribe clips that fit into the model's window, in batches of similar length.

    Args:
        model: a Whisper model.
        processor: its feature extractor and tokenizer.
        waves: samples of each clip at the extractor's rate, float32, such as `Clips`.
        languages: Whisper's language code for each clip; clips beyond the last code are left out.
        batch_size: clips transcribed together.
        task: transcribe or translate.
        drop_noise: return an empty text for clips in which the model recognizes no speech.
        options: of `generate`, such as num_beams and max_new_tokens (at most the model's positions).

    Raises:
        QuantuneError: if the model does not know a language; NotFiniteError, if its logits are not numbers.
    """
    from tqdm import tqdm

    complete_settings(model, processor.tokenizer)
    require_languages(model, set(languages))
    order = sorted(range(len(languages)), key=lambda number: (languages[number], len(waves[number])))
    groups = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    # Whisper's `max_length` counts new tokens. `max_new_tokens` would be a second limit: with the model's own
    # `max_length` it gives a warning in each batch, and above the number of positions it is an error
    options["max_length"] = options.pop("max_new_tokens", model.config.max_target_positions)
    texts, watch, spoken = {}, finite.Watch(), multilingual(model)
    for group in tqdm(groups, desc="transcribing", unit="batch"):
        inputs = features([waves[number] for number in group], processor.feature_extractor, model.device)
        extra = {"language": [languages[number] for number in group], "task": task} if spoken else {}
        extra["attention_mask"] = torch.ones(inputs.shape[0], inputs.shape[-1], dtype=torch.long, device=model.device)
        with torch.no_grad():
            output = model.generate(
                inputs.to(model.device, model.dtype), do_sample=False, logits_processor=[watch], **extra, **options
            )
        written = processor.tokenizer.batch_decode(output, skip_special_tokens=True)
        if drop_noise:
            prompts = encode(
                [""] * len(group), [languages[number] for number in group], task, processor.tokenizer, spoken
            )
            prompt = torch.tensor(prompts, device=output.device)[:, :-1]  # without the end token
            noise = _noise(model, inputs.to(model.device, model.dtype), prompt, output)
            written = ["" if without else text for text, without in zip(written, noise, strict=True)]
        texts |= {number: text.strip() for number, text in zip(group, written, strict=True)}
        watch.require(model)
    return [texts[number] for number in range(len(languages))]


@torch.no_grad()
def _noise(model, inputs: torch.Tensor, prompt: torch.Tensor, output: torch.Tensor) -> list[bool]:
    """Return for each clip whether it holds no speech, by the rule of Whisper's authors.

    The token "no speech" is likely where the transcript starts, and the transcript is improbable (Radford et al., 2022,
    section 4.5, with the thresholds of openai/whisper).

    Args:
        model: a Whisper model.
        inputs: log-mel spectrograms of the clips, shape (clips, mel bins, frames).
        prompt: token ids before each transcript, shape (clips, prompt).
        output: the transcripts as token ids, shape (clips, longest), padded by the end token.
    """
    tokens = torch.cat([prompt, output], dim=1)[:, : model.config.max_target_positions]
    logits = model(input_features=inputs, decoder_input_ids=tokens, use_cache=False).logits.float()
    start, end = model.generation_config.no_timestamps_token_id, model.generation_config.eos_token_id
    silence = logits[:, 0].softmax(-1)[:, start - 1]  # the token before <|notimestamps|>, as in transformers
    first = prompt.shape[1]
    chances = logits[:, first - 1 : -1].log_softmax(-1).gather(2, tokens[:, first:, None]).squeeze(2)
    written = (tokens[:, first:] < end).float()  # tokens of text; special tokens come after it in the vocabulary
    mean = (chances * written).sum(1) / written.sum(1).clamp(min=1)
    return ((silence > NO_SPEECH) & (mean < IMPROBABLE)).tolist()


def multilingual(model) -> bool:
    """Return whether a Whisper model takes language and task as tokens."""
    return _multilingual(vars(model.generation_config), model.config.vocab_size)


def _multilingual(settings: dict[str, Any], vocabulary: int) -> bool:
    stated = settings.get("is_multilingual")
    if stated is None and not settings.get("lang_to_id"):  # from before transformers wrote them: by its size
        return vocabulary >= MULTILINGUAL
    return stated is not False


def complete_settings(model, tokenizer) -> None:
    """Give a Whisper model the token ids that generation settings of old checkpoints lack, from its tokenizer."""
    settings, known = model.generation_config, tokenizer.get_vocab()
    if getattr(settings, "no_timestamps_token_id", None) is None:
        settings.no_timestamps_token_id = known.get("<|notimestamps|>")
    if multilingual(model) and not getattr(settings, "lang_to_id", None):
        settings.lang_to_id = {name: number for name, number in known.items() if LANGUAGE.fullmatch(name)}
        settings.task_to_id = {task: known[f"<|{task}|>"] for task in ("transcribe", "translate")}
        settings.is_multilingual = True


def require_languages(model, languages: set[str]) -> None:
    """Raise QuantuneError if a model does not know a language."""
    known = [name[2:-2] for name in model.generation_config.lang_to_id] if multilingual(model) else ["en"]
    for language in sorted(languages - set(known)):
        raise QuantuneError(f"the model does not know the language '{language}'; languages: {listed(sorted(known))}")
