"""Every fine-tuning method on the embedded model: it learns, is saved, loaded, merged, resumed."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from quantune.core.errors import ConfigError, QuantuneError
from quantune.data import text
from quantune.finetunings.training import checkpointing, loop, loss, precision
from quantune.models import adapters, architecture, checkpoints, decoding, loading, probes, stored
from quantune.planning import load, resources
from quantune.planning.config import AnyFinetuning
from quantune.planning.plan import Plan
from tests.conftest import OPT
from tests.test_loop import Killed
from tests.test_memory import METHODS as QUANTIZATIONS
from tests.test_memory import SMALL, built
from tests.voices import WHISPER

SHAPE = architecture.read(json.loads((OPT / "config.json").read_text()))
WIDTH, INNER, LAYERS = SHAPE.decoder.width, SHAPE.decoder.feed_forward, SHAPE.decoder.count
KEYS = {"dataset": "any", "batch_size": 2, "steps": 6, "save_every": 2, "evaluate_every": 3, "learning_rate": 6e-3}
LAYER = 4 * WIDTH * (WIDTH + 1) + INNER * (WIDTH + 1) + WIDTH * (INNER + 1) + 4 * WIDTH  # weights of one layer
PAIR = 2 * 4 * LAYERS * (WIDTH + WIDTH)  # LoRA of rank 4 beside q_proj and v_proj
ROWS = {
    "lora": ({"method": "lora", "rank": 4}, PAIR, [None, "nf4", "int8", "rtn"]),
    "rank-stabilized": ({"method": "lora", "rank": 4, "rank_stabilized": True}, PAIR, [None]),
    "dora": ({"method": "lora", "rank": 4, "dora": True}, PAIR + 2 * LAYERS * WIDTH, [None, "nf4", "rtn"]),
    "pissa": ({"method": "lora", "rank": 4, "initialization": "pissa", "learning_rate": 2e-3}, PAIR, [None]),
    "loftq": ({"method": "lora", "rank": 4, "initialization": "loftq"}, PAIR, ["nf4", "int8", "rtn"]),
    "full": ({"method": "full", "learning_rate": 3e-4}, sum(SHAPE.parameters().values()), [None]),
    "freeze": ({"method": "freeze", "layers": 1, "learning_rate": 2e-3}, LAYER, [None]),
    "norms": ({"method": "freeze", "layers": "all", "parts": "norms"}, (2 * LAYERS + 1) * 2 * WIDTH, [None]),
    "biases": (
        {"method": "freeze", "layers": "all", "parts": "biases"},
        LAYERS * (4 * WIDTH + INNER + WIDTH + 2 * WIDTH) + WIDTH,
        [None],
    ),
    "ia3": ({"method": "ia3", "learning_rate": 0.05}, LAYERS * (2 * WIDTH + INNER), [None, "nf4", "int8", "rtn"]),
    "prompt": (
        {"method": "prompt", "virtual_tokens": 7, "learning_rate": 0.05},
        7 * WIDTH,
        [None, "nf4", "int8", "rtn"],
    ),
    "prefix": (
        {"method": "prefix", "virtual_tokens": 7, "learning_rate": 0.05},
        7 * 2 * LAYERS * WIDTH,
        [None, "nf4", "int8", "rtn"],
    ),
    "p-tuning": (
        {"method": "p-tuning", "virtual_tokens": 7, "hidden_size": 32},
        7 * WIDTH + 32 * (WIDTH + 1) + 32 * 33 + WIDTH * 33,
        [None, "nf4", "int8", "rtn"],
    ),
    "adalora": (
        {"method": "adalora", "initial_rank": 6, "rank": 3, "learning_rate": 0.02},
        2 * 6 * LAYERS * (2 * WIDTH + 1),
        [None, "nf4", "int8", "rtn"],
    ),
    "houlsby": (
        {"method": "bottleneck", "size": 8},
        2 * LAYERS * (2 * 8 * WIDTH + 8 + WIDTH),
        [None, "nf4", "int8", "rtn"],
    ),
    "pfeiffer": (
        {"method": "bottleneck", "size": 8, "placement": "pfeiffer"},
        LAYERS * (2 * 8 * WIDTH + 8 + WIDTH),
        [None],
    ),
    "unipelt": (
        {"method": "unipelt", "rank": 4, "virtual_tokens": 7, "size": 8},
        PAIR + LAYERS * (2 * 7 * WIDTH + 2 * 8 * WIDTH + 8 + WIDTH + 4 * (WIDTH + 1)),
        [None, "nf4", "int8", "rtn"],
    ),
    "lora+": ({"method": "lora", "rank": 4, "learning_rate_ratio": 4}, PAIR, [None]),
}
"""Name -> keys, number of trained parameters by the paper, bases: None for full precision, or a quantization."""


def recipe_of(name: str, **more):
    return TypeAdapter(AnyFinetuning).validate_python(KEYS | ROWS[name][0] | more)


@pytest.fixture(scope="module")
def data() -> text.Blocks:
    return text.Blocks(numpy.random.default_rng(0).integers(5, 12000, (4, 32)))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that returns the folder of the model in a quantization, made once."""
    made = {None: OPT}

    def base(method: str | None) -> Path:
        if method not in made:
            made[method] = tmp_path_factory.mktemp("bases") / method
            made[method].mkdir()
            QUANTIZATIONS[method](method=method).quantize(OPT, made[method])
        return made[method]

    return base


