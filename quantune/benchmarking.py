"""The benchmark of a variant: its memory, and the speed of prefill and decode by batch size and prompt length.

Prefill reads a prompt and gives the first token's logits; decode makes the tokens that follow, greedily. Prompts are
random tokens: speed does not depend on what they say. Warm-up runs are kept in the raw samples, marked, and left out of
every number. On a GPU this takes seconds for each point, and with compiled decoding about a minute for compiling.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quantune.recipe import Dtype, Recipe

COLUMNS = ["batch_size", "prompt_length", "phase", "run", "warmup", "tokens", "seconds"]
Positive = Annotated[int, Field(gt=0)]


class Benchmark(Recipe):
    """How the speed and memory of variants are measured, each alone on its device."""

    version: ClassVar[int] = 2

    batch_sizes: list[Positive] = Field(default=[1, 8], min_length=1)
    """Sequences processed together. Four-bit weights win at 1 and tend to lose at many: measure what you will serve."""
    prompt_lengths: list[Positive] = Field(default=[512], min_length=1)
    """Tokens in the prompt; the first of them is the one in the report's table and figures."""
    new_tokens: int = Field(default=128, gt=0)
    """Tokens decoded after the prompt."""
    repeats: int = Field(default=5, ge=5)
    """Timed runs of each phase; their median is reported, with the slowest and the fastest."""
    warmup: int = Field(default=2, gt=0)
    """Runs before them that are left out."""
    dtype: Dtype = "float16"
    """Of the weights that are not packed, and of the computation; float32 suits most CPUs."""
    decode: Literal["auto", "compiled", "static", "eager"] = "auto"
    """How tokens are decoded: eager, over a cache that grows; static, over one of fixed size; compiled, captured as a
    CUDA graph too; auto: compiled on a GPU, eager on a CPU. What a variant cannot do falls back to the next slower way,
    which the result names."""

    @property
    def longest(self) -> int:
        """Positions that the longest prompt and what follows take."""
        return max(self.prompt_lengths) + self.new_tokens

    def measure(self, folders: list[Path], target: Path) -> dict[str, Any]:
        """Write `items.parquet`, a row a run: batch_size, prompt_length, phase (prefill or decode), run, warmup,
        tokens, seconds.

        Args:
            folders: the base and, if the variant is an adapter, the adapter after it.
            target: folder to write into.

        Returns:
            Bytes, and for each batch size and prompt length the decoder, peaks in bytes and joules a token, or that it
            did not fit.
        """
        import pandas
        import torch

        from quantune import loading
        from quantune.meters import Energy, Memory, tensor_bytes

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns in every layer of every run
        device = loading.device()
        _warm(device)
        memory = Memory(device)
        model = loading.model(folders, self.dtype)
        result = {
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "parameters": parameters(folders),
            "disk_bytes": sum(path.stat().st_size for folder in folders for path in Path(folder).glob("*.safetensors")),
            "before_bytes": memory.before,
            "loaded_bytes": {"tensors": tensor_bytes(model), "measured": memory.used()},
        }
        with torch.no_grad():
            model(input_ids=_prompt(model, 1, 2), use_cache=False)
        result["running_bytes"] = {"tensors": tensor_bytes(model), "measured": memory.used()}
        points, samples, energy = [], [], Energy(device)
        for length in self.prompt_lengths:
            for batch in self.batch_sizes:
                point, runs = self._tried(model, _prompt(model, batch, length), memory, energy)
                points.append({"batch_size": batch, "prompt_length": length, **point})
                samples += [{"batch_size": batch, "prompt_length": length, **run} for run in runs]
                print(json.dumps(points[-1]), flush=True)
        pandas.DataFrame(samples, columns=COLUMNS).to_parquet(target / "items.parquet", index=False)
        return result | {"points": points}

    def _tried(self, model, prompt, memory, energy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure a point; where memory does not suffice, say so instead."""
        from quantune.meters import out_of_memory

        try:
            point, runs = self._point(model, prompt, memory, energy)
        except Exception as error:
            if not out_of_memory(error):
                raise
            point, runs = {}, []
        memory.reset_peak()  # frees what the failed attempt left
        return {"fits": bool(runs), **point}, runs

    def _point(self, model, prompt, memory, energy) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure one batch size and prompt length; return what was found and a row for each run."""
        import torch

        from quantune import decoding

        def prefill():
            with torch.no_grad():
                decoding.prefill(model, prompt)

        def decode():
            decoding.decode(decoder, self.new_tokens)

        memory.reset_peak()
        runs = self._runs("prefill", prefill, prompt)
        found = {"prefill": {"peak_bytes": memory.peak(), "joules_per_token": _per(energy.of(prefill), prompt.numel())}}
        decoder, name, reasons = decoding.choose(self.decode, model, prompt, self.new_tokens)
        memory.reset_peak()
        decoding.launch(decoder)  # a graph keeps its intermediate results where the peak does not see them
        runs += self._runs("decode", decode, prompt, decoder.rewind)
        peak, tokens = memory.peak(), len(prompt) * self.new_tokens

        def again():
            decoder.rewind()
            decode()

        found["decode"] = {"peak_bytes": peak, "joules_per_token": _per(energy.of(again), tokens)}
        return {"decoder": name, "passed_over": reasons, **found}, runs

    def _runs(self, phase: str, work, prompt, before=lambda: None) -> list[dict[str, Any]]:
        """Time the warm-up runs and the repeats of a phase; `before` is not timed."""
        from quantune.meters import seconds

        tokens, runs = prompt.numel() if phase == "prefill" else len(prompt) * self.new_tokens, []
        for run in range(self.warmup + self.repeats):
            before()
            row = {"phase": phase, "run": run, "warmup": run < self.warmup, "tokens": tokens}
            runs.append(row | {"seconds": seconds(work, prompt.device)})
        return runs


def peak(points: list[dict[str, Any]]) -> int:
    """Return the most bytes that any point of the sweep took, above those in use before the model was loaded."""
    fitting = [point for point in points if point["fits"]]
    return max((point[phase]["peak_bytes"] for point in fitting for phase in ("prefill", "decode")), default=0)


def parameters(folders: list[Path]) -> int:
    """Return how many parameters a variant has, whatever they are packed into: the model's and the adapter's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from quantune.checkpoints import Tensors

    base, *adapters = folders
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
    added = [tensors.shape(name) for tensors in map(Tensors, adapters) for name in tensors.names()]
    return sum(item.numel() for item in model.parameters()) + sum(torch.Size(shape).numel() for shape in added)


def _prompt(model, batch: int, length: int):
    """Return the same random tokens for every variant, shape (batch, length), int64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator).to(model.device)


def _warm(device) -> None:
    """Let libraries set themselves up, so that what they keep is not taken for the model's memory."""
    import torch

    square = torch.ones(64, 64, device=device)
    (square @ square).sum().item()


def _per(joules: float | None, tokens: int) -> float | None:
    return None if joules is None else joules / tokens
