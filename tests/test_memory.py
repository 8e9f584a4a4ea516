"""The estimates against what they predict: transformers' models, files on disk, and the tensors that autograd keeps."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from pydantic import TypeAdapter
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, WhisperForConditionalGeneration

from quantune.artefacts.record import by_role
from quantune.core import units
from quantune.core.errors import QuantuneError
from quantune.core.workload import Inference
from quantune.data.batches import BATCH_TOKENS
from quantune.finetunings.lora import LoRA
from quantune.finetunings.training import checkpointing, loss, precision
from quantune.models import architecture, decoding, loading, offloading
from quantune.planning import costs, memory, resources
from quantune.planning.activations import Pass
from quantune.planning.config import AnyFinetuning, AnyQuantization, Config
from quantune.planning.plan import Plan
from quantune.quantizations import methods
from quantune.quantizations.arithmetic import layerwise, quality
from tests.conftest import OPT, ROOT

METHODS = {recipe.model_fields["method"].annotation.__args__[0]: recipe for recipe in methods()}
OPT_SIZES = {"vocab_size": 50272, "max_position_embeddings": 2048, "model_type": "opt"}


def opt(width: int, layers: int, heads: int, **more) -> dict:
    sizes = {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return OPT_SIZES | sizes | {"word_embed_proj_dim": width} | more


def llama(family: str, vocabulary: int, width: int, inner: int, layers: int, heads: int, **more) -> dict:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


MODELS = {
    "opt-125m": opt(768, 12, 12),
    "opt-350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": opt(2048, 24, 32),
    "opt-2.7b": opt(2560, 32, 32),
    "opt-6.7b": opt(4096, 32, 32),
    "llama-2-7b": llama("llama", 32000, 4096, 11008, 32, 32),
    "mistral-7b": llama("mistral", 32000, 4096, 14336, 32, 32, num_key_value_heads=8),
    "qwen2-0.5b": llama("qwen2", 151936, 896, 4864, 24, 14, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": llama("qwen3", 151936, 1024, 3072, 2, 16, num_key_value_heads=8, head_dim=128),
    "whisper-large-v2": {
        "model_type": "whisper",
        "vocab_size": 51865,
        "d_model": 1280,
        **{f"{part}_layers": 32 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 20 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 5120 for part in ("encoder", "decoder")},
    },
}
CALIBRATED = {"dataset": "any", "samples": 128, "length": 2048}
SMALL = {
    "opt": opt(256, 3, 4, vocab_size=512, max_position_embeddings=128, dropout=0.0),
    "llama": llama("llama", 512, 256, 704, 3, 4, max_position_embeddings=128),
    "grouped": llama("llama", 512, 256, 704, 3, 4, num_key_value_heads=2, max_position_embeddings=128),
}


def lora(**keys) -> LoRA:
    return LoRA(**{"method": "lora", "dataset": "any", "steps": 1, "batch_size": 4, "length": 128} | keys)


def built(config: dict, **options):
    config = AutoConfig.for_model(**config)
    speech = config.model_type == "whisper"
    return WhisperForConditionalGeneration(config) if speech else AutoModelForCausalLM.from_config(config, **options)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_exactly(name):
    with torch.device("meta"):
        model = built(MODELS[name])
    found = architecture.read(MODELS[name]).parameters()
    assert sum(found.values()) == model.num_parameters()
    head = model.get_output_embeddings()
    linears = [item for item in model.modules() if isinstance(item, torch.nn.Linear) and item is not head]
    assert found["linears"] == sum(item.weight.numel() for item in linears)
    assert found["biases"] == sum(item.bias.numel() for item in linears if item.bias is not None)
    assert found["norms"] == sum(value.numel() for key, value in model.named_parameters() if "norm" in key)


def test_published_counts():
    assert sum(architecture.read(MODELS["opt-6.7b"]).parameters().values()) == 6_658_473_984
    assert lora(rank=16).trained(architecture.read(MODELS["opt-6.7b"])) == 8_388_608
    assert lora(rank=32).trained(architecture.read(MODELS["whisper-large-v2"])) == 15_728_640


def test_adapters_are_counted_as_peft_makes_them():
    for targets in (["q_proj", "v_proj"], "all-linear"):
        recipe = lora(rank=3, target_modules=targets)
        model = recipe.prepare(built(SMALL["grouped"]), 0)
        assert recipe.trained(architecture.read(SMALL["grouped"])) == model.get_nb_trainable_parameters()[0]


def test_an_unknown_family_is_named():
    with pytest.raises(QuantuneError, match="type 'mamba' is not known; known: opt, llama"):
        architecture.read({"model_type": "mamba"})
    with pytest.raises(QuantuneError, match="'opt' has no 'vocab_size'"):
        architecture.read({"model_type": "opt", "hidden_size": 8})


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "rtn", "bits": 4, "group_size": 32},
        {"method": "rtn", "bits": 3, "group_size": 128, "symmetric": False},
        {"method": "rtn", "bits": 8, "group_size": None},
        {"method": "int8"},
        {"method": "nf4"},
        {"method": "nf4", "double_quantization": True},
    ],
    ids=str,
)
def test_packed_checkpoints_have_the_bytes_that_are_predicted(keys, tmp_path):
    recipe = METHODS[keys["method"]](**keys)
    recipe.quantize(OPT, tmp_path)
    shape = architecture.read(json.loads((OPT / "config.json").read_text()))
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert memory.weights(shape, "float16", recipe) == pytest.approx(written, rel=0.01)


def test_double_quantization_saves_what_qlora_says():
    shape = architecture.read(MODELS["opt-6.7b"])
    plain, double = (
        memory.weights(shape, "float16", METHODS["nf4"](method="nf4", double_quantization=on)) for on in (False, True)
    )
    assert 8 * (plain - double) / shape.parameters()["linears"] == pytest.approx(0.37, abs=0.01)


def test_opt_67b_in_half_precision_takes_what_was_published():
    assert memory.weights(architecture.read(MODELS["opt-6.7b"]), "float16") == pytest.approx(13.5e9, rel=0.02)


@pytest.mark.parametrize("name", ["opt", "grouped"])
def test_the_cache_has_the_bytes_that_are_predicted(name):
    model, cache = built(SMALL[name]).eval(), DynamicCache()
    with torch.no_grad():
        model(torch.ones(3, 40, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
    assert Pass(architecture.read(SMALL[name]), 3, 40, "float32").cache() == held


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "keys",
    [{}, {"target_modules": "all-linear"}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_training_keeps_the_tensors_that_are_predicted(name, dtype, keys):
    recipe = lora(precision=dtype, **keys)
    estimate = memory.training(SMALL[name], [], recipe)
    states = Pass(architecture.read(SMALL[name]), 4, 128, dtype).hidden(architecture.read(SMALL[name]).decoder)
    predicted = estimate.terms["activations"] + states  # the loss keeps the gradient of the last hidden states
    assert predicted == pytest.approx(kept_for_backward(SMALL[name], recipe), rel=0.02)


@pytest.mark.parametrize("keys", [{}, {"target_modules": "all-linear"}], ids=str)
@pytest.mark.parametrize("base", ["opt", "llama", "nf4", "rtn"])
def test_training_in_float16_keeps_the_tensors_that_are_predicted(base, keys, tmp_path):
    """The model is not quantized, or its weights that are not packed are float32."""
    recipe, steps, model = lora(precision="float16", length=64, **keys), [], None
    config = SMALL.get(base) or json.loads((OPT / "config.json").read_text())
    if base in METHODS:
        steps = [METHODS[base](method=base)]
        steps[0].quantize(OPT, tmp_path)
        model = loading.model([tmp_path], precision.loaded_dtype(recipe, quantized=True))
    estimate, shape = memory.training(config, steps, recipe), architecture.read(config)
    last = Pass(shape, 4, 64, "float32").hidden(shape.decoder)  # the last norm returns float32
    predicted = estimate.terms["activations"] + last
    assert predicted == pytest.approx(kept_for_backward(config, recipe, model), rel=0.01)


def kept_for_backward(config: dict, recipe: LoRA, model=None) -> int:
    """Return the bytes of all that autograd keeps in one forward pass, the model's own tensors left out."""
    model = recipe.prepare(model or built(config, dtype=getattr(torch, recipe.precision)), 0).train()
    model.config.use_cache = False
    precision.prepare(model, recipe)
    for module in model.modules() if recipe.mixed else ():
        if type(module) is torch.nn.LayerNorm:  # as torch.autocast does on a GPU
            module.register_forward_pre_hook(lambda _, states: (states[0].float(),))
    checkpointing.enable(model, recipe)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(config["vocab_size"], (recipe.batch_size, recipe.length))
    hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
    with loss.fused(model), hooks, precision.computing(model, recipe):
        model(input_ids=tokens, labels=tokens)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("keys", [{}, {"target_modules": "all-linear", "precision": "bfloat16"}], ids=str)