def prepared(recipe, base: Path):
    loaded = loading.model([base], precision.loaded_dtype(recipe, base != OPT))
    return recipe.prepare(loaded, 0, OPT if recipe.reads_original else None)


def train(recipe, base: Path, folder: Path, data, validation=None):
    """Train and save; return the model and the facts. A folder with a saved state resumes it."""
    model, scratch = prepared(recipe, base), folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    (saved := folder / "saved").mkdir(exist_ok=True)
    with loss.fused(model):
        facts = loop.train(
            model, recipe, 0, data, validation, folder, scratch, lambda path: recipe.save(model, base, path)
        )
    recipe.save(model, base, saved)
    return model.eval(), facts


def loaded(recipe, base: Path, saved: Path, dtype: str = "float32", load=loading.model):
    """Load what a method has saved: a whole model, or an adapter on its base."""
    return load([saved] if recipe.leaves == "model" else [base, saved], dtype)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(5, 45).view(2, 20)
    return model(input_ids=ids).logits[:, -20:].float()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("name", "base"), [(name, base) for name, row in ROWS.items() for base in row[2]], ids=lambda value: str(value)
)
def test_a_method_learns_and_keeps_what_it_learned(tmp_path, bases, data, name, base):
    recipe, folder = recipe_of(name), bases(base)
    model = prepared(recipe, folder)
    names = {key for key, value in model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    assert adapters.parameters(model)[0] == recipe.trained(SHAPE) == ROWS[name][1]
    assert all(value.dtype == torch.float32 for key, value in model.named_parameters() if key in names)

    model, facts = train(recipe, folder, tmp_path / "whole", data, data)
    curve = numpy.genfromtxt(tmp_path / "whole/curves.csv", delimiter=",", names=True)["validation_loss"]
    assert curve[-1] < curve[0] - 0.05
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    tied = {"lm_head.weight"} if recipe.leaves == "model" else set()
    assert changed <= names | tied, "only trained parameters change"
    assert len(changed & names) > 0.8 * len(names)

    exact, rounded = logits(model), 1e-3 if recipe.leaves == "model" else 1e-5  # the base is stored in float16
    again = logits(loaded(recipe, folder, tmp_path / "whole/saved"))
    assert distance(again, exact) < rounded
    assert distance(logits(loaded(recipe, folder, tmp_path / "whole/saved", load=loading.streamed)), exact) < rounded
    if recipe.leaves == "adapter":
        written = stored.header(tmp_path / "whole/saved" / stored.ADAPTER_WEIGHTS)
        assert sum(int(numpy.prod(item.shape)) for item in written.values()) == recipe.stored(SHAPE)
        if not recipe.unmergeable:
            full = logits(loaded(recipe, OPT, tmp_path / "whole/saved"))
            merged = adapters.merged(
                loaded(recipe, OPT, tmp_path / "whole/saved", load=loading.streamed), torch.device("cpu"), torch.float32
            )
            assert distance(logits(merged), full) < 1e-4

    with pytest.raises(InterruptedError):
        train(recipe, folder, tmp_path / "cut", Killed(data, 5), data)
    _, resumed = train(recipe, folder, tmp_path / "cut", data, data)
    assert resumed.pop("run")["resumed_from_step"] == 4
    facts.pop("run")
    assert resumed == facts
    for path in sorted((tmp_path / "whole/saved").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "cut/saved" / path.name).read_bytes(), "the same bits after a kill"


def test_pissa_is_saved_during_training_without_changing_it(tmp_path, data):
    """The checkpoints are adapters of the unchanged base, and the training ends with the same weights as without."""
    folders = [tmp_path / "plain", tmp_path / "kept"]
    for folder, keys in zip(folders, ({}, {"keep_checkpoints": 2, "evaluate_every": 2}), strict=True):
        train(recipe_of("pissa", **keys), OPT, folder, data)
    one, other = (stored.header(folder / "saved" / stored.ADAPTER_WEIGHTS) for folder in folders)
    assert one.keys() == other.keys()
    files = [(folder / "saved" / stored.ADAPTER_WEIGHTS).read_bytes() for folder in folders]
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "kept").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    part = logits(loading.model([OPT, tmp_path / "kept/checkpoint-4"], "float32"))
    end = logits(loading.model([OPT, folders[0] / "saved"], "float32"))
    assert 1e-4 < distance(part, end) < distance(logits(loading.model([OPT], "float32")), end)


