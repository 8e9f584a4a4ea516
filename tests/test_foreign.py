"""Models in GPTQ and AWQ format: each dialect is repacked to the bit and trained upon, or refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from quantune.core.errors import ConfigError, QuantuneError
from quantune.finetunings.lora import LoRA
from quantune.models import loading, probes, stored
from quantune.models.foreign import dialects, repacking
from quantune.models.packed_linear import PackedLinear
from quantune.planning import load, resources
from quantune.planning.plan import Plan
from tests.attack.test_model_folders import (  # noqa: F401 (fixture)
    both,
    copy_of,
    keys,
    model_job,
    planning_error,
    run_job,
    sharded,
    tensors,
)
from tests.foreign import OPT, checkpoint

GPTQ, AWQ = {"quant_method": "gptq"}, {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
V2, ASYMMETRIC = {"checkpoint_format": "gptq_v2"}, {"sym": False}
DIALECTS = {
    "AutoGPTQ, 4 bits": (GPTQ | {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}, {}),
    "AutoGPTQ, 4 bits, asymmetric": (GPTQ | ASYMMETRIC | {"bits": 4, "group_size": 64}, {}),
    "AutoGPTQ, 2 bits, asymmetric": (GPTQ | ASYMMETRIC | {"bits": 2, "group_size": 32}, {}),
    "AutoGPTQ, 3 bits, asymmetric": (GPTQ | ASYMMETRIC | {"bits": 3, "group_size": 128}, {}),
    "AutoGPTQ, 8 bits, rows": (GPTQ | {"bits": 8, "group_size": -1}, {}),
    "AutoGPTQ, act order": (GPTQ | ASYMMETRIC | {"bits": 4, "group_size": 32, "desc_act": True}, {"order": True}),
    "AutoGPTQ, act order of rows": (GPTQ | {"bits": 4, "group_size": -1, "desc_act": True}, {"order": True}),
    "groups that do not divide": (GPTQ | ASYMMETRIC | {"bits": 4, "group_size": 96}, {}),
    "GPTQModel, v2, 3 bits, act order": (GPTQ | V2 | {"bits": 3, "group_size": 32, "desc_act": True}, {"order": True}),
    "GPTQModel, v2, 2 bits": (GPTQ | V2 | ASYMMETRIC | {"bits": 2, "group_size": 32}, {}),
    "GPTQModel, dynamic": (
        GPTQ | V2 | {"bits": 4, "group_size": 32, "dynamic": {"+:.*fc1.*": {"bits": 8}}},
        {"layer_bits": lambda name: 8 if "fc1" in name else None, "keep": "out_proj"},
    ),
    "GPTQModel, output embedding": (GPTQ | {"bits": 4, "group_size": 64, "lm_head": True}, {"head": True}),
    "AutoAWQ": (AWQ | {"group_size": 64}, {}),
    "AutoAWQ, symmetric": (AWQ | {"group_size": 128, "zero_point": False}, {}),
}
"""Name -> quantization_config of config.json, arguments of `checkpoint`."""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """opt-2m in GPTQ format, version 1, asymmetric, 4 bits in groups of 32."""
    folder = tmp_path_factory.mktemp("gptq") / "opt"
    checkpoint(folder, GPTQ | ASYMMETRIC | {"bits": 4, "group_size": 32})
    return folder


def repacked(source: Path, made: Path) -> Path:
    """Repack a model without the frame of its job; return the folder."""
    made.mkdir()
    dialect = dialects.read(stored.read_json(source / stored.CONFIG)["quantization_config"])
    files, _ = repacking.repack(sorted(source.iterdir()), made, dialect)
    for path in files:
        if path.parent != made:
            shutil.copyfile(path, made / path.name)
    return made


def packed_layers(model) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("case", DIALECTS)
def test_a_dialect_is_repacked_to_the_bit(tmp_path, case):
    settings, arguments = DIALECTS[case]
    layers = checkpoint(tmp_path / "source", settings, **arguments)
    made = repacked(tmp_path / "source", tmp_path / "made")
    packed = packed_layers(loading.model([made], "float32"))
    assert packed.keys() == layers.keys()
    for name, layer in layers.items():
        assert np.array_equal(packed[name].weight.numpy(), layer.dense()), name
        assert np.array_equal(packed[name].half().weight.numpy(), layer.dense(np.float16)), name
    dense, source = load_file(OPT / "model.safetensors"), load_file(made / "model.safetensors")
    same = [name for name in dense if name in source]
    assert len(same) == len(dense) - len(layers) + ("lm_head" in layers)
    assert all(np.array_equal(source[name], dense[name]) for name in same)


@pytest.mark.parametrize("case", ["AutoGPTQ, act order", "AutoAWQ"])
def test_a_repacked_model_computes_and_trains_as_the_dense_one(raw, tmp_path, model_job, case):  # noqa: F811
    settings, arguments = DIALECTS[case]
    layers = checkpoint(tmp_path / "source", settings, **arguments)
    (tmp_path / "source/quantize_config.json").write_text(json.dumps(settings))
    made = run_job(model_job, raw, tmp_path / "source", tmp_path)
    assert not list(made.glob("quant*_config.json"))
    if "order" not in arguments:
        transformed = AutoModelForCausalLM.from_pretrained(
            made, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
        assert all(
            np.array_equal(transformed.get_submodule(name).weight.detach(), layer.dense())
            for name, layer in layers.items()
        )
    else:  # transformers cannot compute with it, and does not try
        with pytest.raises(ValueError, match="actorder='group' has been removed"):
            AutoModelForCausalLM.from_pretrained(made)
    dense, packed = loading.model([OPT], "float32"), loading.model([made], "float32")
    with torch.no_grad():
        for name, layer in layers.items():
            dense.get_submodule(name).weight.copy_(torch.from_numpy(layer.dense()))
    tokens = probes.probe_tokens(12288)
    assert torch.equal(packed(tokens).logits, dense(tokens).logits)
    recipe, gradients = LoRA(method="lora", dataset="any", steps=1, target_modules=["q_proj", "fc2"]), []
    for model in (dense, packed):
        adapted = recipe.prepare(model, 0, None)
        adapted(tokens, labels=tokens).loss.backward()
        gradients.append([value.grad for value in adapted.parameters() if value.requires_grad])
    assert len(gradients[0]) == 16 and all(map(torch.equal, *gradients))


def test_shards_are_repacked_one_by_one(tmp_path):
    layers = checkpoint(tmp_path / "source", GPTQ | ASYMMETRIC | {"bits": 4, "group_size": 32})
    sharded()(tmp_path / "source")
    made = repacked(tmp_path / "source", tmp_path / "made")
    assert stored.tensors(made.iterdir()) and len(list(made.glob("model-0000?-of-00002.safetensors"))) == 2
    packed = packed_layers(loading.model([made], "float32"))
    assert all(np.array_equal(packed[name].weight.numpy(), layer.dense()) for name, layer in layers.items())


def test_zero_biases_that_the_model_does_not_have_are_left_out(tmp_path):
    checkpoint(tmp_path / "source", GPTQ)
    keys(enable_bias=False)(tmp_path / "source")
    with pytest.raises(QuantuneError, match=r"model.safetensors: '.*\.bias' is not zero, and the model in config.json"):
        repacked(tmp_path / "source", tmp_path / "refused")
    zero = {"bias": np.float16(0)}
    tensors(lambda found: {name: value * zero.get(name.rpartition(".")[2], 1) for name, value in found.items()})(
        tmp_path / "source"
    )
    made = repacked(tmp_path / "source", tmp_path / "made")
    assert all(layer.bias is None for layer in packed_layers(loading.model([made], "float32")).values())


FC1 = "model.decoder.layers.1.fc1"


def without_part(part: str):
    return tensors(lambda found: {name: value for name, value in found.items() if name != f"{FC1}.{part}"})


def changed(part: str, change):
    return tensors(lambda found: found | {f"{FC1}.{part}": change(found[f"{FC1}.{part}"])})


def settings(**values):
    return lambda folder: keys(
        quantization_config=stored.read_json(folder / stored.CONFIG)["quantization_config"] | values
    )(folder)


PLANNED = {
    "method": (
        settings(quant_method="hqq"),
        "quant_method 'hqq'); allowed: bitsandbytes, compressed-tensors, gptq, awq; give",
    ),
    "bits": (
        settings(bits=5),
        "'quantization_config' (gptq) has 'bits' 5; allowed: 2, 3, 4, 8; give the original model",
    ),
    "bits-text": (settings(bits="4"), "(gptq) has 'bits' '4'; allowed: 2, 3, 4, 8"),
    "group-size": (settings(group_size=0), "(gptq) has 'group_size' 0; allowed: a number above 0, or -1 for one group"),
    "sym": (settings(sym="yes"), "(gptq) has 'sym' 'yes'; allowed: true or false"),
    "marlin": (settings(checkpoint_format="marlin"), "has 'checkpoint_format' 'marlin'; allowed: gptq, gptq_v2; give"),
    "marlin-old": (settings(is_marlin_format=True), "has 'checkpoint_format' 'marlin'; allowed: gptq, gptq_v2; give"),
    "words": (settings(pack_dtype="int16"), "has 'pack_dtype' 'int16'; allowed: int32"),
    "awq-bits": (settings(quant_method="awq", bits=8), "(awq) has 'bits' 8; allowed: 4; give the original model"),
    "gemv": (settings(quant_method="awq", version="gemv"), "(awq) has 'version' 'gemv'; allowed: gemm; give the"),
    "no-layers": (
        tensors(lambda found: load_file(OPT / "model.safetensors")),
        "hold no tensor '*.qweight'; take config",
    ),
    "no-zeros": (without_part("qzeros"), f"'{FC1}.qweight' is there, and '{FC1}.qzeros' is missing; give the original"),
    "no-scales": (without_part("scales"), f"'{FC1}.scales' is missing; give the original model"),
    "no-weight": (without_part("qweight"), f"'{FC1}.qweight' is missing; give the original model"),
    "no-order": (
        both(settings(desc_act=True), without_part("g_idx")),
        f"'{FC1}.g_idx' is missing ('desc_act' is true)",
    ),
    "scaled-activation": (
        tensors(lambda found: found | {"model.decoder.layers.1.act.scales": np.ones((1, 512), np.float16)}),
        "'model.decoder.layers.1.act.qweight' is missing (AutoAWQ stores such scales for an activation, which is not",
    ),
    "dtype": (
        changed("qweight", lambda value: value.astype(np.int64)),
        f"'{FC1}.qweight' is I64 [16, 512]; allowed: I32",
    ),
    "dimensions": (
        changed("scales", lambda value: value[0]),
        f"'{FC1}.scales' is F16 [512]; allowed: F16, BF16, F32 of 2",
    ),
    "shape": (
        changed("qzeros", lambda value: value[:, :-1]),
        f"'{FC1}.qzeros' has the shape [4, 63]; allowed: [4, 64], for 4 bits and groups of 32, as 'quantization",
    ),
    "other-groups": (settings(group_size=64), "has the shape [4, 64]; allowed: [2, 64], for 4 bits and groups of 64"),
    "other-bits": (settings(bits=8), "has the shape [4, 64]; allowed: [2, 128], for 8 bits and groups of 32"),
    "other-format": (
        settings(quant_method="awq"),
        "has the shape [4, 64]; allowed: [1, 512], for 4 bits and groups of 32",
    ),
}


@pytest.mark.parametrize("case", PLANNED)
def test_a_broken_model_is_refused_before_any_job(raw, tmp_path, source, case):
    edit, message = PLANNED[case]
    folder = copy_of(source, tmp_path / "broken")
    edit(folder)
    (line,) = planning_error(raw, folder, tmp_path).splitlines()
    assert line.startswith("config: models.opt.path: ") and f"'{folder}'" in line and message in line
    assert len(line) < 700


COPIED = {
    "order": (changed("g_idx", lambda value: value + 1), f"'{FC1}.g_idx' names the group 4; allowed: 0 to 3; download"),
    "layer": (
        tensors(lambda found: {name.replace("layers.1.fc1", "layers.1.experts.0"): found[name] for name in found}),
        "'model.decoder.layers.1.experts.0' is quantized, and the model in config.json (model_type opt) has no linear",
    ),
    "width": (
        keys(ffn_dim=256),
        "has 128 inputs and 512 outputs, and in config.json 128 and 256; take config.json and",
    ),
    "not-finite": (changed("scales", lambda value: value * np.float16(np.inf)), "weight_scale' holds NaN or infinity"),
    "missing": (
        tensors(lambda found: {name: found[name] for name in found if not name.startswith(f"{FC1}.")}),
        f"2 are missing (first '{FC1}.bias')",
    ),
}


@pytest.mark.parametrize("case", COPIED)
def test_a_broken_model_is_refused_when_it_is_repacked(raw, tmp_path, model_job, source, case):  # noqa: F811
    edit, message = COPIED[case]
    folder = copy_of(source, tmp_path / "broken")
    edit(folder)
    with pytest.raises(QuantuneError) as caught:
        run_job(model_job, raw, folder, tmp_path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{folder}': ") and message in line and len(line) < 700


def test_act_order_needs_groups_that_divide_and_an_output_embedding_of_its_own(tmp_path):
    checkpoint(tmp_path / "odd", GPTQ | {"bits": 4, "group_size": 96, "desc_act": True}, order=True)
    with pytest.raises(QuantuneError, match="has groups of 96 in the order of activations, and 128 inputs, which 96"):
        repacked(tmp_path / "odd", tmp_path / "refused")
    checkpoint(tmp_path / "head", GPTQ | {"bits": 4, "group_size": 32}, head=True)
    keys(tie_word_embeddings=True)(tmp_path / "head")
    with pytest.raises(QuantuneError, match="'lm_head', the output embedding, is quantized, and 'tie_word_embeddings'"):
        repacked(tmp_path / "head", tmp_path / "tied")


def test_groups_that_do_not_fit_are_refused_when_a_checkpoint_is_loaded(tmp_path):
    checkpoint(tmp_path / "source", GPTQ | {"bits": 4, "group_size": 32, "desc_act": True}, order=True)
    made = repacked(tmp_path / "source", tmp_path / "made")
    name = f"{FC1}.weight_g_idx"
    tensors(lambda found: found | {name: found[name] + 1})(made)
    with pytest.raises(QuantuneError, match=rf"'{name}' does not fit the layer; allowed: a group from 0 to 3 for each"):
        loading.model([made], "float32")
    tensors(lambda found: {name: value for name, value in found.items() if not name.endswith("g_idx")})(made)
    with pytest.raises(QuantuneError, match=r"'actorder' in config\.json is group, and no layer has a 'weight_g_idx'"):
        loading.model([made], "float32")


@pytest.mark.parametrize("variant", ["opt+rtn-w4", "opt+lora+merge"])
def test_a_model_in_gptq_format_is_not_quantized_or_merged_into(raw, source, variant):
    raw["models"]["opt"]["path"] = str(source)
    raw["variants"] = [variant]
    with pytest.raises(ConfigError, match=r"'opt' is already quantized \(gptq, in its config.json\), and '"):
        load.load(raw)
    raw["variants"] = ["opt+lora"]
    assert [str(variant) for variant in load.load(raw).listed] == ["opt+lora"]


def test_memory_is_estimated_as_that_of_a_model_quantized_here(raw, source, tmp_path):
    """Also for the packed checkpoint that the job makes, which may be a model of another configuration."""
    made = repacked(source, tmp_path / "made")
    raw["quantizations"]["same"] = {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": False}
    raw["variants"] = ["opt+same+lora"]
    plan = Plan(load.load(raw))
    expected = [
        resources.estimate(plan, artefact).terms
        for artefact in (plan.evaluation("opt+same", "harbour"), plan.checkpoint("opt+same+lora"))
    ]
    raw["variants"] = ["opt+lora"]
    for folder in (source, made):
        raw["models"]["opt"]["path"] = str(folder)
        plan = Plan(load.load(raw))
        found = [
            resources.estimate(plan, artefact).terms
            for artefact in (plan.evaluation("opt", "harbour"), plan.checkpoint("opt+lora"))
        ]
        assert found == expected
