"""Layers chosen by patterns, groups that fit, grids of 5 and 6 bits: from the configuration to the saved tensors."""

import json
import math
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from pydantic import ValidationError
from safetensors.torch import load_file

from quantune.core.errors import QuantuneError
from quantune.finetunings.lora import LoRA
from quantune.models import architecture, checkpoints, layer_names, loading, probes
from quantune.models.packed_linear import PackedLinear
from quantune.planning import memory
from quantune.quantizations.gptq import GPTQ
from quantune.quantizations.rtn import RoundToNearest
from quantune.quantizations.selection import matches
from tests.test_calibrated import calibrated, data  # noqa: F401 (fixture)
from tests.test_quantizations import nearest
from tests.zoo import MODELS, build

PARENT = Path(__file__).parent.parent / "assets/models/opt-2m"
KNOWN = [name for name in MODELS if name in ("llama", "qwen2", "qwen3", "mistral", "opt", "opt-350m", "whisper")]
LAYERS = "model.decoder.layers"
MIXED = {"bits": 3, "group_size": 32, "overrides": {"fc2": {"bits": 6, "symmetric": False}, "1.fc2": {"bits": 5}}}


@pytest.mark.parametrize("name", KNOWN)
def test_names_before_any_job_are_those_of_the_model(tmp_path, name):
    parent = build(name, tmp_path / name)
    shape = architecture.read(json.loads((parent / "config.json").read_text()))
    for head in (False, True):
        assert layer_names.shapes(shape, head) == checkpoints.linear_layers(parent, head)


def test_a_pattern_is_a_name_or_its_end_after_a_dot():
    name = f"{LAYERS}.10.self_attn.q_proj"
    assert all(matches(pattern, name) for pattern in (name, "q_proj", "*_proj", "layers.10.*", "[qk]_proj", "*"))
    assert not any(matches(pattern, name) for pattern in ("proj", "0.self_attn.q_proj", "layers.1.*", "Q_proj"))


def test_later_patterns_win_key_by_key():
    recipe = RoundToNearest(method="rtn", ignore=["layers.0.*"], **MIXED)
    first, second = recipe.of_layer(f"{LAYERS}.2.fc2"), recipe.of_layer(f"{LAYERS}.1.fc2")
    assert (first.bits, first.group_size, first.symmetric) == (6, 32, False)
    assert (second.bits, second.symmetric) == (5, False)
    assert recipe.of_layer(f"{LAYERS}.0.fc2") is None and recipe.of_layer(f"{LAYERS}.1.fc1") is recipe
    again = RoundToNearest(**recipe.identity())
    assert again == recipe and again.of_layer(f"{LAYERS}.1.fc2").bits == 5, "as the job reads it"
    whole_rows = RoundToNearest(method="rtn", overrides={"fc2": {"group_size": None}})
    assert RoundToNearest(**whole_rows.identity()).of_layer("fc2").group_size is None


def test_recipes_without_these_keys_keep_their_identity():
    assert RoundToNearest(method="rtn").identity() == {"method": "rtn", "bits": 4, "group_size": 128, "symmetric": True}
    more = {"overrides", "ignore", "output_embedding", "static_grids", "clip"}
    assert not more & set(calibrated(GPTQ).identity())


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"overrides": {"fc3": {"bits": 8}}}, ".overrides: 'fc3' matches no linear layer of the model; the ends of "),
        ({"ignore": ["q_prok"]}, "k_proj, v_proj, out_proj, fc1, fc2; the first name is 'model.decoder.layers.0.self_"),
        ({"ignore": ["q_prok"]}, "did you mean 'q_proj'?"),
        ({"ignore": ["lm_head"]}, "'lm_head' is the output embedding, which stays dense without 'output_embedding:"),
        ({"ignore": ["*"]}, ".ignore: it leaves every layer dense"),
        ({"overrides": {"fc2": {"group_size": 96}}}, ".group_size: 96 does not divide the layers' input width 512"),
        (
            {"group_size": 96},
            "the nearest that fits is 64 ('auto' takes 128); allowed: [128, 64, 32, 16, 8, 4] or null",
        ),
    ],
)
def test_what_fits_no_layer_is_refused(keys, problem):
    shape = architecture.read(json.loads((PARENT / "config.json").read_text()))
    assert problem in RoundToNearest(method="rtn", **keys).mismatch(layer_names.shapes(shape), "lm_head")


def test_the_nearest_group_is_proposed_and_auto_takes_it():
    """The widths of SmolLM2-135M."""
    layers = {"q_proj": (576, 576), "down_proj": (576, 1536)}
    problem = RoundToNearest(method="rtn", group_size=128).mismatch(layers)
    assert problem.startswith(
        ".group_size: 128 does not divide the layers' input width 576; the nearest that fits is 64"
    )
    recipe = RoundToNearest(method="rtn", group_size="auto")
    assert recipe.mismatch(layers) is None
    assert recipe.resolved(layers).group_size == 64 and recipe.chosen(layers, PARENT, None, 0) == {"group_size": 64}
    assert recipe.mismatch({"fc": (8, 30)}) == ".group_size: no group fits the layers' input width 30; allowed: null"
    own = RoundToNearest(method="rtn", group_size=32, overrides={"down_proj": {"group_size": "auto"}}).resolved(layers)
    assert own.of_layer("down_proj").group_size == 128 and own.of_layer("q_proj").group_size == 32


