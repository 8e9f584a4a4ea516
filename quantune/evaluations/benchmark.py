"""The benchmark of a variant: its memory, and its speed by batch size.

For a text model, prefill reads a prompt and gives the first token's logits; decode generates the next tokens, greedily.
For a speech model, encode takes a batch of windows (30 seconds each, or the extractor's length) from log-mel
spectrograms to the first token's logits: the encoder, the keys and values of cross-attention, the tokens that start a
transcript. Then decode follows. Prompts are random tokens and windows are noise: speed does not depend on the content.

Warm-up runs are kept in the raw samples, marked, and left out of every number. On a GPU this takes seconds for each
point, and with compiled decoding about a minute for compiling.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantune.core.recipe import LARGEST_BATCH, LONGEST, Dtype, Recipe
from quantune.core.workload import Inference

if TYPE_CHECKING:
    from quantune.models.decoding import Prompt, Windows

PHASES = ("prefill", "encode", "decode")
COLUMNS = ["phase", "run", "warmup", "tokens", "seconds"]
START = 4
"""Tokens that start a transcript: start of transcript, language, task, no timestamps."""
MEASURES = {
    "text": {"prefill": ("tokens_per_second", "token"), "decode": ("tokens_per_second", "token")},
    "speech": {
        "transcribe": ("real_time_factor", "audio_second"),
        "encode": ("seconds", "audio_second"),
        "decode": ("tokens_per_second", "token"),
    },
}
"""Track -> phase -> its speed, and the unit that its energy is counted for, in the names of the report's numbers."""
Batch = Annotated[int, Field(gt=0, le=LARGEST_BATCH)]
Length = Annotated[int, Field(gt=0, le=LONGEST)]
Track = Literal["text", "speech"]


@dataclass(frozen=True)
class Input:
    """The input at one point of the sweep."""

    point: dict[str, int]
    """Its batch size and prompt length (tokens), or window (seconds)."""
    prompt: "Prompt"
    phase: str
    """The phase that reads the prompt: prefill or encode."""
    amount: int
    """Size of the prompt: tokens, or seconds of audio."""
    unit: str
    """Unit of the amount: token or audio_second."""


