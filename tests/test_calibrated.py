"""GPTQ and AWQ: the arithmetic against the papers' equations in float64, and what they must achieve on a real model."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from quantune.core.errors import QuantuneError
from quantune.data import text, tokens
from quantune.evaluations.perplexity import Perplexity
from quantune.models import checkpoints, loading, probes
from quantune.quantizations import calibration
from quantune.quantizations.arithmetic import awq, gptq, layerwise, quality
from quantune.quantizations.arithmetic.grids import Grid, fit, snap
from quantune.quantizations.awq import AWQ, LLAMA, known_mappings
from quantune.quantizations.gptq import GPTQ
from quantune.quantizations.rtn import RoundToNearest
from quantune.sources.draw import order

ROOT = Path(__file__).parent.parent
PARENT = ROOT / "assets/models/opt-2m"
ODD = Grid(4, 48, True)  # groups that do not divide the block of columns
GRIDS = [Grid(4, 8, True), Grid(3, 8, False), Grid(2, 16, True), Grid(4, None, True), Grid(3, None, False)]


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    """The general texts of the demo, tokenized."""
    folder = tmp_path_factory.mktemp("prepared")
    for split in ("calibration", "test"):
        documents = (ROOT / f"assets/text/general/{split}.txt").read_text().split("\n\n")
        table = pyarrow.table(tokens.encode(documents, tokenizer), schema=tokens.SCHEMA)
        with (
            pyarrow.OSFile(str(folder / f"{split}.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, tokens.SCHEMA) as out,
        ):
            out.write_table(table)
    return folder


def calibrated(kind, **keys):
    usual = {"dataset": "general", "split": "calibration", "samples": 128, "length": 64, "group_size": 32}
    return kind(**{"method": kind.__name__.lower(), **usual, **keys})


def perplexity(folder: Path, data: Path, out: Path) -> float:
    recipe = Perplexity(kind="perplexity", dataset="general", split="test", length=128, batch_size=8, max_windows=72)
    out.mkdir(exist_ok=True)
    return recipe.evaluate(loading.LoadedVariant([folder]), data, out)["token_perplexity"]


def problem(seed: int, rows: int = 12, columns: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight matrix and correlated inputs, (tokens, columns), float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(400, columns, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), inputs


def optimal_brain_quantizer(weight, gram, grid, damping):
    """Equations 2 and 3 of the GPTQ paper, column by column in float64: no Cholesky factor, no blocks.

    After each column its row and column are eliminated from the inverse Hessian.
    """
    size = grid.group_size or weight.shape[1]
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    inverse, weight = torch.linalg.inv(damped), weight.clone()
    whole = fit(weight, grid) if grid.group_size is None else None
    for column in range(weight.shape[1]):
        if whole is None and column % size == 0:
            group = fit(weight[:, column : column + size], Grid(grid.bits, None, grid.symmetric))
        scale, zero = (whole or group).scale[:, 0], (whole or group).zero[:, 0]
        rounded = snap(weight[:, column], scale, zero, grid)
        error = (weight[:, column] - rounded) / inverse[column, column]
        later = slice(column + 1, None)
        weight[:, later] -= error[:, None] * inverse[column, later]
        weight[:, column] = rounded
        inverse = inverse - inverse[:, column : column + 1] @ inverse[column : column + 1] / inverse[column, column]
    return weight


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq_follows_the_papers_equations(grid):
    weight, inputs = problem(0)
    gram = inputs.T @ inputs / len(inputs)
    found = gptq.gptq(weight, gram, grid, 0.01, activation_order=False).weight
    expected = optimal_brain_quantizer(weight, gram, grid, 0.01)
    same = ((found - expected).abs() < 1e-9).all(1).double().mean()
    # on a symmetric grid the group's largest negative weight is midway between two codes: a last bit may tip it
    assert same == 1 if not grid.symmetric else same > 0.9
    single = gptq.gptq(weight.float(), gram.float(), grid, 0.01, activation_order=False).weight
    assert ((single - expected).abs() < 1e-4).double().mean() > 0.7, "float32 rounds most weights to the same points"


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("order", [False, True])
def test_gptq_changes_the_outputs_less_than_rounding(grid, order):
    for seed in range(3):
        weight, inputs = problem(seed)
        gram = inputs.T @ inputs / len(inputs)
        found = gptq.gptq(weight.float(), gram.float(), grid, 0.01, order)
        nearest = fit(weight.float(), grid).weight
        errors = [((item.double() - weight) @ inputs.T).norm() for item in (found.weight, nearest)]
        assert errors[0] < errors[1]
        groups = found.weight.reshape(len(weight), -1, grid.group_size or weight.shape[1])
        codes = groups / found.scale[..., None] + found.zero[..., None]
        assert (codes - codes.round()).abs().max() < 1e-3, "every weight is on the grid that is stored"


@pytest.mark.parametrize("grid", [ODD, Grid(3, 12, False), Grid(4, 96, True)], ids=str)
def test_gptq_cuts_no_group_in_two(grid):
    weight, inputs = problem(4, columns=192)
    found = gptq.gptq(weight, inputs.T @ inputs / len(inputs), grid, 0.01, activation_order=False)
    groups = found.weight.reshape(len(weight), -1, grid.group_size)
    assert torch.allclose(snap(groups, found.scale[..., None], found.zero[..., None], grid), groups, atol=1e-9)


def test_gptq_survives_inputs_that_are_never_used():
    weight, inputs = problem(0)
    inputs[:, 5] = 0
    found = gptq.gptq(weight.float(), (inputs.T @ inputs).float(), GRIDS[0], 0.01, True).weight
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_awq_scales_are_the_best_of_the_papers_search(grid):
    weight, inputs = problem(1)
    inputs[:, 3] *= 30
    gram, magnitude = inputs.T @ inputs / len(inputs), inputs.abs().mean(0)
    found = awq.best_scale([(weight.float(), grid)], layerwise.Inputs({}, gram.float(), magnitude.float()))

    def loss(scale):
        rounded = fit((weight * scale).float(), grid).weight.double() / scale
        return ((rounded - weight) @ inputs.T).square().mean()

    searched = []
    for step in range(20):
        scale = magnitude ** (step / 20)
        searched.append(loss(scale / (scale.max() * scale.min()).sqrt()))
    assert loss(found.double()) <= min(searched) * 1.001
    assert loss(found.double()) < loss(torch.ones_like(magnitude)), "a loud channel is worth a scale"


def test_clipping_never_changes_a_groups_own_outputs_more():
    weight, inputs = problem(2)
    grid, gram = Grid(3, 8, True), inputs.T @ inputs / len(inputs)
    clipped = awq.fit_clipped(weight.float(), gram.float(), grid, True).weight.double()
    plain = fit(weight.float(), grid).weight.double()
    for first in range(0, 32, 8):
        block = slice(first, first + 8)
        losses = [((item - weight)[:, block] @ inputs[:, block].T).square().sum(1) for item in (clipped, plain)]
        assert (losses[0] <= losses[1] * (1 + 1e-4)).all()


def llama(folder: Path) -> Path:
    """Write a small random Llama with grouped-query attention, and the demo's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, vocab_size=12288, eos_token_id=2)).save_pretrained(folder)
    checkpoints.copy_tokenizer(PARENT, folder)
    return folder