@pytest.mark.parametrize("bits", [5, 6])
def test_five_and_six_bits_are_the_nearest_points(tmp_path, bits):
    recipe = RoundToNearest(method="rtn", bits=bits, group_size=64, symmetric=False)
    recipe.quantize(PARENT, tmp_path)
    assert recipe.check(PARENT, tmp_path)["bits_per_weight"] == round(bits + (16 + bits) / 64, 4)
    original = load_file(PARENT / "model.safetensors")[f"{LAYERS}.0.fc2.weight"].double()
    found = loading.model([tmp_path], "float32").get_submodule(f"{LAYERS}.0.fc2").weight.double()
    expected = nearest(original, bits, 64, False)
    assert ((found - original).abs() <= (expected - original).abs() + 2**-11 * original.abs().max()).all()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, data):  # noqa: F811
    """A model with several grids, dense layers and a quantized output embedding, by GPTQ."""
    folder = tmp_path_factory.mktemp("mixed")
    overrides = MIXED["overrides"] | {"lm_head": {"bits": 8, "group_size": None}}
    keys = MIXED | {"overrides": overrides, "ignore": ["layers.0.*"], "output_embedding": True}
    recipe = calibrated(GPTQ, samples=16, **keys)
    facts = recipe.quantize(PARENT, folder, data, 0)
    return recipe, folder, facts | recipe.check(PARENT, folder)


def test_each_layer_has_its_own_grid_or_stays_dense(mixed):
    recipe, folder, facts = mixed
    original, tensors = load_file(PARENT / "model.safetensors"), load_file(folder / "model.safetensors")
    names = [
        f"{LAYERS}.0.{part}" for part in ("fc1", "fc2", *(f"self_attn.{item}_proj" for item in ("k", "out", "q", "v")))
    ]
    assert facts["layers_left_dense"] == names and facts["layers_quantized"] == 19
    for name in names:
        assert torch.equal(tensors[f"{name}.weight"], original[f"{name}.weight"])
    words = {f"{LAYERS}.1.fc2": 5 * 16, f"{LAYERS}.2.fc2": 6 * 16, f"{LAYERS}.1.fc1": 3 * 4, "lm_head": 8 * 4}
    assert {name: tensors[f"{name}.weight_packed"].shape[1] for name in words} == words
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    parsed = QuantizationConfig.model_validate(config["quantization_config"])
    assert sorted(scheme.weights.num_bits for scheme in parsed.config_groups.values()) == [3, 5, 6, 8]
    assert sorted(parsed.ignore) == names
    stored = sum(
        recipe.of_layer(name).stored_bits(*shape)
        for name, shape in checkpoints.linear_layers(PARENT, True).items()
        if recipe.of_layer(name)
    )
    assert facts["bits_per_weight"] == pytest.approx(
        stored
        / sum(
            math.prod(shape) for name, shape in checkpoints.linear_layers(PARENT, True).items() if recipe.of_layer(name)
        ),
        abs=1e-4,
    )


def test_a_mixed_model_opens_in_transformers_alone_with_the_same_numbers(mixed):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    _, folder, _ = mixed
    options = {"dtype": torch.float32, "quantization_config": CompressedTensorsConfig(dequantize=True)}
    dense, packed = AutoModelForCausalLM.from_pretrained(folder, **options).eval(), loading.model([folder], "float32")
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 19
    tokens = probes.probe_tokens(packed.config.vocab_size)
    with torch.no_grad():
        assert torch.equal(packed(input_ids=tokens).logits, dense(input_ids=tokens).logits)


def test_a_mixed_model_trains_and_generates(mixed):
    model = LoRA(method="lora", dataset="any", steps=1).prepare(loading.model([mixed[1]], "float32"), seed=0)
    model(input_ids=torch.tensor([[2, 3, 4]]), labels=torch.tensor([[2, 3, 4]])).loss.backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert model.generate(input_ids=torch.tensor([[2, 3]]), max_new_tokens=2).shape[1] <= 4


def test_a_layer_that_was_left_dense_by_mistake_is_found(mixed):
    recipe, folder, _ = mixed
    with pytest.raises(QuantuneError, match="still holds its full-precision weight"):
        recipe.model_copy(update={"ignore": [], "_known": {}}).check(PARENT, folder)


def test_the_estimate_knows_the_grids_of_all_layers(mixed):
    recipe, folder, _ = mixed
    model = architecture.read(json.loads((PARENT / "config.json").read_text()))
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert memory.weights(model, "float16", recipe) == pytest.approx(written, rel=0.01)
    auto = RoundToNearest(method="rtn", group_size="auto")
    assert memory.weights(model, "float16", auto) == memory.weights(model, "float16", RoundToNearest(method="rtn"))


def test_the_order_of_overrides_is_part_of_the_identity():
    """Later patterns win, so another order is another recipe; it survives the provenance, whose keys are sorted."""
    patterns = {"*_proj": {"bits": 3}, "q_proj": {"bits": 8}}
    first, second = (
        RoundToNearest(method="rtn", overrides=dict(items)) for items in (patterns.items(), [*patterns.items()][::-1])
    )
    assert first.of_layer("layers.0.q_proj").bits == 8 and second.of_layer("layers.0.q_proj").bits == 3
    stored = [json.dumps(recipe.identity(), sort_keys=True) for recipe in (first, second)]
    assert stored[0] != stored[1]
    assert [RoundToNearest(**json.loads(text)) for text in stored] == [first, second]
    assert "overrides" not in RoundToNearest(method="rtn").identity()


@pytest.mark.parametrize("keys", [{"bits": None}, {"symmetric": None}])
def test_an_override_without_a_value_is_refused(keys):
    with pytest.raises(ValidationError, match=f"'{next(iter(keys))}' has no null; leave it out"):
        RoundToNearest(method="rtn", overrides={"q_proj": keys})