def test_loftq_begins_nearer_to_the_original_model(bases):
    exact = logits(loading.model([OPT], "float32"))
    for method in ("nf4", "rtn"):
        keys = {"rank": 32, "target_modules": "all-linear"}
        began = [prepared(recipe_of(name, **keys), bases(method)).eval() for name in ("lora", "loftq")]
        plain, better = (distance(logits(model), exact) for model in began)
        assert better < 0.9 * plain


def test_lora_plus_has_another_rate_for_b(data, tmp_path):
    recipe = recipe_of("lora+", steps=1)
    model = recipe.prepare(loading.model([OPT], "float32"), 0)
    loop.train(model, recipe, 0, data, None, tmp_path, tmp_path)
    moved = [float(value.detach().abs().max()) for name, value in model.named_parameters() if "lora_B" in name]
    assert moved == pytest.approx([4 * recipe.learning_rate] * len(moved), rel=1e-3), "Adam's first step is the rate"


@pytest.mark.parametrize(
    ("finetuning", "variant", "problem"),
    [
        (
            {"method": "lora", "initialization": "pissa"},
            "opt+nf4+tuned",
            "'opt+nf4' is already quantized; 'tuned' needs full precision: 'opt+tuned'",
        ),
        (
            {"method": "lora", "dora": True},
            "opt+int8+tuned",
            "'tuned' reads the dense weights of the base in each step, and PEFT cannot read those of 'opt+int8'; ",
        ),
        (
            {"method": "full"},
            "opt+nf4+tuned",
            "'opt+nf4' is already quantized; 'tuned' needs full precision: 'opt+tuned'",
        ),
        ({"method": "full"}, "opt+tuned+merge", "'opt+tuned' has no adapter to merge; '+merge' follows a fine-tuning"),
        ({"method": "freeze", "layers": 9}, "opt+tuned", "tuned.layers: 9 is too many, the model has"),
        ({"method": "lora", "initialization": "loftq"}, "opt+tuned", "put one before it: 'opt+rtn-w4+tuned'"),
        (
            {"method": "lora", "initialization": "loftq"},
            "opt+nf4+tuned+merge",
            "'tuned' also holds the error of the quantization, which the original weights do not have; evaluate",
        ),
    ],
    ids=lambda value: value.get("initialization", value["method"]) if isinstance(value, dict) else value[:20],
)
def test_a_chain_that_cannot_work_is_refused_before_any_job(raw, finetuning, variant, problem):
    raw["finetunings"]["tuned"] = {"dataset": "harbour", "steps": 3, "length": 16, **finetuning}
    raw["quantizations"]["int8"] = {"method": "int8"}
    raw["variants"] = [variant]
    with pytest.raises(ConfigError) as caught:
        load.load(raw)
    assert problem in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "keys", "problem"),
    [
        ("norms", {"parts": "all"}, "freezes nothing but embeddings; take 'method: full'"),
        ("adalora", {"rank": 7}, "'rank' 7 is more than 'initial_rank' 6"),
        ("adalora", {"warmup_share": 0.8}, "nothing is left for the pruning"),
        ("dora", {"initialization": "pissa"}, "'dora: true' needs 'initialization: default'"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit_together_are_refused(name, keys, problem):
    with pytest.raises(ValidationError, match=problem):
        recipe_of(name, **keys)


def test_the_digest_of_a_recipe_without_the_new_keys_is_unchanged():
    plain = recipe_of("lora")
    assert not {"rank_stabilized", "dora", "initialization", "learning_rate_ratio"} & plain.identity().keys()
    assert recipe_of("dora").identity()["dora"] is True


@pytest.mark.parametrize("precision_", ["bfloat16", "float16"])
def test_own_weights_are_float32_while_they_train_and_saved_as_their_base(tmp_path, data, precision_):
    """In 16 bits the loss falls; a base in bfloat16 leaves a model in bfloat16 with the same config.json."""
    base = tmp_path / "base"
    model = loading.model([OPT], "bfloat16")
    checkpoints.save_model(model, OPT, base)
    recipe = recipe_of("full", precision=precision_, learning_rate=1e-3, batch_size=4)
    model, _ = train(recipe, base, tmp_path / "out", data, data)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    curve = numpy.genfromtxt(tmp_path / "out/curves.csv", delimiter=",", names=True)["validation_loss"]
    assert curve[-1] < curve[0] - 0.5
    saved = tmp_path / "out/saved"
    assert {item.dtype for item in stored.header(saved / "model.safetensors").values()} == {"BF16"}
    assert (saved / "config.json").read_bytes() == (base / "config.json").read_bytes()
    again = loading.model([saved], "float32")
    assert again.config.use_cache and distance(logits(again), logits(model)) < 0.02


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["full", "freeze", "norms"])
def test_the_number_of_trained_own_weights_is_predicted_for_other_families(name, method):
    recipe = recipe_of(method)
    model = recipe.prepare(built(SMALL[name]), 0)
    assert adapters.parameters(model)[0] == recipe.trained(architecture.read(SMALL[name]))


def test_chains_go_on_after_a_whole_model(raw):
    """Quantized, adapted, merged: `opt+tuned` is a model like any other."""
    raw["finetunings"]["tuned"] = {"dataset": "harbour", "steps": 3, "length": 16, "method": "full"}
    raw["variants"] = ["opt+tuned+{nf4+lora,lora+merge+rtn-w4,rtn-w8}"]
    config = load.load(raw)
    variant = config.parse("opt+tuned+nf4+lora+merge")
    assert str(variant.merge_base()) == "opt+tuned"
    plan = Plan(config)
    assert [str(item) for item in config.parse("opt+tuned").checkpoints_to_load()] == ["opt+tuned"]
    terms = resources.terms(plan, plan.checkpoint("opt+tuned"))
    count = sum(SHAPE.parameters().values())
    assert terms["weights"] == terms["gradients"] == 4 * count and terms["optimizer"] == 8 * count
    sizes = [resources.disk_bytes(plan, plan.checkpoint(name)) for name in ("opt", "opt+tuned")]
    assert sizes[1] == pytest.approx(sizes[0], rel=2e-3)


@pytest.mark.parametrize("name", ["prompt", "prefix", "p-tuning", "ia3", "unipelt"])
def test_all_evaluations_count_virtual_tokens_as_a_forward_pass_does(tmp_path, data, name):
    """The loss of training, the decoders and generation agree with a forward pass over the whole text."""
    recipe = recipe_of(name, steps=2)
    model, _ = train(recipe, OPT, tmp_path, data, data)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -20:].float()
        assert distance(model(input_ids=ids, use_cache=False).logits[:, -20:], whole) < 1e-5
        expected = torch.nn.functional.cross_entropy(whole[0, :-1], ids[0, 1:])
        assert float(model(input_ids=ids, labels=ids).loss) == pytest.approx(float(expected), rel=1e-5)
        with loss.fused(model):
            assert float(model(input_ids=ids, labels=ids).loss) == pytest.approx(float(expected), rel=1e-5)
        text_ids = ids
        for _ in range(6):
            text_ids = torch.cat([text_ids, model(input_ids=text_ids).logits[:, -1:].argmax(-1)], dim=1)
        model.config.use_cache = True
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        assert torch.equal(model.generate(ids, **options), text_ids)
        for kind in ("eager", "static"):
            decoder, used, reasons = decoding.choose(kind, model, ids, 5)
            assert used == kind, reasons
            assert torch.equal(torch.cat([decoder.first, decoding.decode(decoder, 5)], dim=1), text_ids[:, 20:])


