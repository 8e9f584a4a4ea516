"""Whisper-large-v2's architecture: LoRA on int8 weights beside `Seq2SeqTrainer`, transcription beside the pipeline.

    PYTHONPATH=. python benchmarks/whisper_large.py results.json WHISPER

Weights and recordings are random: neither speed nor memory depends on them. WHISPER is a folder that holds the
tokenizer and generation_config.json of any multilingual Whisper with 51,865 tokens, such as openai/whisper-large-v2.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

import numpy
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    BitsAndBytesConfig,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

from quantune.data import speech
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop

SHAPE = {
    "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "encoder_attention_heads": 20,
    "decoder_attention_heads": 20, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "vocab_size": 51865,
}  # fmt: skip
BATCH, STEPS, LABELS, RANK = 64, 6, 32, 8
CLIPS, TOKENS = 64, 64
rng = numpy.random.default_rng(0)


class Noise:
    """Random recordings of 30 s with transcripts of `LABELS` tokens, as training examples."""

    def __init__(self, extractor, count: int):
        self.extractor = extractor
        self.waves = [rng.normal(0, 0.1, extractor.n_samples).astype("float32") for _ in range(BATCH)]
        self.encoded = [[50258, *rng.integers(0, 50000, LABELS).tolist()] for _ in range(BATCH)]
        self.count = count

    def __len__(self) -> int:
        return self.count

    def lengths(self) -> None:
        """Return None: all examples have the same length."""

    def batch(self, examples: list[int]) -> dict[str, torch.Tensor]:
        """Return features, computed at this moment, and labels."""
        waves = [self.waves[number % BATCH] for number in examples]
        labels = speech.labels([self.encoded[number % BATCH] for number in examples])
        return {"input_features": speech.features(waves, self.extractor, "cuda"), "labels": labels}

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return one example with its features, for Seq2SeqTrainer."""
        return {name: value[0].cpu() for name, value in self.batch([number]).items()}


def int8(folder: Path, dtype: torch.dtype):
    """Return the model with int8 weights."""
    return WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, device_map={"": 0}, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )


def quantune_training(folder: Path, data: Noise) -> dict:
    """Return samples/s and peak memory of the project's loop."""
    keys = {"method": "lora", "dataset": "random", "rank": RANK, "steps": STEPS, "batch_size": BATCH}
    recipe = LoRA(**keys, precision="bfloat16", gradient_checkpointing=True, evaluate_every=1, validation_split=None)
    model = int8(folder, torch.bfloat16)
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.cuda.reset_peak_memory_stats()
    seconds, batch = [], data.batch

    def timed(examples):
        torch.cuda.synchronize()
        seconds.append(time.perf_counter())
        return batch(examples)

    data.batch = timed
    place = Path(tempfile.mkdtemp())
    loop.train(model, recipe, 0, data, None, place, place)
    data.batch = batch
    return speed_and_memory(numpy.diff(seconds)[1:])


def trainer_training(folder: Path, data: Noise) -> dict:
    """Return samples/s and peak memory of Seq2SeqTrainer as tutorials use it: fp16, features computed beforehand."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import TrainerCallback

    model = int8(folder, torch.float16)
    model.config.use_cache = False
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    examples, seconds = [data[number] for number in range(BATCH)], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            torch.cuda.synchronize()
            seconds.append(time.perf_counter())

    arguments = Seq2SeqTrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=STEPS, fp16=True, learning_rate=1e-4,
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}, report_to=[],
        save_strategy="no", remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    Seq2SeqTrainer(model, arguments, train_dataset=examples * STEPS, callbacks=[Clock()]).train()
    return speed_and_memory(numpy.diff(seconds)[1:])


def speed_and_memory(seconds) -> dict:
    """Return the median samples/s over the steps and the peak bytes of device memory."""
    median = statistics.median(seconds)
    return {
        "samples_per_second": round(BATCH / median, 2),
        "seconds_per_step": [round(float(item), 4) for item in seconds],
        "peak_device_bytes": torch.cuda.max_memory_allocated(),
    }


def transcription(folder: Path, processor) -> dict:
    """Return clips/s of batches of 16, and of the pipeline with one file at a time; medians of three runs."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16, device_map={"": 0}).eval()
    waves = [rng.normal(0, 0.1, 16000 * 10).astype("float32") for _ in range(CLIPS)]
    forced = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    pipeline = AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    options = {"language": "en", "task": "transcribe", "do_sample": False, **forced}
    ways = {
        "batches of 16": lambda: speech.transcribe(model, processor, waves, ["en"] * CLIPS, 16, "transcribe", **forced),
        "pipeline, file by file": lambda: [pipeline(wave.copy(), generate_kwargs=options) for wave in waves[:16]],
    }
    results = {}
    for name, way in ways.items():
        seconds = []
        for _ in range(4):
            torch.cuda.synchronize()
            started = time.perf_counter()
            written = len(way())
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        results[name] = {
            "clips_per_second": round(written / statistics.median(seconds[1:]), 3),
            "seconds": [round(item, 3) for item in seconds[1:]],
        }
    speeds = [item["clips_per_second"] for item in results.values()]
    return results | {"ratio": round(speeds[0] / speeds[1], 2)}


def main(out: str, files: str) -> None:
    """Run all parts; write the results after each part."""
    folder = Path(tempfile.mkdtemp())
    extractor = WhisperFeatureExtractor(feature_size=80)
    processor = WhisperProcessor(extractor, WhisperTokenizerFast.from_pretrained(files))
    with torch.device("cuda"):
        model = WhisperForConditionalGeneration._from_config(WhisperConfig(**SHAPE), dtype=torch.float16)
    model.generation_config = GenerationConfig.from_pretrained(files)
    model.save_pretrained(folder)
    parameters = model.num_parameters()
    del model
    data = Noise(extractor, BATCH * STEPS)
    results = about() | {"parameters": parameters, "batch": BATCH, "rank": RANK, "labels": LABELS}
    parts = {
        "int8 + LoRA, quantune": lambda: quantune_training(folder, data),
        "int8 + LoRA, Seq2SeqTrainer": lambda: trainer_training(folder, data),
        "transcription": lambda: transcription(folder, processor),
    }
    for name, part in parts.items():
        gc.collect()
        torch.cuda.empty_cache()
        try:
            results[name] = part()
        except Exception:
            traceback.print_exc()
            results[name] = {"error": traceback.format_exc()[-2000:]}
        print(name, json.dumps(results[name]), flush=True)
        Path(out).write_text(json.dumps(results, indent=1) + "\n")


def about() -> dict:
    """Return the hardware, the package versions and the command of the measurement."""
    names = ("torch", "transformers", "peft", "bitsandbytes")
    return {
        "hardware": torch.cuda.get_device_name(),
        "versions": {name: metadata.version(name) for name in names},
        "command": "PYTHONPATH=. python benchmarks/whisper_large.py results.json WHISPER",
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