def gemma(folder: Path) -> Path:
    """Write a small random Gemma, whose norms multiply by 1 + weight, and the demo's tokenizer."""
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    model = GemmaForCausalLM(GemmaConfig(**shape, **heads, vocab_size=12288, eos_token_id=2))
    for name, value in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(folder)
    checkpoints.copy_tokenizer(PARENT, folder)
    return folder


@pytest.mark.parametrize("write", [None, llama, gemma])
def test_awq_leaves_the_full_precision_function_unchanged(tmp_path, data, write):
    model = loading.model([write(tmp_path) if write else PARENT], "float32")
    before, recipe = probes.probe_logits(model), calibrated(AWQ)
    batches, _ = calibration.draw(recipe, data, 0, PARENT)
    moved = []

    def visit(name, layer, inputs):
        scales = awq.rescale(name, layer, inputs, known_mappings(model.config), recipe.grid_of)
        moved.extend(scale for scale in scales.values() if not torch.allclose(scale, torch.ones_like(scale)))

    layerwise.stream(model, batches, lambda *_: None, requantized=False, transform=visit)
    assert moved, "some scale was moved"
    assert probes.relative_distance(probes.probe_logits(model), before) < 1e-4


@pytest.mark.parametrize("method", [GPTQ, AWQ])
def test_llama_like_models_are_quantized_too(tmp_path, data, method):
    parent, folder = llama(tmp_path / "llama"), tmp_path / "out"
    folder.mkdir()
    recipe = calibrated(method, samples=16, bits=4)
    facts = recipe.quantize(parent, folder, data, 0)
    assert recipe.check(parent, folder)["layers_quantized"] == 14
    own = facts["output_errors"] if recipe.rescales else None  # AWQ: layers of the result read scaled inputs
    errors = quality.measure(parent, folder, quality.probe_inputs(parent)[1], own).errors
    assert len(errors) == 14 and 0 < max(errors.values()) < recipe.usual_error()