def test_virtual_tokens_need_room_and_text(raw):
    raw["finetunings"]["tuned"] = {"dataset": "harbour", "steps": 3, "length": 250, "method": "prompt"}
    raw["variants"] = ["opt+tuned"]
    positions = load.load(raw | {"variants": ["opt"]}).positions("opt")
    raw["finetunings"]["tuned"]["length"] = positions - 19
    with pytest.raises(ConfigError, match=rf"allowed: up to {positions - 20}") as caught:
        load.load(raw)
    raw["finetunings"]["tuned"]["length"] = 16
    raw["benchmark"] = {"prompt_lengths": [positions - 30], "new_tokens": 20}
    with pytest.raises(ConfigError, match="of which a variant takes 20 for virtual tokens; lower one of the two"):
        load.load(raw)
    load.load(raw | {"variants": ["opt"]})
    assert "of which 'opt+tuned' takes 20 for virtual tokens" in str(caught.value)
    config = json.loads((WHISPER / "config.json").read_text())
    assert "is for text models; for speech take" in recipe_of("prefix").unsuitable(config)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "method", ["ia3", "prompt", "prefix", "p-tuning", "dora", "adalora", "houlsby", "pfeiffer", "unipelt"]
)
def test_the_number_of_trained_parameters_is_predicted_for_other_families(name, method):
    recipe = recipe_of(method)
    model = recipe.prepare(built(SMALL[name]), 0)
    assert adapters.parameters(model)[0] == recipe.trained(architecture.read(SMALL[name]))


