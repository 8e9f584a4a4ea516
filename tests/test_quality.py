"""The quality guard: what it measures is right, small damage passes, a destroyed layer or model is caught and named."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from quantune.core.errors import QuantuneError
from quantune.models import checkpoints, loading, offloading
from quantune.quantizations.arithmetic import quality
from quantune.quantizations.rtn import RoundToNearest
from tests.conftest import ROOT

TEXT, SPEECH = ROOT / "assets/models/opt-2m", ROOT / "assets/models/whisper-3m"
LAYERS = {TEXT: "model.decoder.layers.2.fc1", SPEECH: "model.encoder.layers.1.self_attn.v_proj"}
RECIPE = RoundToNearest(method="rtn", bits=4, group_size=32)


@pytest.fixture(scope="module", params=[TEXT, SPEECH], ids=["text", "speech"])
def pair(request, tmp_path_factory) -> tuple[Path, Path]:
    """A model and its quantization."""
    folder = tmp_path_factory.mktemp("quantized")
    RECIPE.quantize(request.param, folder)
    return request.param, folder


def zeroed(weight):
    weight.zero_()


def shuffled(weight):
    weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])


def scaled(weight):
    weight.mul_(2)


def turned(weight):
    weight.mul_(-1)


def not_finite(weight):
    weight[0, 0] = torch.nan


@pytest.mark.parametrize("damage", [zeroed, shuffled, scaled, turned, not_finite])
def test_a_destroyed_layer_is_named(pair, tmp_path, damage):
    parent, _ = pair
    model = loading.model([parent], "float32")
    with torch.no_grad():
        damage(model.get_submodule(LAYERS[parent]).weight)
    checkpoints.save_model(model, parent, tmp_path)
    with pytest.raises(QuantuneError, match=f"'{LAYERS[parent]}'.*or keep the model with 'if_destroyed: warn'"):
        quality.guard(RECIPE, parent, tmp_path)
    facts = quality.guard(RECIPE.model_copy(update={"if_destroyed": "warn"}), parent, tmp_path)
    assert LAYERS[parent] in facts["warnings"][0] and LAYERS[parent] in facts["largest_output_errors"]
    json.dumps(facts, allow_nan=False)


def test_a_good_quantization_passes_without_a_warning(pair, capsys):
    facts = quality.guard(RECIPE, *pair)
    assert facts["warnings"] == [] and "WARNING" not in capsys.readouterr().out
    assert facts["loss_before"] < facts["unigram_loss"]
    assert 0 < max(facts["largest_output_errors"].values()) < RECIPE.usual_error()
    json.dumps(facts, allow_nan=False)


def test_the_numbers_are_those_of_their_definitions(tmp_path):
    """Against the plain formula, with the inputs of one layer caught by hand."""
    RECIPE.quantize(TEXT, tmp_path)
    ((_, inputs), model) = quality.probe_inputs(TEXT), loading.model([TEXT], "float32")
    caught = []
    layer = model.get_submodule(LAYERS[TEXT])
    layer.register_forward_pre_hook(lambda _, args: caught.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        output = model(**inputs[0], labels=inputs[0]["input_ids"])
    rounded = loading.model([tmp_path], "float32").get_submodule(LAYERS[TEXT]).weight
    change, right = caught[0] @ (rounded - layer.weight).T, caught[0] @ layer.weight.T
    found = quality.measure(TEXT, tmp_path, inputs)
    assert found.errors[LAYERS[TEXT]] == pytest.approx(float((change.norm() / right.norm()).detach()), rel=1e-4)
    assert found.before == pytest.approx(float(output.loss), rel=1e-5)
    tokens = inputs[0]["input_ids"][0, 1:].tolist()
    unigram = sum(-math.log((tokens.count(token) + 1) / (len(tokens) + 12288)) for token in tokens) / len(tokens)
    assert found.unigram == pytest.approx(unigram)


def test_a_loss_worse_than_a_unigram_model_is_destruction_and_a_model_that_always_was_is_not_judged():
    errors = {"a": 0.3, "b": 0.4}
    assert "worse than a unigram model: 7.50" in quality.destroyed(quality.Comparison(5.0, 7.5, 7.0, errors))
    assert "'b' (0.400)" in quality.destroyed(quality.Comparison(5.0, 7.5, 7.0, errors))
    assert quality.destroyed(quality.Comparison(5.0, 6.9, 7.0, errors)) is None
    assert quality.destroyed(quality.Comparison(7.2, 7.5, 7.0, errors)) is None, "random weights"
    assert "loss is nan" in quality.destroyed(quality.Comparison(7.2, math.nan, 7.0, errors))
    assert quality.quality_warnings(quality.Comparison(5.0, 5.1, 7.0, errors), 0.5) == []
    assert len(quality.quality_warnings(quality.Comparison(5.0, 5.5, 7.0, errors), 0.35)) == 2


def test_settings_that_transformers_refuses_to_write_are_copied(tmp_path):
    """A temperature without sampling, as models on the hub have it."""
    parent, folder = tmp_path / "parent", tmp_path / "out"
    shutil.copytree(TEXT, parent)
    folder.mkdir()
    settings = json.loads((TEXT / "generation_config.json").read_text()) | {"temperature": 0.6, "do_sample": False}
    (parent / "generation_config.json").write_text(json.dumps(settings))
    RECIPE.quantize(parent, folder)
    assert json.loads((folder / "generation_config.json").read_text()) == settings


def test_rounding_what_is_saved_leaves_what_is_not_saved():
    """Rotary frequencies are computed when a model is built; rounded, they would be another model's."""
    module = torch.nn.Linear(2, 2)
    module.register_buffer("frequencies", torch.tensor([1 / 3]), persistent=False)
    module.register_buffer("mean", torch.tensor([1 / 3]))
    module.tied = module.weight
    offloading.move([module], "cpu", torch.float16)
    assert module.frequencies.dtype == torch.float32 and module.frequencies == torch.tensor([1 / 3])
    assert module.mean.dtype == module.weight.dtype == torch.float16 and module.tied is module.weight