def test_an_architecture_without_mappings_says_what_to_declare():
    from transformers import GPT2Config

    with pytest.raises(QuantuneError, match="declare them in the quantization's 'mappings'"):
        known_mappings(GPT2Config())
    assert LLAMA[0].before == "input_layernorm"


def test_a_mapping_that_would_change_the_function_is_refused(tmp_path, data):
    part = [{"before": "input_layernorm", "layers": ["self_attn.q_proj"]}]
    recipe = calibrated(AWQ, samples=8, mappings=part)
    (tmp_path / "out").mkdir()
    with pytest.raises(QuantuneError, match=r"read by self_attn\.k_proj, self_attn\.q_proj, self_attn\.v_proj; name"):
        recipe.quantize(llama(tmp_path / "llama"), tmp_path / "out", data, 0)


def test_a_mapping_through_what_is_not_linear_is_refused_and_the_layer_named(tmp_path, data):
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 128, "num_hidden_layers": 1}
    more = {"num_attention_heads": 4, "vocab_size": 12288, "eos_token_id": 2, "activation_function": "gelu"}
    model = OPTForCausalLM(OPTConfig(**shape, **more))
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight[:16] *= 50  # some of its outputs are worth a scale
    model.save_pretrained(tmp_path / "parent")
    checkpoints.copy_tokenizer(PARENT, tmp_path / "parent")
    (tmp_path / "out").mkdir()
    recipe = calibrated(AWQ, samples=8, mappings=[{"before": "fc1", "layers": ["fc2"]}])
    with pytest.raises(QuantuneError, match=r"changed the function of the layer 'model\.decoder\.layers\.0'"):
        recipe.quantize(tmp_path / "parent", tmp_path / "out", data, 0)


class Squared(torch.nn.LayerNorm):
    """Multiplies by the square of 2 + weight."""

    def forward(self, states):
        return torch.nn.functional.layer_norm(states, self.normalized_shape) * (2 + self.weight) ** 2


def test_a_norm_that_scales_cannot_be_moved_into_is_refused():
    assert awq._offset("norm", torch.nn.LayerNorm(16)) == 0
    with pytest.raises(QuantuneError, match=r"'layers\.0\.norm' multiplies neither by its weight nor by 1"):
        awq._offset("layers.0.norm", Squared(16))


