"""FP8 and int8: the arithmetic against float64, whole checkpoints, and machines that cannot compute them."""

import json
from pathlib import Path

import pyarrow
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from quantune.core import hardware
from quantune.core.errors import ConfigError, QuantuneError
from quantune.core.workload import Inference
from quantune.data import tokens
from quantune.data.examples import read
from quantune.evaluations.perplexity import Perplexity
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import loop, loss
from quantune.models import architecture, checkpoints, eight_bit_linear, loading, probes
from quantune.models.eight_bit_linear import EightBitLinear, codes, multiply, scales, sums
from quantune.models.meters import tensor_bytes
from quantune.planning import load, memory
from quantune.quantizations import methods
from quantune.quantizations.arithmetic import quality, smoothing
from tests import zoo
from tests.test_calibrated import narrow_embeddings
from tests.test_packed_linear import require_one_graph

ROOT = Path(__file__).parent.parent
PARENT = ROOT / "assets/models/opt-2m"
WHISPER = ROOT / "assets/models/whisper-3m"
RECIPES = {recipe.model_fields["method"].annotation.__args__[0]: recipe for recipe in methods()}
SAMPLES = {"dataset": "general", "split": "calibration", "samples": 16, "length": 64}
ALL = {
    "fp8": {"method": "fp8"},
    "fp8-weights": {"method": "fp8", "activations": "none"},
    "int8-dynamic": {"method": "int8-dynamic"},
    "int8-static": {"method": "int8-static", **SAMPLES},
    "smoothquant": {"method": "smoothquant", **SAMPLES},
    "smoothquant-static": {"method": "smoothquant", "activations": "static", **SAMPLES},
}
LAYER = "model.decoder.layers.0.fc2"
KINDS = [torch.int8, torch.float8_e4m3fn]


def recipe_of(name: str, **keys):
    return RECIPES[ALL[name]["method"]](**{**ALL[name], **keys})