@pytest.mark.parametrize("precision_", ["float32", "bfloat16"])
def test_ranks_of_adalora_move_to_the_budget_and_differ(tmp_path, data, precision_):
    """12 steps: 1 with all ranks, 4 at the end with fixed ones; the mean rank falls from 6 to 3."""
    recipe = recipe_of("adalora", steps=12, precision=precision_, keep_checkpoints=3)
    model, _ = train(recipe, OPT, tmp_path, data, data)
    ranks = recipe.facts(model)["ranks"]
    assert sum(ranks.values()) == 3 * len(ranks) == 3 * 2 * LAYERS and len(set(ranks.values())) > 1
    sizes = []
    for step in (3, 6):
        tensors = checkpoints.Tensors(tmp_path / f"checkpoint-{step}")
        sizes.append(sum(int((tensors[name] != 0).sum()) for name in tensors.names() if "lora_E" in name))
    assert 6 * len(ranks) >= sizes[0] > sizes[1] > sum(ranks.values())
    again = logits(loading.model([OPT, tmp_path / "saved"], "float32"))
    assert distance(again, logits(model.float())) < (1e-5 if precision_ == "float32" else 0.03)


@pytest.mark.parametrize("base", [None, "nf4"])
def test_gates_of_unipelt_are_measured_and_differ_between_layers(tmp_path, bases, data, base):
    """The means go on after a kill; neither validation nor gradient checkpointing changes them."""
    recipe, folder = recipe_of("unipelt", gradient_checkpointing=True), bases(base)
    model, _ = train(recipe, folder, tmp_path / "whole", data)
    gates = recipe.facts(model)["gates"]
    assert len(gates) == len(set(gates.values())) == 4 * LAYERS and all(0 < value < 1 for value in gates.values())
    tokens = {int(part.gates[1]) for part in model.modules() if "gates" in part._buffers}
    assert tokens == {recipe.steps * recipe.batch_size * 32}
    with pytest.raises(InterruptedError):
        train(recipe, folder, tmp_path / "cut", Killed(data, 5), data)
    resumed, _ = train(recipe, folder, tmp_path / "cut", data, data)
    assert recipe.facts(resumed)["gates"] == gates

    (scratch := tmp_path / "scratch").mkdir()
    again = prepared(recipe, folder)
    checkpointing.enable(again, recipe)
    loop.train(again, recipe, 0, data, None, scratch, scratch)
    assert recipe.facts(again)["gates"] == pytest.approx(gates, rel=1e-4)
    assert max(float(part.gates[1]) for part in again.modules() if "gates" in part._buffers) == 2 * max(tokens)