def narrow_embeddings(folder):
    """Write an OPT with projections around its decoder layers, as OPT-350M, whose embeddings are narrower."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 128, "num_hidden_layers": 1}
    more = {"num_attention_heads": 4, "vocab_size": 12288, "do_layer_norm_before": False, "eos_token_id": 2}
    OPTForCausalLM(OPTConfig(**shape, **more)).save_pretrained(folder)
    checkpoints.copy_tokenizer(PARENT, folder)


def test_layers_outside_the_decoder_layers_are_rounded(tmp_path, data):
    narrow_embeddings(tmp_path / "parent")
    (tmp_path / "out").mkdir()
    recipe = calibrated(GPTQ, samples=8)
    recipe.quantize(tmp_path / "parent", tmp_path / "out", data, 0)
    assert recipe.check(tmp_path / "parent", tmp_path / "out")["layers_quantized"] == 8
    errors = quality.measure(tmp_path / "parent", tmp_path / "out", quality.probe_inputs(tmp_path / "parent")[1]).errors
    assert len(errors) == 8 and 0 < max(errors.values()) < recipe.usual_error()


def test_layers_with_the_same_input_share_their_statistics(data):
    model = loading.model([PARENT], "float32")
    blocks = torch.from_numpy(text.blocks(data, "calibration", 2, 64)[:8])
    seen = []
    layerwise.stream(model, [{"input_ids": blocks}], lambda name, layer, inputs: seen.append(inputs), requantized=False)
    parts = [sorted(part.rsplit(".", 1)[1] for part in group.layers) for group in seen[0]]
    assert parts == [["k_proj", "q_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]]
    caught = []
    hook = model.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        model(input_ids=blocks)
    hook.remove()
    states = caught[0].reshape(-1, 128).double()
    gram = states.T @ states / len(states)
    assert torch.allclose(seen[0][2].gram.double(), gram, atol=1e-4 * float(gram.abs().max()))


@pytest.mark.parametrize("sequential", [False, True])
def test_in_turn_layers_are_calibrated_on_what_earlier_ones_have_changed(data, sequential):
    model, seen = loading.model([PARENT], "float32"), {}
    batches = [{"input_ids": torch.from_numpy(text.blocks(data, "calibration", 2, 64)[:2])}]

    def silence(name, layer, inputs):
        for group in inputs:
            seen.update(dict.fromkeys(group.layers, group.magnitude))
            for linear in group.layers.values():
                linear.weight.data.zero_()
                linear.bias.data.zero_()

    layerwise.stream(model, batches, silence, requantized=True, sequential=sequential)
    assert len(seen) == len(checkpoints.quantizable(model))
    for part in ("self_attn.out_proj", "fc2"):  # they read what the layers before them give
        assert bool(seen[f"model.decoder.layers.0.{part}"].any()) is not sequential
    assert seen["model.decoder.layers.0.fc1"].any(), "reads the residual too"


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    """The embedded model at three and four bits, by every method."""
    place, found = tmp_path_factory.mktemp("made"), {"full": perplexity(PARENT, data, tmp_path_factory.mktemp("e"))}
    for bits in (3, 4):
        for recipe in (
            RoundToNearest(method="rtn", bits=bits, group_size=32),
            calibrated(GPTQ, bits=bits),
            calibrated(AWQ, bits=bits),
        ):
            folder = place / f"{recipe.method}-w{bits}"
            folder.mkdir()
            recipe.quantize(PARENT, folder, data, 0)
            recipe.check(PARENT, folder)
            found[folder.name] = perplexity(folder, data, place / "evaluation")
    return place, found


def test_calibration_is_worth_its_while(made):
    """The order of the papers' tables, on a real model: at three bits GPTQ closes half of the gap, AWQ some of it."""
    _, found = made
    assert found["full"] < found["gptq-w4"] <= found["rtn-w4"]
    assert found["gptq-w3"] - found["full"] <= 0.5 * (found["rtn-w3"] - found["full"])
    assert found["awq-w3"] < found["rtn-w3"]
    assert found["awq-w4"] < found["rtn-w4"]