def on_grid(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Return the nearest codes in float64, from their definitions: whole numbers, or E4M3 with ties to even."""
    if kind is torch.int8:
        return values.round().clamp(-127, 127)
    exponent = values.abs().clamp(min=2.0**-6).log2().floor()
    step = 2 ** (exponent - 3)  # three bits of mantissa; below 2^-6 the numbers are subnormal
    return ((values / step).round() * step).clamp(-448, 448)


def problem(seed: int, rows: int = 7, columns: int = 96, outputs: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs with outliers, and weights."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, columns, generator=generator)
    states[:, 5] *= 40
    return states, torch.randn(outputs, columns, generator=generator) / 10


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("static", [False, True])
def test_the_product_is_that_of_codes_in_float64(kind, static):
    states, weight = problem(0)
    states[3] = 0
    scale = scales(weight, kind)
    input_scale = scales(states.reshape(1, -1) / 2, kind)[0] if static else None  # half of the range: some are cut off
    found = multiply(states, codes(weight, scale, kind), scale, input_scale)
    largest = 127 if kind is torch.int8 else 448
    of_weights = weight.double().abs().amax(1, keepdim=True) / largest
    of_states = states.double().abs().amax(1, keepdim=True) / largest
    of_states = states.double().abs().max() / 2 / largest if static else of_states.clamp(min=1e-30)
    left, right = on_grid(states.double() / of_states, kind), on_grid(weight.double() / of_weights, kind)
    expected = left @ right.T * of_states * of_weights.T
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(found[3], torch.zeros(40))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_code_is_the_nearest(kind):
    values = torch.linspace(-500, 500, 40001)
    found = codes(values, torch.ones(()), kind).double()
    assert torch.equal(found, on_grid(values.double(), kind))
    small = torch.linspace(-0.05, 0.05, 4001)
    assert torch.equal(codes(small, torch.ones(()), kind).double(), on_grid(small.double(), kind))


def test_sums_of_int8_are_exact_and_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (5, 4100), dtype=torch.int8, generator=generator)
    right = torch.randint(-127, 128, (6, 4100), dtype=torch.int8, generator=generator)
    left[0], right[0] = 127, 127  # the largest sum, far above 2^24
    expected = torch._int_mm(left, right.T)
    assert int(expected[0, 0]) == 4100 * 127**2
    assert torch.equal(eight_bit_linear.emulated_sums(left, right), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(eight_bit_linear.emulated_sums(left, right), expected)
    assert torch.equal(sums(left, right), expected)


def test_smoothing_follows_the_paper_and_lets_outliers_fit():
    states, weight = problem(1)
    states[:, 7] = 0
    largest = states.abs().amax(0)
    scale = smoothing.smoothing_scale([weight], largest, 0.5)
    expected = (largest.double() / weight.double().abs().amax(0)).sqrt()
    expected[7] = 1
    assert torch.allclose(scale.double(), expected)
    plain = smoothing.output_error(states, weight, torch.int8, largest.max())
    smooth = smoothing.output_error(states / scale, weight * scale, torch.int8, (largest / scale).max())
    assert smooth < plain / 2
    nothing = torch.zeros(2, 96)
    assert smoothing.output_error(nothing, weight, torch.int8, None) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    """The general texts of the demo, tokenized."""
    folder = tmp_path_factory.mktemp("prepared")
    for split, source, count in (("calibration", "calibration", 60), ("test", "test", 40), ("few", "calibration", 6)):
        documents = (ROOT / f"assets/text/general/{source}.txt").read_text().split("\n\n")[:count]
        table = pyarrow.table(tokens.encode(documents, tokenizer), schema=tokens.SCHEMA)
        with (
            pyarrow.OSFile(str(folder / f"{split}.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, tokens.SCHEMA) as out,
        ):
            out.write_table(table)
    return folder


def perplexity(folder: Path, data: Path, out: Path) -> float:
    recipe = Perplexity(kind="perplexity", dataset="general", split="test", length=128, batch_size=4, max_windows=8)
    out.mkdir(exist_ok=True)
    return recipe.evaluate(loading.LoadedVariant([folder]), data, out)["token_perplexity"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    """The embedded model by every method: folders, perplexities and facts."""
    place = tmp_path_factory.mktemp("made")
    found, facts = {"full": perplexity(PARENT, data, place / "out")}, {}
    for name in ALL:
        (place / name).mkdir()
        recipe = recipe_of(name)
        facts[name] = recipe.quantize(PARENT, place / name, data, 0)
        facts[name] |= recipe.check(PARENT, place / name)
        found[name] = perplexity(place / name, data, place / "out")
    return place, found, facts


def test_perplexity_hardly_changes(made):
    _, found, facts = made
    for name in ALL:
        assert found[name] / found["full"] == pytest.approx(1, abs=0.004 if "static" not in name else 0.03), name
        assert found[name] != found["full"]
        assert facts[name]["layers_quantized"] == 24 and 8 < facts[name]["bits_per_weight"] < 8.2


@pytest.mark.parametrize("name", ["fp8", "fp8-weights", "int8-static", "smoothquant"])
def test_errors_of_layers_are_small(made, data, name):
    place, _, facts = made
    recipe, own = recipe_of(name), facts[name].get("output_errors")
    guarded = quality.guard(recipe, PARENT, place / name, data, 0, own)
    assert guarded["warnings"] == []
    largest = max(guarded["largest_output_errors"].values())
    assert recipe.usual_error() / 20 < largest < recipe.usual_error()
    if own:
        assert len(own) == 24 and max(own.values()) < recipe.usual_error()


@pytest.mark.parametrize("name", ALL)
def test_compressed_tensors_itself_reads_the_same_weights(made, name):
    """Its layers round inputs too; int8 in steps of the largest magnitude / 127.5 instead of / 127."""
    place, _, _ = made
    settings = json.loads((place / name / "config.json").read_text())["quantization_config"]
    assert settings["format"] == ("float-quantized" if "fp8" in name else "int-quantized")
    QuantizationConfig.model_validate({key: settings[key] for key in ("config_groups", "format", "ignore")})
    options = {"dtype": torch.float32, "quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(place / name, **options).eval()
    ours = loading.model([place / name], "float32")
    layers = {part: layer for part, layer in ours.named_modules() if isinstance(layer, EightBitLinear)}
    assert len(layers) == 24
    for part, layer in layers.items():
        other = theirs.get_submodule(part)
        assert torch.equal(layer.weight, other.weight)
        states = torch.randn(1, 6, layer.in_features, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mine, found = layer(states), other(states)
        assert (mine - found).norm() <= (1e-3 if "int8" not in name and "smooth" not in name else 0.02) * found.norm()


@pytest.mark.parametrize("name", ALL)
def test_memory_holds_what_is_on_disk_and_what_is_estimated(made, name):
    place, _, _ = made
    model = loading.model([place / name], "float16")
    written = sum(path.stat().st_size for path in (place / name).glob("*.safetensors"))
    probes.probe_logits(model)
    assert tensor_bytes(model) == pytest.approx(written, rel=0.02)
    config = json.loads((PARENT / "config.json").read_text())
    estimated = memory.weights(architecture.read(config), "float16", recipe_of(name))
    assert estimated == pytest.approx(tensor_bytes(model), rel=0.01)
    estimate = memory.inference(config, [recipe_of(name)], Inference("float16", batch=1, length=64))
    assert estimate.terms["weights"] == estimated
    assert memory.quantizing(config, recipe_of(name), "float32").total > 0


@pytest.mark.parametrize(
    ("name", "part", "damage", "message"),
    [
        ("fp8", "weight", lambda value: torch.full_like(value.float(), torch.nan).to(value.dtype), "NaN or infinity"),
        ("fp8", "weight", lambda value: value.float(), "is float32, not float8_e4m3fn"),
        ("int8-dynamic", "weight_scale", lambda value: value[:-1].clone(), "has shape"),
        ("int8-static", "input_scale", lambda value: None, "'input_scale' is missing"),
    ],
)
def test_the_structural_check_names_the_broken_layer(made, tmp_path, name, part, damage, message):
    place, _, _ = made
    tensors = load_file(place / name / "model.safetensors")
    changed = damage(tensors.pop(f"{LAYER}.{part}"))
    tensors |= {} if changed is None else {f"{LAYER}.{part}": changed}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match=message) as error:
        recipe_of(name).check(PARENT, tmp_path)
    assert LAYER in str(error.value)


@pytest.mark.parametrize(("name", "rows"), [("fp8", 1), ("int8-static", 3)])
def test_a_compiled_layer_is_one_graph_with_the_same_result(made, name, rows):
    layer = loading.model([made[0] / name], "float32").model.decoder.layers[0].fc1
    require_one_graph(layer, rows)


def test_gradients_pass_the_rounding_of_inputs(made):
    layer = loading.model([made[0] / "fp8"], "float32").model.decoder.layers[0].fc1
    states = torch.randn(4, layer.in_features, requires_grad=True)
    slope = torch.randn(4, layer.out_features)
    out = layer(states)
    out.backward(slope)
    assert torch.allclose(states.grad, slope @ layer.weight)
    assert torch.equal(out, layer.product(states))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(states).dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["fp8"])
def test_an_adapter_learns_on_the_rounded_base(made, data, tmp_path, name):
    recipe = LoRA(method="lora", dataset="general", steps=12, length=64, batch_size=2, learning_rate=0.003, bias="all")
    examples = read(data, "few", made[0] / name, 64)
    model = loading.model([made[0] / name], "float32")
    model.config.use_cache = False
    model = recipe.prepare(model, 0)
    with loss.fused(model):
        before = loop.mean_loss(model, examples, recipe)
        loop.train(model, recipe, 0, examples, None, tmp_path, tmp_path)
        assert loop.mean_loss(model, examples, recipe) < before - 0.05


@pytest.mark.parametrize("name", ["fp8", "smoothquant-static"])
def test_whisper_is_quantized_in_encoder_and_decoder(tmp_path, prepared, name):
    keys = {"dataset": "talk", "split": "train", "samples": 4} if "dataset" in ALL[name] else {}
    recipe = recipe_of(name, **keys)
    facts = recipe.quantize(WHISPER, tmp_path, prepared if keys else None, 0)
    assert recipe.check(WHISPER, tmp_path)["layers_quantized"] == 32
    own = facts.get("output_errors") if recipe.rescales else None
    result = quality.measure(WHISPER, tmp_path, quality.probe_inputs(WHISPER)[1], own)
    assert max(result.errors.values()) < recipe.usual_error()
    assert result.after < result.before + 0.15


def test_layers_outside_the_decoder_layers_have_dynamic_inputs_only(tmp_path, data):
    narrow_embeddings(tmp_path / "parent")
    for name in ("smoothquant", "int8-static"):
        (tmp_path / name).mkdir()
    recipe_of("smoothquant").quantize(tmp_path / "parent", tmp_path / "smoothquant", data, 0)
    assert recipe_of("smoothquant").check(tmp_path / "parent", tmp_path / "smoothquant")["layers_quantized"] == 8
    shape = json.loads((tmp_path / "parent/config.json").read_text())
    assert "'project_in', outside of the decoder layers" in recipe_of("int8-static").unsuitable(shape)
    assert recipe_of("smoothquant").unsuitable(shape) is None
    with pytest.raises(QuantuneError, match=r"inputs of 'model\.decoder\.project_.*' are not calibrated"):
        recipe_of("int8-static").quantize(tmp_path / "parent", tmp_path / "int8-static", data, 0)


A100, H100 = ("NVIDIA A100-SXM4-80GB", (8, 0)), ("NVIDIA H100 80GB HBM3", (9, 0))
OLD = r"NVIDIA A100-SXM4-80GB cannot multiply FP8: its compute capability is 8\.0.*take 'activations: none'"


def test_an_older_gpu_is_refused_before_any_job(raw, monkeypatch):
    raw["quantizations"]["fp8"] = {"method": "fp8"}
    raw["variants"] = ["opt+fp8"]
    monkeypatch.setattr(hardware, "weakest_gpu", lambda: A100)
    with pytest.raises(ConfigError, match=rf"quantizations\.fp8\.activations: {OLD}"):
        load.load(raw)
    monkeypatch.setattr(hardware, "weakest_gpu", lambda: H100)
    load.load(raw)
    monkeypatch.setattr(hardware, "weakest_gpu", lambda: A100)
    raw["quantizations"]["fp8"]["activations"] = "none"
    load.load(raw)


def test_an_older_gpu_is_refused_in_the_job(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100[1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: A100[0])
    with pytest.raises(QuantuneError, match=OLD):
        eight_bit_linear.require_fp8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    eight_bit_linear.require_fp8(torch.device("cuda"))


def test_the_weakest_gpu_is_that_of_the_lowest_compute_capability(monkeypatch):
    used = ({"uuid": "a", "name": "L4"}, {"uuid": "b", "name": "A10"})
    answers = [
        {"uuid": "c", "capability": "7.0"},
        {"uuid": "a", "capability": "8.9"},
        {"uuid": "b", "capability": "8.6"},
    ]
    monkeypatch.setattr(hardware, "gpus", lambda: used)
    monkeypatch.setattr(hardware, "_listed", lambda fields: answers)
    for found, expected in ((answers, ("A10", (8, 6))), ([{"uuid": "a", "capability": "[N/A]"}], None), ([], None)):
        monkeypatch.setattr(hardware, "_listed", lambda fields, found=found: found)
        hardware.weakest_gpu.cache_clear()
        assert hardware.weakest_gpu() == expected
    hardware.weakest_gpu.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "smoothquant-static"])
@pytest.mark.parametrize("family", zoo.MODELS)
def test_every_architecture_is_quantized_or_refused(tmp_path, data, prepared, family, name):
    parent = zoo.build(family, tmp_path / family)
    shape = json.loads((parent / "config.json").read_text())
    speech = loading.is_speech(parent)
    keys = {"length": 32, "samples": 4} if "dataset" in ALL[name] else {}
    recipe = recipe_of(name, **keys | ({"split": "train"} if keys and speech else {}))
    (tmp_path / "out").mkdir()
    if problem := recipe.unsuitable(shape):
        assert "cannot be quantized" in problem or (family.startswith("opt") and "are not calibrated" in problem)
        return
    layers = checkpoints.linear_layers(parent)
    facts = recipe.quantize(parent, tmp_path / "out", prepared if speech else data, 0)
    assert recipe.check(parent, tmp_path / "out")["layers_quantized"] == len(layers)
    errors = facts.get("output_errors") or {}
    assert max(errors.values(), default=0) < recipe.usual_error()
    change = probes.relative_distance(
        *(probes.probe_logits(loading.model([folder], "float32")) for folder in (tmp_path / "out", parent))
    )
    assert 0 < change < 0.2
