"""Models in GPTQ and AWQ format: each dialect is repacked to the bit, evaluated, trained upon; or refused in one line."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from quantune.core.errors import QuantuneError
from quantune.models import loading, stored
from quantune.models.packed_linear import PackedLinear
from tests.attack.test_model_folders import keys, model_job, planning_error, run_job, tensors  # noqa: F401 (fixture)
from tests.foreign import OPT, Layer, checkpoint

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


def packed_layers(folder, dtype: str) -> dict[str, PackedLinear]:
    model = loading.model([folder], dtype)
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("case", DIALECTS)
def test_a_dialect_is_repacked_to_the_bit(raw, tmp_path, model_job, case):  # noqa: F811
    settings, arguments = DIALECTS[case]
    layers = checkpoint(tmp_path / "source", settings, **arguments)
    made = run_job(model_job, raw, tmp_path / "source", tmp_path)
    for dtype in ("float32", "float16"):
        found = packed_layers(made, dtype)
        assert found.keys() == layers.keys()
        for name, layer in layers.items():
            assert np.array_equal(found[name].weight.numpy(), layer.dense(getattr(np, dtype))), (dtype, name)
    dense, source = load_file(OPT / "model.safetensors"), load_file(made / "model.safetensors")
    same = [name for name in dense if name in source]
    assert len(same) == len(dense) - len(layers) + ("lm_head" in layers)
    assert all(np.array_equal(source[name], dense[name]) for name in same)
    assert not list(made.glob("quant*_config.json"))
