"""The configurations of the course's exercises: every key against the settings of lectures and notebooks, every printed
number, and what follows from the sizes of the real models without their weights.
"""

import json
from math import ceil, prod

import pandas
import pyarrow
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    OPTConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from quantune.core.units import BYTES
from quantune.data import text, tokens
from quantune.evaluations.metrics import rates
from quantune.finetunings.lora import LoRA
from quantune.models import adapters, architecture, loading
from quantune.planning import chains, costs, load, resources
from quantune.planning.config import AnyQuantization
from quantune.planning.plan import Plan
from quantune.quantizations.arithmetic.gptq import gptq
from quantune.quantizations.arithmetic.grids import Grid
from tests.conftest import OPT
from tests.course import GPTQ, MIB, PRINTED, QUOTES, SETTINGS, TUNED
from tests.hub import opt_repository
from tests.test_experiments import experiment, stand_ins  # noqa: F401 (fixture)
from tests.test_memory import opt

COURSE = "experiments/course"
EXERCISES = sorted(SETTINGS)
FRAME = {"title", "work", "expected"}  # what an exercise says of itself


def raw_of(root, name: str) -> dict:
    return yaml.safe_load((root / COURSE / f"{name}.yaml").read_text())


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Empty files in the place of those that are downloaded by hand."""
    for name in ("COMMON_VOICE", "TEST_ZH"):
        path = tmp_path / f"{name}.tar.gz"
        path.touch()
        monkeypatch.setenv(name, str(path))


def test_there_is_a_configuration_of_each_exercise(root):
    assert sorted(path.stem for path in (root / COURSE).iterdir()) == EXERCISES
    assert [name[:2] for name in EXERCISES] == [f"e{number}" for number in range(1, 10)]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_key_is_the_courses(root, monkeypatch, files, name):
    monkeypatch.chdir(root)
    raw, settings = raw_of(root, name), SETTINGS[name]
    assert load.load(raw, name)
    assert raw | {"variants": chains.expand(raw["variants"])} == settings | {key: raw[key] for key in FRAME & set(raw)}


@pytest.mark.parametrize("name", EXERCISES)
def test_every_printed_number_is_expected(root, name):
    found: dict[str, dict[str, list[float]]] = {}
    for entry in raw_of(root, name).get("expected", []):
        number = ": ".join(filter(None, (entry.get("evaluation"), entry.get("number"))))
        for variant, value in entry["values"].items():
            found.setdefault(number, {}).setdefault(variant, []).append(value)
    for number, variants in PRINTED[name].items():
        for variant, values in variants.items():
            assert found[number][variant] == pytest.approx(values, rel=2e-4), (number, variant)


# ---- planned and made, with stand-ins for the hub -----------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercise_is_planned(stand_ins, root, files, name, monkeypatch):  # noqa: F811
    """Every artefact has a digest, and every job that loads a model a prediction of its memory."""
    raw = raw_of(root, name)
    if "zh" in raw["datasets"]:
        monkeypatch.setenv("COMMON_VOICE", str(root / "assets/speech/cv-corpus-saltmere-1.0"))
        raw["datasets"]["zh"] |= {"locale": "en", "language": "zh"}
        raw["datasets"]["zh-small"] |= {"locale": "en", "language": "zh"}
    plan = Plan(load.load(raw, name))
    artefacts = list(costs.with_ancestors(plan.report()))
    assert {item.path for item in artefacts} >= {
        f"{raw['work']}/checkpoints/{name}" for name in SETTINGS[name]["variants"]
    }
    assert load.load(raw, name), "the names of numbers, now that config.json is known"
    for artefact in artefacts:
        assert len(artefact.digest) == 64
        assert not resources.loads_model(artefact) or resources.estimate(plan, artefact).total > 0, artefact.path
    for recording in raw.get("recordings", ()):
        assert plan.transcript(TUNED[1], recording).digest


@pytest.mark.parametrize(
    ("name", "targets", "made"),
    [
        ("e2-gptq-one-sentence", [], ["sources/one-sentence", "checkpoints/opt-2.7b+gptq-one-sentence", "report"]),
        ("e9-own-recording", ["transcripts"], [f"transcripts/{variant}/test-zh" for variant in TUNED]),
    ],
)
def test_snakemake_plans_an_exercise(stand_ins, root, tmp_path, monkeypatch, name, targets, made):  # noqa: F811
    monkeypatch.setenv("COMMON_VOICE", str(root / "assets/speech/cv-corpus-saltmere-1.0"))
    monkeypatch.setenv("TEST_ZH", str(root / "assets/probe/speech.flac"))

    def in_english(raw):
        for dataset in ("zh", "zh-small") if "zh" in raw["datasets"] else ():
            raw["datasets"][dataset]["locale"] = "en"

    folder = experiment(root, tmp_path, f"course/{name}.yaml", in_english)
    assert set(made) <= folder.planned(*targets)


def test_exercises_share_what_they_make_alike(root, stand_ins, monkeypatch):  # noqa: F811
    """Those with one work folder never make an artefact of the same path twice."""
    monkeypatch.setenv("COMMON_VOICE", str(root / "assets/speech/cv-corpus-saltmere-1.0"))
    monkeypatch.setenv("TEST_ZH", str(root / "assets/probe/speech.flac"))
    digests: dict[str, set[str]] = {}
    for name in EXERCISES:
        raw = raw_of(root, name)
        for dataset in ("zh", "zh-small") if "zh" in raw["datasets"] else ():
            raw["datasets"][dataset]["locale"] = "en"
        for artefact in costs.with_ancestors(Plan(load.load(raw, name)).report()):
            if artefact.stage != "report":
                digests.setdefault(artefact.path, set()).add(artefact.digest)
    assert [path for path, found in digests.items() if len(found) > 1] == []


@pytest.mark.slow
def test_the_quotes_exercise_in_small(stand_ins, root, tmp_path):  # noqa: F811
    """A tiny model in the place of OPT-6.7B, pickled in two shards; few steps and quotes, all else as it is."""
    stand_ins.repositories["models/facebook/opt-6.7b"] = opt_repository(tmp_path / "opt", shards=2, prefix="")
    tuned = "opt-6.7b+int8+lora"

    def cut_down(raw):
        raw["datasets"]["quotes"]["sample"] = {"train": 40}
        raw["finetunings"]["lora"] |= {"steps": 4, "evaluate_every": 2, "length": 256}
        raw["variants"] = [tuned]
        del raw["benchmark"], raw["evaluations"]
        values = {"train_loss.step2": 5.0, "base_footprint_bytes": 1e7, "seconds": 250.0, "steps_per_second": 0.4}
        raw["expected"] = [
            {"source": "made up", "number": number, "values": {tuned: value}} for number, value in values.items()
        ]

    folder = experiment(root, tmp_path, "course/e6-lora-int8-quotes.yaml", cut_down)
    folder.run("--cores", "2")
    metrics = json.loads((folder.work / "report/metrics.json").read_text())[tuned]
    assert metrics["steps"] == 4 and metrics["trainable_parameters"] > 0 and metrics["seconds"] > 0
    html = (folder.work / "report/report.html").read_text()
    assert "of 4 published values came out" in html and "train loss: step2" in html


# ---- what follows from the sizes of the real models ---------------------------------------------------------------

OPT27, OPT67 = opt(2560, 32, 32), opt(4096, 32, 32)
LARGE = {
    "model_type": "whisper",
    "vocab_size": 51865,
    "d_model": 1280,
    "encoder_layers": 32,
    "decoder_layers": 32,
    "encoder_attention_heads": 20,
    "decoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "decoder_ffn_dim": 5120,
}


def model_of(config: dict):
    """Return a model of a config.json on the meta device: shapes without weights."""
    kinds = {"opt": (OPTConfig, AutoModelForCausalLM.from_config), "whisper": (WhisperConfig, None)}
    kind, make = kinds[config["model_type"]]
    with torch.device("meta"):
        return (make or WhisperForConditionalGeneration)(kind(**config))


def linears_of(model) -> dict[str, torch.nn.Linear]:
    """Return the linear layers that are quantized: all but the output embedding."""
    head = model.get_output_embeddings()
    return {name: part for name, part in model.named_modules() if type(part) is torch.nn.Linear and part is not head}


def footprint(model, bits: int, rest: int) -> float:
    """Return the MiB of parameters, with `bits` a weight of the quantized layers and `rest` bytes for all others."""
    inside = sum(part.weight.numel() for part in linears_of(model).values())
    return (inside * bits / 8 + (model.num_parameters() - inside) * rest) / MIB


def scales(quantization: dict, model) -> float:
    """Return the MiB that a quantization keeps beside codes, as its recipe says."""
    recipe = TypeAdapter(AnyQuantization).validate_python(quantization)
    sizes = [resources_of(recipe, *part.weight.shape) for part in linears_of(model).values()]
    return sum(sizes) / MIB


def resources_of(recipe, rows: int, columns: int) -> int:
    tensors = {name: value for name, value in recipe.layer_tensors(rows, columns).items() if name != "weight"}
    return sum(prod(shape) * BYTES[dtype] for dtype, shape in tensors.values())


@pytest.fixture(scope="module")
def opt27():
    return model_of(OPT27)


@pytest.fixture(scope="module")
def opt67():
    return model_of(OPT67)


@pytest.fixture(scope="module")
def whisper():
    return model_of(LARGE)


def test_check_2_and_14_the_sizes_of_opt_27(opt27):
    inside = linears_of(opt27)
    assert opt27.num_parameters() == sum(architecture.read(OPT27).parameters().values()) == 2_651_596_800
    assert len(inside) == 192 and sum(part.weight.numel() for part in inside.values()) == 2_516_582_400
    assert opt27.num_parameters() * 2 / MIB == pytest.approx(5057.52, abs=0.005)
    packed = TypeAdapter(AnyQuantization).validate_python(GPTQ).layer_tensors(2560, 2560)
    assert packed == {"weight_packed": ("int32", [2560, 320]), "weight_scale": (None, [2560, 20])}, "20 groups in a row"


def test_check_3_4_and_5_the_four_bit_footprints(opt27):
    quantizations = SETTINGS["e5-bitsandbytes"]["quantizations"]
    assert footprint(opt27, 4, 2) == pytest.approx(1457.52, abs=0.005)
    beyond = {name: scales(entry, opt27) for name, entry in quantizations.items()}
    assert beyond == pytest.approx({"fp4": 150, "nf4": 150, "fp4-dq": 38.09, "nf4-dq-bf16": 38.09}, abs=0.3)
    silent = BitsAndBytesConfig(load_in_4bit=True)
    said = TypeAdapter(AnyQuantization).validate_python({"method": "fp4"}).arguments()
    assert silent.bnb_4bit_quant_type == said["bnb_4bit_quant_type"] == "fp4"
    assert (silent.bnb_4bit_compute_dtype, said["bnb_4bit_compute_dtype"]) == (torch.float32, "float32")
    assert not silent.bnb_4bit_use_double_quant and not said["bnb_4bit_use_double_quant"]


def test_check_6_and_9_the_int8_footprints(opt67, whisper):
    found = [footprint(model, 8, rest) for model in (opt67, whisper) for rest in (2, 4)]
    assert found == pytest.approx([6556.03, 6968.06, 1543.62, 1687.24], abs=0.005)
    assert footprint(opt67, 8, 4) * MIB / 2**30 == pytest.approx(6.80, abs=0.005)


@pytest.mark.parametrize(("method", "bits"), [("fp4", 4), ("int8", 8)])
def test_a_loaded_model_has_the_footprint_that_is_counted(tmp_path, method, bits):
    whole = loading.model([OPT], "float32")
    TypeAdapter(AnyQuantization).validate_python({"method": method}).quantize(OPT, tmp_path)
    packed = loading.model([tmp_path], "float16")
    assert packed.get_memory_footprint() / MIB == pytest.approx(footprint(whole, bits, 2))


def adapted(config: dict, **keys) -> tuple[int, int, int]:
    """Return the adapted layers, trained and all parameters of a model with LoRA."""
    recipe = LoRA(method="lora", dataset="d", steps=1, **keys)
    with torch.device("meta"):
        model = recipe.prepare(model_of(config), 0)
    layers = {name for name, _ in model.named_modules() if name.endswith("lora_A.default")}
    assert adapters.parameters(model)[0] == recipe.trained(architecture.read(config))
    return len(layers), *adapters.parameters(model)


def test_check_7_lora_on_opt_67():
    found = adapted(OPT67, rank=8, target_modules=QUOTES["target_modules"])
    assert found == (128, 8_388_608, 6_666_862_592)
    assert 100 * found[1] / found[2] == pytest.approx(0.12582542214183376, rel=1e-12)
    shape = architecture.read(OPT67)
    for rank, more, count in ((16, [], 16_777_216), (8, ["fc1", "fc2"], 18_874_368)):
        recipe = LoRA(method="lora", dataset="d", steps=1, rank=rank, target_modules=QUOTES["target_modules"] + more)
        assert recipe.trained(shape) == count
    unknown = LoRA(method="lora", dataset="d", steps=1, target_modules=["q_proj", "fc_in"])
    assert "'fc_in' is not a linear layer of the model" in unknown.unsuitable(OPT67)


def test_check_8_lora_on_whisper(whisper):
    assert whisper.num_parameters() == 1_543_304_960
    assert adapted(LARGE, rank=8, target_modules=["q_proj", "v_proj"]) == (192, 3_932_160, 1_547_237_120)
    shape = architecture.read(LARGE)
    ranks = {rank: LoRA(method="lora", dataset="d", steps=1, rank=rank).trained(shape) for rank in (4, 8, 32)}
    assert ranks == {4: 1_966_080, 8: 3_932_160, 32: 15_728_640}


@pytest.mark.parametrize(
    ("name", "step", "examples", "per_epoch"),
    [
        ("e6-lora-int8-quotes", "lora", 2508, 627),
        ("e7-whisper-lora-int8", "lora", 39_637, 620),
        ("e7-whisper-lora-int8", "lora", 29_056, 454),
        ("e7-whisper-lora-int8", "lora-small-r8", 640, 10),
    ],
)
def test_check_10_20_and_22_steps_of_an_epoch(root, name, step, examples, per_epoch):
    entry = raw_of(root, name)["finetunings"][step]
    recipe = LoRA(**entry | {"steps": None, "epochs": 1})
    assert recipe.total_steps(examples) == per_epoch == ceil(examples / entry["batch_size"])
    if entry["steps"]:
        assert LoRA(**entry).total_steps(examples) == 100


def test_check_1_and_10_the_tokens_of_quotes(tokenizer, tmp_path):
    """A prompt keeps its last space. A quote begins with `</s>`, is whole, ends without it; padding is no label."""
    prompt = text.prompt("Two things are infinite: ", tokenizer)
    assert prompt[0] == 2 and tokenizer.decode(prompt[1:]) == "Two things are infinite: "
    quotes = ["“Be yourself; everyone else is already taken.”", "“So many books, so little time.”" * 20, "“No.”"]
    encoded = tokens.encode(quotes, tokenizer)
    table = pyarrow.table(encoded, schema=tokens.SCHEMA)
    with pyarrow.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, tokens.SCHEMA) as out:
        out.write_table(table)
    examples = text.Documents(tmp_path, "train", tokenizer, QUOTES["length"], QUOTES["end_of_text"])
    batch = examples.batch([0, 1, 2])
    longest = 1 + max(map(len, encoded["ids"]))
    assert batch["input_ids"].shape == (3, longest) and longest > 128
    for row, ids in enumerate(encoded["ids"]):
        labels = batch["labels"][row].tolist()
        assert batch["input_ids"][row].tolist() == [2, *ids] + [tokenizer.pad_token_id] * (longest - 1 - len(ids))
        assert labels == [-100, *ids] + [-100] * (longest - 1 - len(ids))


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_check_15_the_first_grid_does_not_depend_on_the_calibration(damping):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 256, generator=generator)
    expected = 2 * weight[:, :128].abs().amax(1) / 15
    for seed in (1, 2):
        inputs = torch.randn(400, 256, generator=torch.Generator().manual_seed(seed))
        fitted = gptq(weight.clone(), inputs.T @ inputs / 400, Grid(4, 128, True), damping, False)
        assert torch.allclose(fitted.scale[:, 0], expected, rtol=1e-3)


def test_check_21_the_features_of_a_clip():
    extractor = WhisperFeatureExtractor()
    samples = [0.1] * 16_000
    assert extractor(samples, sampling_rate=16_000).input_features[0].shape == (80, 3000)


def test_check_23_the_word_error_rate_of_sentences_without_spaces():
    """It is the share of sentences that are not exactly right."""
    references = ["性喜温暖湿润气候，耐寒。"] * 320
    hypotheses = ["性喜温暖湿润气候，耐寒。"] * 91 + ["性喜温暖湿润气候耐寒。"] * 229
    items = pandas.DataFrame({"reference": references, "hypothesis": hypotheses, "seconds": 5.0})
    numbers = rates.error_rates(rates.with_edits(items), ("wer_raw", "cer_raw"))
    assert 320 * numbers["wer_raw"] == 229 and numbers["cer_raw"] == pytest.approx(229 / (320 * 12))
