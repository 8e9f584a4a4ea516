"""QLoRA for speech: Whisper in int8 and NF4, adapted, loaded again and transcribing."""

import copy

import pytest
import torch

from quantune.data.examples import read
from quantune.evaluations.transcription import Transcription
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, precision
from quantune.models import adapters, checkpoints, loading
from tests.test_speech import METHODS
from tests.voices import WHISPER


@pytest.mark.parametrize(("method", "bits"), [("int8", 8.2), ("nf4", 4.5)])
def test_lora_on_quantized_whisper_learns_and_transcribes(tmp_path, prepared, method, bits):
    base, adapter, made = (tmp_path / name for name in ("base", "adapter", "made"))
    for folder in (base, adapter, made):
        folder.mkdir()
    quantization = METHODS[method](method=method)
    quantization.quantize(WHISPER, base)  # compares the logits after reloading, bit by bit
    facts = quantization.check(WHISPER, base)
    assert facts["layers_quantized"] == len(checkpoints.linear_layers(WHISPER))
    assert facts["bits_per_weight"] == pytest.approx(bits, abs=0.1)

    keys = {"dataset": "talks", "rank": 4, "learning_rate": 1e-2, "batch_size": 4}
    recipe = LoRA(method="lora", **keys, steps=6, evaluate_every=6)
    examples = read(prepared, "train", base, recipe.length, recipe.task)
    few = copy.copy(examples)
    few.numbers = examples.numbers[:8]
    model = recipe.prepare(loading.model([base], recipe.precision), 0)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    loop.train(model, recipe, 0, few, few, adapter, tmp_path)
    losses = [float(line.split(",")[-1]) for line in (adapter / "curves.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    kept = model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in frozen.items()), "only the adapter is trained"

    adapters.save_adapter(model, adapter)
    again = loading.model([base, adapter], recipe.precision)
    assert loop.mean_loss(again, few, recipe) == pytest.approx(losses[-1], rel=1e-5)
    evaluation = Transcription(kind="transcription", dataset="talks", max_clips=4, max_new_tokens=30)
    found = evaluation.evaluate(loading.LoadedVariant([base, adapter]), prepared, made)
    assert found["clips"] == 4 and found["language"] == "en" and found["cer_raw"] < 0.5


def test_whisper_in_int8_learns_in_float16_as_in_float32(tmp_path, prepared):
    losses = {}
    (base := tmp_path / "base").mkdir()
    METHODS["int8"](method="int8").quantize(WHISPER, base)
    for dtype in ("float32", "float16"):
        keys = {"dataset": "talks", "rank": 4, "learning_rate": 3e-3, "batch_size": 4, "evaluate_every": 4}
        recipe = LoRA(method="lora", **keys, steps=4, precision=dtype, max_validation=8)
        data = read(prepared, "train", base, recipe.length, recipe.task)
        model = recipe.prepare(loading.model([base], precision.loaded_dtype(recipe, quantized=True)), 0)
        losses[dtype] = loop.train(model, recipe, 0, data, data, tmp_path, tmp_path)
    first, second = (losses[dtype]["validation_loss"] for dtype in ("float32", "float16"))
    assert second == pytest.approx(first, abs=0.05) and losses["float16"]["skipped_steps"] <= 2