def test_the_peak_of_a_training_step_is_predicted(name, keys):
    config, recipe = SMALL[name] | {"vocab_size": 4096}, lora(**keys)
    model = built(config, dtype=getattr(torch, recipe.precision))
    assert without_weights(memory.training(config, [], recipe)) == pytest.approx(
        peak_of_training(model, recipe), rel=0.03
    )


@pytest.mark.parametrize(
    "keys", [{"method": "nf4", "double_quantization": True}, {"method": "int8"}, {"method": "rtn"}], ids=str
)
def test_the_peak_of_training_on_packed_weights_is_predicted(keys, tmp_path):
    base, recipe = METHODS[keys["method"]](**keys), lora(length=64, precision="bfloat16")
    base.quantize(OPT, tmp_path)
    estimate = memory.training(json.loads((OPT / "config.json").read_text()), [base], recipe)
    model = loading.model([tmp_path], recipe.precision)
    assert without_weights(estimate) == pytest.approx(peak_of_training(model, recipe), rel=0.03)


def without_weights(estimate: memory.Estimate) -> int:
    return sum(estimate.terms.get(name, 0) for name in ("gradients", "activations", "loss", "one layer"))


def peak_of_training(model, recipe: LoRA) -> int:
    """Return the most bytes allocated at once in the second step of training."""
    model = recipe.prepare(model, 0).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad])
    tokens = torch.randint(3, model.config.vocab_size, (recipe.batch_size, recipe.length))

    def step():
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    precision.prepare(model, recipe)
    with loss.fused(model):
        step()
        return peak(step)


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize("vocabulary", [64, 8192])
def test_the_peak_of_inference_is_predicted(name, vocabulary):
    config = SMALL[name] | {"vocab_size": vocabulary}
    model = built(config).eval()
    tokens = torch.randint(3, vocabulary, (4, 128))

    @torch.no_grad()
    def forward():
        model(input_ids=tokens, use_cache=False)

    forward()
    terms = memory.inference(config, [], Inference("float32", 4, 128)).terms
    assert terms.get("logits", terms.get("one layer")) == pytest.approx(peak(forward), rel=0.05)


