"""Mixed precision by layer within a budget and by channel, and AWQ's scales with GPTQ's rounding."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantune.core.errors import QuantuneError
from quantune.models import architecture, checkpoints, layer_names, loading, probes
from quantune.planning import memory
from quantune.quantizations.arithmetic import gptq, sensitivity
from quantune.quantizations.arithmetic.grids import Grid, fit, snap
from quantune.quantizations.awq_gptq import ScaledSecondOrder
from quantune.quantizations.budget import Budget, choose, units
from quantune.quantizations.gptq import GPTQ
from quantune.quantizations.mixed_channels import MixedChannels
from quantune.quantizations.rtn import RoundToNearest
from tests.test_calibrated import calibrated, data, llama, perplexity, problem  # noqa: F401 (fixture)
from tests.test_quantizations import nearest

PARENT = Path(__file__).parent.parent / "assets/models/opt-2m"
LAYERS = "model.decoder.layers"
ORDERS = [
    {"activation_order": "groups"},
    {"activation_order": "groups", "clip": True},
    {"activation_order": "groups", "static_grids": True},
    {"activation_order": False, "static_grids": True, "clip": True},
    {"activation_order": False, "clip": True},
    {"activation_order": True, "clip": True},
]


def reference(weight, gram, grid, damping, activation_order, static_grids=False, clip=False):
    """GPTQ in float64 by elimination from the inverse Hessian, with the options of the recipe spelled out."""
    size, columns = grid.group_size, weight.shape[1]
    diagonal = gram.diagonal()
    order = list(range(columns))
    if activation_order is True:
        order.sort(key=lambda column: -diagonal[column])
    elif activation_order == "groups":
        groups = [order[first : first + size] for first in range(0, columns, size)]
        groups.sort(key=lambda group: -max(diagonal[column] for column in group))
        order = [column for group in groups for column in sorted(group, key=lambda column: -diagonal[column])]
    damped = gram + damping * diagonal.mean() * torch.eye(columns, dtype=gram.dtype)
    inverse, pivots, eliminations = torch.linalg.inv(damped), {}, {}
    for column in order:
        pivots[column], eliminations[column] = inverse[column, column], inverse[column] / inverse[column, column]
        inverse = inverse - inverse[:, column : column + 1] @ inverse[column : column + 1] / inverse[column, column]

    def grids(values, members):
        def loss(shrink):
            found = fit(values, Grid(grid.bits, None, grid.symmetric), shrink)
            return ((found.weight - values) ** 2 / torch.stack([pivots[column] for column in members])).sum(1), found

        tried = [loss(1 - 0.05 * step) for step in range(11 if clip else 1)]
        best = torch.stack([item[0] for item in tried]).argmin(0)
        pick = lambda name: torch.stack([getattr(item[1], name) for item in tried])[best, range(len(best))]  # noqa: E731
        return pick("scale"), pick("zero")

    result, known = weight.clone(), {}
    if static_grids or activation_order is True:
        for first in range(0, columns, size):
            known[first] = grids(weight[:, first : first + size], range(first, first + size))
    for place, column in enumerate(order):
        first = column // size * size
        if first not in known:
            members = order[place : place + size]
            known[first] = grids(result[:, members], members)
        scale, zero = known[first]
        rounded = snap(result[:, column : column + 1], scale, zero, grid)[:, 0]
        error = result[:, column] - rounded
        later = order[place + 1 :]
        result[:, later] -= error[:, None] * eliminations[column][later]
        result[:, column] = rounded
    return result


@pytest.mark.parametrize("keys", ORDERS, ids=str)
def test_orders_static_grids_and_clipping_follow_their_definitions(keys):
    grid = Grid(3, 8, False)
    weight, inputs = problem(5)
    gram = inputs.T @ inputs / len(inputs)
    found = gptq.gptq(weight, gram, grid, 0.01, **keys)
    assert torch.allclose(found.weight, reference(weight, gram, grid, 0.01, **keys), atol=1e-9)
    groups = found.weight.reshape(len(weight), -1, 8)
    assert torch.allclose(snap(groups, found.scale[..., None], found.zero[..., None], grid), groups, atol=1e-9)


def test_the_rounding_after_awq_is_gptq_of_scaled_weights_on_scaled_inputs():
    weight, inputs = problem(6, columns=64)
    gram, scale = inputs.T @ inputs / len(inputs), torch.rand(64, dtype=torch.float64) + 0.5
    recipe = calibrated(ScaledSecondOrder, method="awq-gptq", bits=3, symmetric=False, activation_order=False)
    layer = torch.nn.Linear(64, len(weight), bias=False)
    layer.weight.data = (weight * scale).float()
    (found,) = recipe.fit({"fc": layer}, (gram / scale / scale[:, None]).float()).values()
    expected = reference(weight * scale, gram / scale / scale[:, None], Grid(3, 32, False), 0.01, False)
    assert ((found.weight - expected).abs() < 1e-4).double().mean() > 0.7


@pytest.mark.parametrize("write", [None, llama])
def test_awq_and_gptq_together_go_through(tmp_path, data, write):  # noqa: F811
    parent = write(tmp_path / "parent") if write else PARENT
    recipe = calibrated(ScaledSecondOrder, method="awq-gptq", samples=16, bits=4)
    (tmp_path / "out").mkdir()
    facts = recipe.quantize(parent, tmp_path / "out", data, 0)
    assert recipe.check(parent, tmp_path / "out")["bits_per_weight"] == 4.5
    assert 0 < max(facts["output_errors"].values()) < recipe.usual_error()


def test_a_mapping_that_changes_the_function_is_refused_although_layers_are_requantized(tmp_path, data):  # noqa: F811
    part = [{"before": "input_layernorm", "layers": ["self_attn.q_proj"]}]
    recipe = calibrated(ScaledSecondOrder, method="awq-gptq", samples=8, mappings=part)
    (tmp_path / "out").mkdir()
    with pytest.raises(QuantuneError, match=r"read by self_attn\.k_proj, self_attn\.q_proj, self_attn\.v_proj; name"):
        recipe.quantize(llama(tmp_path / "llama"), tmp_path / "out", data, 0)


@pytest.mark.slow
def test_awq_and_gptq_together_beat_gptq_at_two_bits(tmp_path, data):  # noqa: F811
    found = {}
    for name, recipe in {
        "gptq": calibrated(GPTQ, bits=2, group_size=64, if_destroyed="warn"),
        "both": calibrated(ScaledSecondOrder, method="awq-gptq", bits=2, group_size=64, if_destroyed="warn"),
    }.items():
        (tmp_path / name).mkdir()
        recipe.quantize(PARENT, tmp_path / name, data, 0)
        found[name] = perplexity(tmp_path / name, data, tmp_path / "evaluation")
    assert found["both"] < found["gptq"]


def test_the_choice_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        damages = [
            dict(zip((2, 3, 4), sorted(torch.rand(3, generator=generator).tolist(), reverse=True), strict=True))
            for _ in range(5)
        ]
        weights = torch.randint(1, 9, (5,), generator=generator).tolist()
        sizes = [{bits: 12 * bits * count for bits in (2, 3, 4)} for count in weights]
        limit = int(12 * 2.9 * sum(weights))
        found = choose(damages, sizes, limit)
        possible = [
            item
            for item in itertools.product((2, 3, 4), repeat=5)
            if sum(size[bits] for size, bits in zip(sizes, item, strict=True)) <= limit
        ]
        total = lambda item: sum(damage[bits] for damage, bits in zip(damages, item, strict=True))  # noqa: B023, E731
        assert tuple(found) in possible and total(found) == pytest.approx(min(map(total, possible)))
    assert choose(damages, sizes, sum(size[2] for size in sizes)) == [2] * 5, "just enough for the fewest bits"


def test_layers_that_servers_join_get_the_same_bits():
    names = ["a.0.q_proj", "a.0.v_proj", "a.0.fc1", "a.1.q_proj", "a.1.gate_proj", "a.1.up_proj"]
    assert units(names) == [["a.0.q_proj", "a.0.v_proj"], ["a.0.fc1"], ["a.1.q_proj"], ["a.1.gate_proj", "a.1.up_proj"]]


@pytest.fixture(scope="module")
def within(tmp_path_factory, data):  # noqa: F811
    """A model within a budget, by GPTQ."""
    folder, budget = tmp_path_factory.mktemp("within"), {"bits_per_weight": 3.6, "choices": [2, 4]}
    keys = {"overrides": {"layers.0.fc1": {"bits": 8}}, "ignore": ["layers.3.fc2"]}
    recipe = calibrated(GPTQ, samples=2, budget=budget, **keys)
    return recipe, folder, recipe.quantize(PARENT, folder, data, 0)


def test_the_budget_is_kept_and_the_choice_recorded(within):
    recipe, folder, facts = within
    bits = facts["bits_of_layers"]
    assert set(bits.values()) == {2, 4} and len(bits) == 22
    assert f"{LAYERS}.0.fc1" not in bits and f"{LAYERS}.3.fc2" not in bits, "an override and a dense layer"
    assert all(
        bits[f"{LAYERS}.{index}.self_attn.q_proj"] == bits[f"{LAYERS}.{index}.self_attn.v_proj"] for index in range(4)
    )
    checked = recipe.check(PARENT, folder, facts)
    assert 3.3 < checked["bits_per_weight"] <= 3.6 and checked["layers_left_dense"] == [f"{LAYERS}.3.fc2"]
    with pytest.raises(QuantuneError, match="has shape"):
        recipe.check(PARENT, folder, facts | {"bits_of_layers": {name: 6 - width for name, width in bits.items()}})
    shape = architecture.read(json.loads((PARENT / "config.json").read_text()))
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 1 <= memory.weights(shape, "float16", recipe) / written < 1.15, "an estimate before the choice is known"


def test_the_damage_is_the_divergence_of_the_predictions():
    """Of one layer, rounded alone, against the definition in float64."""
    name, tokens = f"{LAYERS}.1.fc1", torch.tensor([[2, 30, 400, 5000, 60]])
    recipe = RoundToNearest(method="rtn", group_size=32)
    (found,) = sensitivity.nearest(PARENT, [{"input_ids": tokens}], [[name]], [2, 4], recipe._fits)
    model = loading.model([PARENT], "float32")
    with torch.no_grad():
        before = model(input_ids=tokens).logits.double().log_softmax(-1)
        layer = model.get_submodule(name)
        layer.weight.data = nearest(layer.weight.data, 2, 32, True).float()
        after = model(input_ids=tokens).logits.double().log_softmax(-1)
    expected = float((before.exp() * (before - after)).sum() / tokens.numel())
    assert found[2] == pytest.approx(expected, rel=1e-3) and 0 < found[4] < found[2]


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        (
            {"bits_per_weight": 2.4},
            "2 bits for every layer need more; allowed: at least 245760 bytes, or 2.5 bits per w",
        ),
        ({"bytes": 1000}, "allowed: at least 245760 bytes"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_before_any_job(budget, problem):
    shape = architecture.read(json.loads((PARENT / "config.json").read_text()))
    recipe = RoundToNearest(method="rtn", group_size=32, budget=budget)
    assert problem in recipe.mismatch(layer_names.shapes(shape))


def test_a_budget_has_one_limit():
    with pytest.raises(ValueError, match="give either 'bits_per_weight' or 'bytes'"):
        Budget(bits_per_weight=3, bytes=5)
    assert Budget(bytes=100).limit(10) == 800 and "budget" not in RoundToNearest(method="rtn").identity()


@pytest.mark.parametrize("by", ["activation", "weight", "random"])
def test_kept_channels_are_exact_and_the_others_rounded(tmp_path, data, by):  # noqa: F811
    recipe = calibrated(MixedChannels, method="mixed-channels", samples=8, bits=3, kept=0.03, by=by)
    recipe.quantize(PARENT, tmp_path, data, 5)
    facts = recipe.check(PARENT, tmp_path)
    tensors, original = load_file(tmp_path / "model.safetensors"), load_file(PARENT / "model.safetensors")
    name, loaded = f"{LAYERS}.1.fc1", loading.model([tmp_path], "float32")
    columns, weight = tensors[f"{name}.weight_kept_columns"], original[f"{name}.weight"]
    assert len(columns) == 4 == len(columns.unique()) and torch.equal(
        tensors[f"{name}.weight_kept"], weight[:, columns]
    )
    found = loaded.get_submodule(name).weight
    assert torch.equal(found[:, columns], weight[:, columns].float())
    others = torch.ones(128, dtype=torch.bool).index_fill(0, columns, False)
    expected, slack = nearest(weight, 3, 32, True), 2**-11 * float(weight.abs().max())
    assert ((found - weight).abs() <= (expected - weight).abs() + slack)[:, others].all()
    assert facts["bits_per_weight"] > 3.5 + 16 * 0.03
    if by == "weight":
        assert set(columns.tolist()) == set(weight.float().square().sum(0).topk(4).indices.tolist())
    if by == "activation":
        assert torch.equal(columns, tensors[f"{name}.weight_kept_columns"])
        keys = [tensors[f"{LAYERS}.1.self_attn.{part}_proj.weight_kept_columns"] for part in "qkv"]
        assert torch.equal(keys[0], keys[1]) and torch.equal(keys[1], keys[2]), "layers with one input keep the same"


def test_random_channels_follow_from_the_seed(tmp_path, data):  # noqa: F811
    columns = []
    for number, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = calibrated(MixedChannels, method="mixed-channels", samples=2, by="random")
        recipe.quantize(PARENT, folder, data, seed)
        columns.append(load_file(folder / "model.safetensors")[f"{LAYERS}.0.fc2.weight_kept_columns"])
    assert torch.equal(columns[0], columns[1]) and not torch.equal(columns[0], columns[2])


def test_a_lost_kept_channel_is_found(tmp_path, data):  # noqa: F811
    from safetensors.torch import save_file

    recipe = calibrated(MixedChannels, method="mixed-channels", samples=2)
    recipe.quantize(PARENT, tmp_path, data, 0)
    expected = probes.probe_logits(loading.model([tmp_path], "float32"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{LAYERS}.0.fc2.weight_kept"] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match="does not reload to the same model"):
        probes.require_identical_reload(expected, tmp_path, "float32")
    del tensors[f"{LAYERS}.0.fc2.weight_kept"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantuneError, match="'weight_kept' is missing"):
        recipe.check(PARENT, tmp_path)
    assert len(checkpoints.linear_layers(PARENT)) == 24