@pytest.mark.parametrize("name", ["gptq-w3", "awq-w4"])
def test_saved_configs_pass_compressed_tensors_validation(made, name):
    """vLLM reads `quantization_config` through the same class."""
    config = json.loads((made[0] / name / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    parsed = QuantizationConfig.model_validate(config)
    (scheme,) = parsed.config_groups.values()
    assert (config["format"], scheme.weights.num_bits, scheme.weights.group_size) == (
        "pack-quantized",
        int(name[-1]),
        32,
    )
    assert parsed.ignore == ["lm_head"]


def test_the_draw_is_the_seeds_and_is_hashed(data):
    recipe = calibrated(GPTQ, samples=20)
    first, facts = calibration.draw(recipe, data, 0, PARENT)
    again, same = calibration.draw(recipe, data, 0, PARENT)
    other, different = calibration.draw(recipe, data, 1, PARENT)
    first, again, other = (torch.cat([batch["input_ids"] for batch in found]) for found in (first, again, other))
    assert torch.equal(first, again) and facts == same and facts["samples"] == 20
    assert not torch.equal(first, other) and facts["sha256"] != different["sha256"]
    assert len({tuple(block) for block in first.tolist()}) == 20, "no block twice"


def test_too_little_calibration_is_said(data, capsys):
    _, facts = calibration.draw(calibrated(GPTQ, samples=100_000), data, 0, PARENT)
    assert "not the 100000 requested" in facts["warnings"][0] and len(facts["warnings"]) == 1
    _, facts = calibration.draw(calibrated(GPTQ, samples=16), data, 0, PARENT)
    assert facts["warnings"] == ["calibrated on 16 samples; fewer than 128 can harm the model"]
    assert "WARNING: calibrated on 16 samples" in capsys.readouterr().out


LENGTHS = {"windows": 300, "long-documents": 210, "short-documents": 200, "documents": 204}


def documents_of(prepared: Path) -> list[list[int]]:
    """Return the token ids of each document, after the token that begins a text."""
    values, starts = text.column(prepared, "calibration", "ids")
    return [[2, *values[first:last].tolist()] for first, last in pairwise(starts) if last > first]


def place(whole: list[int], part: list[int]) -> int | None:
    """Return the place of a part in a list, or None."""
    places = range(len(whole) - len(part) + 1)
    return next((at for at in places if whole[at : at + len(part)] == part), None)


@pytest.mark.parametrize("how", LENGTHS)
def test_samples_of_documents(data, how):
    """Each draw against the documents themselves: those that fit, begun as texts, in an order that the seed gives."""
    length = LENGTHS[how]
    recipe = calibrated(GPTQ, samples=6, length=length, draw=how)
    batches, facts = calibration.draw(recipe, data, 0, PARENT)
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    documents = documents_of(data)
    if how == "windows":
        stream = text.stream(data, "calibration", loading.tokenizer(PARENT)).ids.tolist()
        assert len(rows) == 6 == len({place(stream, row) for row in rows} - {None})
    elif how == "long-documents":
        homes = [[item for item in documents if place(item, row) is not None] for row in rows]
        assert [len(row) for row in rows] == [length] * 6
        assert all(len(home) == 1 for home in homes) and len({str(home) for home in homes}) == 6, "one of each document"
        assert len({place(home[0], row) for home, row in zip(homes, rows, strict=True)}) > 2, "at random places"
    elif how == "documents":
        assert len(rows) == 6 and len({len(row) for row in rows}) > 1
        assert all(row in [item[:length] for item in documents] for row in rows)
    else:
        short = [item for item in documents if len(item) <= length]
        joined = [token for number in order(len(short), 0)[:6] for token in short[number]]
        assert rows and [token for row in rows for token in row] == joined[: len(joined) // length * length]
    assert facts["samples"] == 6 and facts["tokens"] == sum(map(len, rows))
    assert facts == calibration.draw(recipe, data, 0, PARENT)[1]
    assert facts["sha256"] != calibration.draw(recipe, data, 1, PARENT)[1]["sha256"]


@pytest.mark.parametrize(
    ("how", "length", "samples", "problem"),
    [
        ("long-documents", 250, 4, "has no document of at least 250 tokens; change 'length' or 'draw'"),
        ("short-documents", 3, 4, "has no document of at most 3 tokens; change 'length' or 'draw'"),
        ("short-documents", 250, 1, "fewer than one block of 250; raise 'samples' or lower 'length'"),
    ],
)
def test_a_draw_that_gets_nothing_says_what_to_change(data, how, length, samples, problem):
    with pytest.raises(QuantuneError, match=re.escape(problem)):
        calibration.draw(calibrated(GPTQ, samples=samples, length=length, draw=how), data, 0, PARENT)


def test_one_sentence_is_one_sample(tmp_path, tokenizer):
    """However short it is: a list of one text, as a bad calibration set."""
    sentence = "A library to quantize a model, with an interface that is easy to use."
    table = pyarrow.table(tokens.encode([sentence], tokenizer), schema=tokens.SCHEMA)
    with pyarrow.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, tokens.SCHEMA) as out:
        out.write_table(table)
    recipe = calibrated(GPTQ, split="train", samples=1, length=512, draw="documents", damping=0.1)
    (batch,), facts = calibration.draw(recipe, tmp_path, 0, PARENT)
    assert batch["input_ids"].tolist() == [tokenizer(sentence)["input_ids"]]
    assert facts["warnings"] == ["calibrated on 1 sample; fewer than 128 can harm the model"]
    assert len(recipe.probe(PARENT, tmp_path, 0)[1]) == 1
    with pytest.raises(QuantuneError, match="fewer than one window of 512; lower 'length'"):
        calibration.draw(calibrated(GPTQ, split="train", length=512, draw="windows"), tmp_path, 0, PARENT)


def test_the_draw_is_part_of_the_identity_only_where_it_is_given():
    """Checkpoints that were made before the key existed stay current."""
    assert "draw" not in calibrated(GPTQ).identity()
    assert calibrated(GPTQ, draw="documents").identity()["draw"] == "documents"