class Benchmark(Recipe):
    """How the speed and memory of variants are measured, each alone on its device."""

    version: ClassVar[int] = 3

    batch_sizes: list[Batch] = Field(default=[1, 8], min_length=1)
    """Sequences, or windows of audio, processed together. Four-bit weights are fast at 1 and often slow at many:
    measure the sizes that you will serve."""
    prompt_lengths: list[Length] = Field(default=[512], min_length=1)
    """Tokens in the prompt of a text model; the first one is shown in the report's table and figures. Speech
    models ignore this key: they read windows of their own length."""
    new_tokens: int = Field(default=128, gt=0, le=LONGEST)
    """Tokens decoded after the prompt, or for each window of audio."""
    repeats: int = Field(default=5, ge=5, le=10_000)
    """Timed runs of each phase; their median is reported, with the slowest and the fastest."""
    warmup: int = Field(default=2, gt=0, le=10_000)
    """Runs before the timed runs, left out of the results."""
    dtype: Dtype = "float16"
    """Dtype of the computation and of the weights that are not packed; float32 suits most CPUs."""
    decode: Literal["auto", "compiled", "static", "eager"] = "auto"
    """How tokens are decoded: eager, over a cache that grows; static, over one of fixed size; compiled, captured as a
    CUDA graph too; auto: compiled if the whole model is on a GPU, else eager. If a variant does not support one, the
    next slower one is used, and the result names it."""

    def longest(self, track: Track) -> int:
        """Return the positions of the longest prompt and the new tokens."""
        return (START if track == "speech" else max(self.prompt_lengths)) + self.new_tokens

    def names(self, track: Track) -> list[str]:
        """Return the names of a variant's numbers in the report; `*` stands for the window of a speech model."""
        lengths = [f"prompt{length}" for length in self.prompt_lengths] if track == "text" else ["window*"]
        points = [f"batch{batch}.{length}" for batch in self.batch_sizes for length in lengths]
        return ["loaded_bytes", "running_bytes", "footprint_bytes"] + [
            f"{phase}.{point}.{name}"
            for phase, (speed, unit) in MEASURES[track].items()
            for point in points
            for name in (speed, f"{speed}_low", f"{speed}_high", "peak_bytes", f"joules_per_{unit}")
        ]

    def workload(self, track: Track) -> Inference:
        """Return the largest point of the sweep, for estimates of memory."""
        return Inference(self.dtype, max(self.batch_sizes), self.longest(track), cache=True, logits=1)

    def relevant(self, track: Track) -> dict[str, Any]:
        """Return the fields that affect the measurements of a track's models."""
        return {key: value for key, value in self.identity().items() if track == "text" or key != "prompt_lengths"}

    def measure(self, folders: list[Path], target: Path) -> dict[str, Any]:
        """Write `items.parquet`, a row a run: batch_size, prompt_length or window_seconds, phase (prefill or encode,
        decode), run, warmup, tokens (read or generated), seconds.

        Args:
            folders: the base and, if the variant is an adapter, the adapter after it.
            target: the folder to write into.

        Returns:
            Bytes, and for each point of the sweep the decoder, peaks in bytes and joules a token or second of audio, or
            that the point did not fit into memory.
        """
        import pandas
        import torch

        from quantune.models import decoding, loading
        from quantune.models.meters import Energy, Memory, tensor_bytes

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns in every layer of every run
        device = loading.device()
        _warm(device)
        memory = Memory(device)
        model = loading.fitting(folders, self.dtype)
        result = {
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "parameters": parameters(folders),
            "disk_bytes": sum(path.stat().st_size for folder in folders for path in Path(folder).glob("*.safetensors")),
            "before_bytes": memory.before,
            "footprint_bytes": model.get_memory_footprint(),
            "loaded_bytes": {"tensors": tensor_bytes(model), "measured": memory.used()},
        }
        extractor = loading.feature_extractor(folders[0]) if loading.is_speech(folders[0]) else None
        with torch.no_grad():
            decoding.prefill(model, windows(model, extractor, 1, self.dtype) if extractor else _tokens(model, 1, 2))
        result["running_bytes"] = {"tensors": tensor_bytes(model), "measured": memory.used()}
        points, samples, energy = [], [], Energy(device)
        for item in self._windows(model, extractor) if extractor else self._prompts(model):
            point, runs = self._point_if_it_fits(model, item, memory, energy)
            points.append({**item.point, **point})
            samples += [{**item.point, **run} for run in runs]
            print(json.dumps(points[-1]), flush=True)
        columns = [*item.point, *COLUMNS]
        pandas.DataFrame(samples, columns=columns).to_parquet(target / "items.parquet", index=False)
        return result | ({"new_tokens": self.new_tokens} if extractor else {}) | {"points": points}

    def _prompts(self, model) -> Iterator[Input]:
        """Yield the inputs of a text model, point by point."""
        for length in self.prompt_lengths:
            for batch in self.batch_sizes:
                point = {"batch_size": batch, "prompt_length": length}
                yield Input(point, _tokens(model, batch, length), "prefill", batch * length, "token")

    def _windows(self, model, extractor) -> Iterator[Input]:
        """Yield the inputs of a speech model, point by point."""
        for batch in self.batch_sizes:
            point = {"batch_size": batch, "window_seconds": extractor.chunk_length}
            prompt = windows(model, extractor, batch, self.dtype)
            yield Input(point, prompt, "encode", batch * extractor.chunk_length, "audio_second")

    def _point_if_it_fits(self, model, item: Input, memory, energy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure one point of the sweep; record `fits`: false if memory is too small."""
        from quantune.models.meters import out_of_memory

        try:
            point, runs = self._point(model, item, memory, energy)
        except Exception as error:
            if not out_of_memory(error):
                raise
            point, runs = {}, []
        memory.reset_peak()  # frees the memory of a failed attempt
        return {"fits": bool(runs), **point}, runs

    def _point(self, model, item: Input, memory, energy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure one point of the sweep; return the measurements and a row for each run."""
        import torch

        from quantune.models import decoding, offloading

        prompt, tokens = item.prompt, decoding.tokens_of(item.prompt)

        def read():
            with torch.no_grad():
                decoding.prefill(model, prompt)

        def decode():
            decoding.decode(decoder, self.new_tokens)

        def again():
            decoder.rewind()
            decode()

        memory.reset_peak()
        runs = self._runs(item.phase, read, tokens.numel(), tokens.device)
        peak_bytes, joules = memory.peak(), _per(energy.of(read), item.amount)
        measured = {item.phase: {"peak_bytes": peak_bytes, f"joules_per_{item.unit}": joules}}
        decoder, name, reasons = decoding.choose(self.decode, model, prompt, self.new_tokens)
        memory.reset_peak()
        decoding.launch(decoder)  # the peak includes the intermediate results of a launch, but not of a graph
        generated = len(tokens) * self.new_tokens
        runs += self._runs("decode", decode, generated, tokens.device, decoder.rewind)
        measured["decode"] = {"peak_bytes": memory.peak(), "joules_per_token": _per(energy.of(again), generated)}
        if away := sum(map(offloading.is_away, model.modules())):
            name = f"{name}, {away} layers in main memory"
        return {"decoder": name, "passed_over": reasons, **measured}, runs

    def _runs(self, phase: str, work, tokens: int, device, before=lambda: None) -> list[dict[str, Any]]:
        """Time the warm-up runs and the repeats of a phase; `before` is not timed."""
        from quantune.models.meters import seconds

        runs = []
        for run in range(self.warmup + self.repeats):
            before()
            row = {"phase": phase, "run": run, "warmup": run < self.warmup, "tokens": tokens}
            runs.append(row | {"seconds": seconds(work, device)})
        return runs


def peak(points: list[dict[str, Any]]) -> int:
    """Return the most bytes that any point of the sweep took, above those in use before the model was loaded."""
    peaks = [point[phase]["peak_bytes"] for point in points for phase in PHASES if phase in point]
    return max(peaks, default=0)


def parameters(folders: list[Path]) -> int:
    """Return the number of parameters of a variant's model and adapter; a packed weight counts as one."""
    import torch

    from quantune.models import loading
    from quantune.models.checkpoints import Tensors

    base, *adapters = folders
    with torch.device("meta"):
        model = loading.auto_class(base).from_config(loading.config(base))
    added = [tensors.shape(name) for tensors in map(Tensors, adapters) for name in tensors.names()]
    return sum(item.numel() for item in model.parameters()) + sum(torch.Size(shape).numel() for shape in added)


def windows(model, extractor, batch: int, dtype: str) -> "Windows":
    """Return windows of noise, of the extractor's length, and the first tokens of their transcripts; they are the same
    for every variant.
    """
    import torch

    from quantune.models.decoding import Windows

    shape = (batch, extractor.feature_size, extractor.nb_max_frames)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Windows(noise.to(model.device, getattr(torch, dtype)), _tokens(model, batch, START))


def _tokens(model, batch: int, length: int):
    """Return the same random tokens for every variant, shape (batch, length), int64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(model.device)


def _warm(device) -> None:
    """Let libraries initialize, so that their memory does not count as the model's."""
    import torch

    square = torch.ones(64, 64, device=device)
    (square @ square).sum().item()


def _per(joules: float | None, tokens: int) -> float | None:
    return None if joules is None else joules / tokens