@torch.no_grad()
def _counting(model, ids):
    """Let a model of UniPELT count its gates."""
    model.train()(input_ids=ids)
    return model.eval()


@pytest.mark.parametrize("name", ["opt", "grouped"])
def test_a_gate_of_0_removes_its_part(name):
    model = recipe_of("unipelt").prepare(built(SMALL[name]), 0).eval()
    ids = torch.arange(5, 25)[None]

    def computed() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    with model.disable_adapter():
        plain = computed()
    assert torch.equal(computed(), plain), "the parts begin at no change"
    assert set(recipe_of("unipelt").facts(_counting(model, ids))["gates"].values()) == {0.5}
    gates = {}  # name of the layer that has the part -> gates in all layers
    for key, part in model.named_modules():
        if key.endswith("unipelt_gate.default"):
            part.weight.data.zero_()
            gates.setdefault(key.split(".unipelt")[0].split(".")[-1], []).append(part.bias.data)
        elif key.endswith("unipelt_second.default"):
            part.weight.data.normal_(std=0.1)
    assert len(gates) == 4
    for kept in (None, *gates):
        for key, values in gates.items():
            for value in values:
                value.fill_(0 if key == kept else -1e4)  # the gate is 1/2 or 0
        assert torch.equal(computed(), plain) if kept is None else distance(computed(), plain) > 1e-4


def test_unipelt_is_for_text_models_with_all_three_layers(raw):
    config = json.loads((WHISPER / "config.json").read_text())
    assert "'unipelt' is for text models; for speech take" in recipe_of("unipelt").unsuitable(config)
    with pytest.raises(QuantuneError, match="has not all layers that 'unipelt' needs"):
        recipe_of("unipelt").prepare(torch.nn.Linear(2, 2), 0)
    raw["finetunings"]["tuned"] = {"dataset": "harbour", "steps": 3, "length": 16, "method": "unipelt"}
    raw["variants"] = ["opt+tuned+merge"]
    with pytest.raises(ConfigError, match="'tuned' has gates that depend on the text and cannot be merged"):
        load.load(raw)


def test_adalora_needs_steps_to_prune(data, tmp_path):
    with pytest.raises(QuantuneError, match="cannot prune within 1 steps; give more 'steps'"):
        train(recipe_of("adalora", steps=1), OPT, tmp_path, data)


@pytest.mark.parametrize("name", ["ia3", "full", "freeze", "biases", "adalora", "houlsby", "dora"])
def test_methods_of_speech_models_train_what_is_planned_and_are_loaded_again(tmp_path, name):
    recipe = recipe_of(name)
    shape = architecture.read(json.loads((WHISPER / "config.json").read_text()))
    model = recipe.prepare(loading.model([WHISPER], "float32"), 0)
    assert adapters.parameters(model)[0] == recipe.trained(shape)
    with torch.no_grad():
        for value in (value for value in model.parameters() if value.requires_grad):
            value.mul_(1.01).add_(1e-3)
    recipe.save(model.eval(), WHISPER, tmp_path)
    again = loaded(recipe, WHISPER, tmp_path)
    assert distance(probes.probe_logits(again), probes.probe_logits(model)) < 1e-2  # the base is stored in 16 bits