@pytest.mark.parametrize(("frames", "layers", "most"), [(1500, 1, "one layer"), (300, 6, "cache")])
def test_the_peak_of_transcribing_is_predicted(frames, layers, most):
    sizes = {"d_model": 128, "vocab_size": 512, "max_source_positions": frames}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": layers, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 512}
    config = {"model_type": "whisper", **sizes, **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)}
    model = built(config).eval()
    windows = decoding.Windows(torch.randn(2, 80, 2 * frames), torch.ones(2, 4, dtype=torch.long))
    terms = memory.inference(config, [], Inference("float32", 2, 12, cache=True, logits=1)).terms
    assert max((name for name in terms if name not in ("weights", "workspace")), key=terms.get) == most

    @torch.no_grad()
    def transcribe():
        decoding.decode(decoding.Eager(model, windows, 8), 8)

    transcribe()
    predicted = sum(terms.values()) - terms["weights"] - terms["workspace"]
    assert predicted == pytest.approx(peak(transcribe), rel=0.1)


def peak(function) -> int:
    """Return the most bytes allocated at once while a function runs."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what other tests left would be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_an_estimate_shows_its_terms():
    shown = str(memory.training(MODELS["opt-1.3b"], [METHODS["nf4"](method="nf4")], lora(precision="bfloat16")))
    assert "MB (weights " in shown and "optimizer " in shown and "activations " in shown


def test_estimating_needs_no_torch():
    program = "import sys; from quantune.planning import costs, memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_every_job_that_loads_a_model_has_an_estimate(raw):
    plan = Plan(Config.model_validate(raw))
    found = costs.of_plan(plan)
    assert {item.artefact.path for item in found} >= {f"{plan.work}/checkpoints/opt+nf4+lora", f"{plan.work}/report"}
    for item in found:
        loads = item.artefact.stage.split("/")[0] in ("quantize", "train", "merge", "evaluate")
        reads_data = item.artefact.stage in resources.DATA
        assert (item.device is not None) == loads
        assert (item.host is not None) == (loads or reads_data)
        assert item.seconds is None
    paths = [item.artefact.path for item in found]
    for item in found:
        parents = [parent for made_from in by_role(item.artefact.parents).values() for parent in made_from]
        assert all(paths.index(parent.path) < paths.index(item.artefact.path) for parent in parents)


def test_a_model_of_an_unknown_shape_is_planned_by_its_weights(raw, write_model):
    raw["models"]["opt"]["path"] = write_model("odd", {"model_type": "mamba"})
    plan = Plan(Config.model_validate(raw))
    for item in costs.of_plan(plan):
        assert item.device is None
        assert item.host is None or item.host >= resources.PYTHON_BYTES


def test_the_times_are_those_of_earlier_runs_alike(raw):
    plan = Plan(Config.model_validate(raw))
    wanted = plan.checkpoint("opt+rtn-w4")

    def run(name: str, seconds: float, cpu: str = "this", **more) -> dict:
        path = f"{plan.work}/checkpoints/{name}"
        return {"stage": wanted.stage, "path": path, "seconds": seconds, "hardware": {"cpu": cpu, **more}}

    here = {"cpu": "this", "gpu": None}
    other = [run("opt+rtn-w4", 1, cpu="other"), run("opt+rtn-w4", 2, gpu="some"), run("big+rtn-w4", 3)]

    def expected(*past: dict) -> float | None:
        return costs.seconds(wanted, costs.times_of(past, here, plan.work))

    assert expected(*other) is None
    sibling = run("opt+rtn-w8", 8)
    assert expected(*other, sibling) == 8
    same_step = [run("opt+lora+merge+rtn-w4", 10), run("opt+lora@2+merge+rtn-w4", 20)]
    assert expected(*other, sibling, *same_step) == 15
    assert expected(*other, sibling, *same_step, run("opt+rtn-w4", 7)) == 7


def test_units_are_for_reading():
    assert [units.size(value) for value in (None, 900, 1_500_000, 13_500_000_000)] == [
        "–",
        "900 bytes",
        "1.50 MB",
        "13.5 GB",
    ]
    assert [units.duration(value) for value in (None, 5.4, 90, 3900)] == ["–", "5.4 s", "1 min 30 s", "1 h 05 min"]


def test_the_plan_is_printed_and_nothing_is_made(project):
    assert "Everything is current" in project.run("plan", "--cores", "1", "--quiet", "all")
    project.change(quantizations={"rtn-a": {"bits": 4}})
    printed = project.run("plan", "--cores", "1", "--quiet", "all")
    made = [line.split()[0] for line in printed.splitlines() if line.startswith("work/")]
    assert made == [
        "work/checkpoints/opt+rtn-a",
        "work/evaluations/opt+rtn-a/log",
        "work/evaluations/opt+rtn-a/general",
        "work/report",
    ]
    assert "device memory" in printed and "4 in all" in printed and " 0 have none" in printed
    assert json.loads((project.work / "checkpoints/opt+rtn-a/provenance.json").read_text())["recipe"]["bits"] == 8


def test_a_trained_checkpoint_records_its_estimate(finished, monkeypatch):
    monkeypatch.chdir(finished.path)
    folder = finished.work / "checkpoints/opt+nf4+lora"
    provenance = {
        name: json.loads((folder.parent / name / "provenance.json").read_text()) for name in ("opt+nf4", folder.name)
    }
    base, adapter = (
        TypeAdapter(kind).validate_python(
            {key: value for key, value in provenance[name]["recipe"].items() if key != "seed"}
        )
        for kind, name in ((AnyQuantization, "opt+nf4"), (AnyFinetuning, folder.name))
    )
    config = json.loads((folder.parent / "opt/config.json").read_text())
    facts = provenance[folder.name]["facts"]
    assert facts["estimated_bytes"] == memory.training(config, [base], adapter).total


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    """The small OPT in a folder, in float16."""
    folder = tmp_path_factory.mktemp("opt")
    built(SMALL["opt"]).half().save_pretrained(folder)
    return folder


def mapped(*folders: Path) -> int:
    """Return the bytes that the profiler counts for the mapped files of models; on a GPU they are main memory."""
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(("samples", "term"), [(2, "fitting"), (32, "one layer")])
def test_the_peak_of_calibrating_is_predicted(on_disk, method, samples, term):
    recipe = METHODS[method](method=method, dataset="any", samples=samples, length=128)
    blocks = torch.from_numpy(numpy.random.default_rng(0).integers(3, 512, (samples, 128)))
    batches = [{"input_ids": part} for part in blocks.split(BATCH_TOKENS // 128)]

    def calibrate():
        model, grids = loading.streamed([on_disk], "float32"), {}

        def leave(name, layer):
            grids.clear()
            offloading.move(layer.modules(), "meta", torch.float16)

        transform, visit = recipe.visitors(model, grids, {})
        layerwise.stream(model, batches, visit, recipe.requantized, leave, transform=transform)

    estimate = memory.calibration(SMALL["opt"], recipe.workload(), "float32")
    assert term in estimate.terms
    expected = estimate.total - estimate.terms["workspace"]
    assert peak(calibrate) - mapped(on_disk) == pytest.approx(expected, rel=0.15)


def test_the_peak_of_comparing_two_models_is_predicted(on_disk, tmp_path):
    """The layers of both are used one at a time."""
    recipe = METHODS["rtn"](method="rtn")
    recipe.quantize(on_disk, tmp_path)
    inputs = [{"input_ids": torch.arange(3, 131)[None]}]
    estimate = memory.comparison(SMALL["opt"], recipe, 1, 128)
    measured = peak(lambda: quality.measure(on_disk, tmp_path, inputs)) - mapped(on_disk, tmp_path)
    assert measured == pytest.approx(estimate.total - estimate.terms["workspace"], rel=0.15)


def test_the_peak_of_quantizing_does_not_grow_with_the_layers():
    few, many = ({**MODELS["opt-6.7b"], "num_hidden_layers": layers} for layers in (2, 80))
    for name, keys in {"rtn": {}, "nf4": {}, "int8": {}, "gptq": CALIBRATED, "awq": CALIBRATED}.items():
        recipe = METHODS[name](method=name, **keys)
        peaks = [memory.quantizing(config, recipe, "float16").total for config in (few, many)]
        assert peaks[0] == peaks[1] < (12e9 if keys else 8e9)
