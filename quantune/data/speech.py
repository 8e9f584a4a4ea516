"""Speech as a model reads it: clips at its rate, log-mel features, and transcripts as labels."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch

from quantune.core.errors import QuantuneError, listed
from quantune.data.batches import IGNORED
from quantune.data.clips import SCHEMA, Clips, Task
from quantune.models import loading
from quantune.sources import audio

CLIPS = 8  # that go through a layer at once when it is calibrated
THREADS = 2  # that decode and resample; both work outside the interpreter lock


def prepare(source: Path, target: Path, extractor) -> tuple[list[float], int]:
    """Write a split's clips at the extractor's rate, mono, 16 bits, as an Arrow file.

    Returns:
        The lengths of the clips in seconds, and how many were left out because they are longer than the window.

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
        languages: Whisper's code of the language of each.
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
    """Return whether a Whisper checkpoint has tokens for language and task, from its generation_config.json."""
    path = Path(checkpoint) / "generation_config.json"
    return _multilingual(json.loads(path.read_text()) if path.exists() else {})


def labels(encoded: list[list[int]]) -> torch.Tensor:
    """Return transcripts as labels, shape (clips, longest), int64: without the start that the model prepends by itself,
    padded with what the loss leaves out.
    """
    longest = max(map(len, encoded)) - 1
    padded = torch.full((len(encoded), longest), IGNORED)
    for row, ids in enumerate(encoded):
        padded[row, : len(ids) - 1] = torch.tensor(ids[1:])
    return padded


class Examples:
    """The clips of a split as training examples."""

    def __init__(self, prepared: Path, split: str, task: Task, processor, positions: int, multilingual: bool = True):
        self.clips, self.extractor = Clips(prepared, split), processor.feature_extractor
        texts, languages = self.clips.texts(task), self.clips.column("language")
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
        """Return what identifies an example."""
        ids = numpy.array(self.encoded[self.numbers[number]], dtype="<i8")
        return audio.to_pcm(self.clips[self.numbers[number]]).tobytes() + ids.tobytes()

    def tokens(self, chosen: list[int]) -> int:
        """Return the tokens in the transcripts of some examples."""
        return sum(len(self.encoded[self.numbers[number]]) for number in chosen)

    def inputs(self, chosen: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield some examples as a model's inputs, those with transcripts of the same length together: no padding."""
        by_length: dict[int, list[int]] = {}
        for number in chosen:
            by_length.setdefault(len(self.encoded[self.numbers[number]]), []).append(self.numbers[number])
        for _, numbers in sorted(by_length.items()):
            for first in range(0, len(numbers), CLIPS):
                part = numbers[first : first + CLIPS]
                audio_features = features([self.clips[number] for number in part], self.extractor)
                written = torch.tensor([self.encoded[number] for number in part])
                yield {"input_features": audio_features, "decoder_input_ids": written}

    def batch(self, examples: list[int]) -> dict[str, torch.Tensor]:
        """Return features and labels of the examples with these numbers."""
        chosen = [self.numbers[example] for example in examples]
        waves = [self.clips[number] for number in chosen]
        encoded = [self.encoded[number] for number in chosen]
        return {"input_features": features(waves, self.extractor, loading.device()), "labels": labels(encoded)}

    def batches(self, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield all examples in batches, those of similar length together."""
        order = sorted(range(len(self)), key=self.lengths().__getitem__)
        for first in range(0, len(order), size):
            yield self.batch(order[first : first + size])


def transcribe(
    model, processor, waves: Sequence[numpy.ndarray], languages: list[str], batch_size: int, task: Task, **options: Any
) -> list[str]:
    """Transcribe clips that fit into the model's window, in batches of similar length.

    Args:
        model: a Whisper model.
        processor: its feature extractor and tokenizer.
        waves: samples of each clip at the extractor's rate, float32, such as `Clips`.
        languages: Whisper's code of the language of each clip, or of the first so many.
        batch_size: clips transcribed together.
        task: transcribe or translate.
        options: of `generate`, such as num_beams and max_new_tokens (at most what the model has positions for).

    Raises:
        QuantuneError: if the model does not know a language.
    """
    from tqdm import tqdm

    require_languages(model, set(languages))
    order = sorted(range(len(languages)), key=lambda number: (languages[number], len(waves[number])))
    groups = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    # Whisper's `max_length` counts new tokens; given as `max_new_tokens` it would be a second limit beside the model's
    # own `max_length`, warned about in each batch, and an error where it exceeds the positions
    options["max_length"] = options.pop("max_new_tokens", model.config.max_target_positions)
    texts: dict[int, str] = {}
    for group in tqdm(groups, desc="transcribing", unit="batch"):
        inputs = features([waves[number] for number in group], processor.feature_extractor, model.device)
        prompt = {"language": [languages[number] for number in group], "task": task} if multilingual(model) else {}
        prompt["attention_mask"] = torch.ones(inputs.shape[0], inputs.shape[-1], dtype=torch.long, device=model.device)
        with torch.no_grad():
            output = model.generate(inputs.to(model.device, model.dtype), do_sample=False, **prompt, **options)
        written = processor.tokenizer.batch_decode(output, skip_special_tokens=True)
        texts |= {number: text.strip() for number, text in zip(group, written, strict=True)}
    return [texts[number] for number in range(len(languages))]


def multilingual(model) -> bool:
    """Return whether a Whisper model reads language and task tokens."""
    return _multilingual(vars(model.generation_config))


def _multilingual(settings: dict[str, Any]) -> bool:
    return bool(settings.get("is_multilingual", True) and settings.get("lang_to_id"))


def require_languages(model, languages: set[str]) -> None:
    """Raise QuantuneError if a multilingual model does not know a language."""
    known = [name[2:-2] for name in model.generation_config.lang_to_id] if multilingual(model) else languages
    for language in sorted(languages - set(known)):
        raise QuantuneError(f"the model does not know the language '{language}'; languages: {listed(sorted(known))}")
