"""Benchmarks: what is counted, what is timed, and for which machine the result stands."""

import json

import pandas
import pytest
import torch

from quantune.core import hardware
from quantune.core.errors import ConfigError
from quantune.evaluations import benchmark
from quantune.evaluations.benchmark import Benchmark, peak
from quantune.models import architecture, decoding, loading, meters
from quantune.planning import costs, load, plan, resources
from tests.conftest import OPT
from tests.voices import WHISPER


@pytest.fixture(scope="module")
def model():
    return loading.model([OPT], "float32")


@pytest.fixture
def prompt():
    return torch.randint(5, 12000, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("way", ["eager", "static"])
def test_decoding_gives_the_tokens_of_greedy_generate(model, prompt, way):
    model.generation_config.eos_token_id = None
    whole = torch.ones_like(prompt)
    expected = model.generate(input_ids=prompt, attention_mask=whole, max_new_tokens=25, do_sample=False)[:, 20:]
    decoder, name, reasons = decoding.choose(way, model, prompt, 24)
    assert (name, reasons) == (way, {})
    found = decoding.decode(decoder, 24)
    assert torch.equal(torch.cat([decoder.first, found], dim=1), expected)
    decoder.rewind()
    assert torch.equal(decoding.decode(decoder, 24), found)


def test_the_compiled_step_is_one_graph_with_the_same_tokens(model, prompt):
    with torch.no_grad():
        decoder = decoding.Static(model, prompt, 8)
        expected = decoding.decode(decoder, 8)
        decoder.next = torch.compile(decoding.next_token, fullgraph=True, dynamic=False, backend="aot_eager")
        decoder.rewind()
        assert torch.equal(decoding.decode(decoder, 8), expected)


@pytest.fixture(scope="module")
def speaking():
    return loading.model([WHISPER], "float32")


@pytest.fixture
def windows(speaking):
    return benchmark.windows(speaking, loading.feature_extractor(WHISPER), 2, "float32")


@pytest.mark.parametrize("way", ["eager", "static"])
@torch.no_grad()
def test_decoding_windows_gives_the_tokens_of_whole_passes(speaking, windows, way):
    expected = windows.tokens
    for _ in range(9):
        logits = speaking(input_features=windows.features, decoder_input_ids=expected, use_cache=False).logits
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    decoder, name, reasons = decoding.choose(way, speaking, windows, 8)
    assert (name, reasons) == (way, {})
    found = decoding.decode(decoder, 8)
    assert torch.equal(torch.cat([windows.tokens, decoder.first, found], dim=1), expected)
    decoder.rewind()
    assert torch.equal(decoding.decode(decoder, 8), found)


def test_the_compiled_step_of_whisper_is_one_graph_with_the_same_tokens(speaking, windows):
    with torch.no_grad():
        decoder = decoding.Static(speaking, windows, 4)
        expected = decoding.decode(decoder, 4)
        decoder.next = torch.compile(decoding.next_token, fullgraph=True, dynamic=False, backend="aot_eager")
        decoder.rewind()
        assert torch.equal(decoding.decode(decoder, 4), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="captures CUDA graphs here")
def test_what_cannot_be_captured_falls_back_and_says_so(model, prompt):
    _, name, reasons = decoding.choose("compiled", model, prompt, 4)
    assert name == "static" and list(reasons) == ["compiled", "graph"] and "CUDA" in reasons["graph"]
    assert decoding.choose("auto", model, prompt, 4)[1] == "eager"


def test_a_decoder_with_other_logits_is_passed_over(model, prompt, monkeypatch):
    class Wrong(decoding.Static):
        def rewind(self):
            super().rewind()
            self.position.fill_(3)

    monkeypatch.setitem(decoding.DECODERS, "static", Wrong)
    _, name, reasons = decoding.choose("static", model, prompt, 4)
    assert name == "eager" and "away from the eager decoder's" in reasons["static"]


def test_double_quantization_takes_fewer_bytes():
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    found = {}
    for double in (False, True):
        options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
        loaded = AutoModelForCausalLM.from_pretrained(OPT, dtype=torch.float32, quantization_config=options)
        found[double] = meters.tensor_bytes(loaded)
    weights = 4 * (4 * 128 * 128 + 2 * 128 * 512)
    saved = 8 * (found[False] - found[True]) / weights
    assert 0.1 < saved < 0.375  # 0.37 bit a weight, less the tables of 256 values that each small layer has


def test_shared_storage_counts_once(model):
    head = model.get_output_embeddings().weight
    assert head.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert meters.tensor_bytes(model) == 4 * sum(item.numel() for item in model.parameters())


def test_runs_are_counted_and_warm_up_is_marked(tmp_path):
    recipe = Benchmark(batch_sizes=[1, 2], prompt_lengths=[8], new_tokens=4, repeats=5, warmup=3, dtype="float32")
    result = recipe.measure([OPT], tmp_path)
    runs = pandas.read_parquet(tmp_path / "items.parquet")
    assert len(runs) == 2 * 2 * (3 + 5) and (runs.seconds > 0).all()
    counted = runs[~runs.warmup].groupby(["batch_size", "phase"]).agg({"run": "count", "tokens": "first"})
    assert (counted.run == 5).all()
    assert counted.tokens.to_dict() == {(1, "decode"): 4, (1, "prefill"): 8, (2, "decode"): 8, (2, "prefill"): 16}
    assert result["parameters"] == 2497536 and len(result["points"]) == 2
    json.dumps(result, allow_nan=False)


def test_speech_is_encoded_and_decoded(tmp_path):
    recipe = Benchmark(batch_sizes=[1, 2], new_tokens=3, dtype="float32")
    result = recipe.measure([WHISPER], tmp_path)
    runs = pandas.read_parquet(tmp_path / "items.parquet")
    assert list(runs.columns[:3]) == ["batch_size", "window_seconds", "phase"] and set(runs.window_seconds) == {4}
    counted = runs[~runs.warmup].groupby(["batch_size", "phase"]).agg({"run": "count", "tokens": "first"})
    assert (counted.run == 5).all()
    assert counted.tokens.to_dict() == {(1, "decode"): 3, (1, "encode"): 4, (2, "decode"): 6, (2, "encode"): 8}
    shape = architecture.read(json.loads((WHISPER / "config.json").read_text()))
    assert result["parameters"] == sum(shape.parameters().values()) and result["new_tokens"] == 3
    assert result["running_bytes"]["tensors"] == 4 * result["parameters"] == result["footprint_bytes"]
    points = result["points"]
    assert [(point["batch_size"], point["window_seconds"], point["decoder"]) for point in points] == [
        (1, 4, "eager"),
        (2, 4, "eager"),
    ]
    assert peak(points) == max(point[phase]["peak_bytes"] for point in points for phase in ("encode", "decode"))
    json.dumps(result, allow_nan=False)


def test_a_point_without_memory_is_recorded_and_the_sweep_goes_on(tmp_path, monkeypatch):
    whole = decoding.prefill

    def prefill(model, prompt):
        if len(prompt) == 2:
            torch.empty(2**60)  # more than any machine has
        return whole(model, prompt)

    monkeypatch.setattr(decoding, "prefill", prefill)
    recipe = Benchmark(batch_sizes=[2, 1], prompt_lengths=[8], new_tokens=4, dtype="float32")
    points = recipe.measure([OPT], tmp_path)["points"]
    assert points[0] == {"batch_size": 2, "prompt_length": 8, "fits": False}
    assert points[1]["fits"] and set(pandas.read_parquet(tmp_path / "items.parquet").batch_size) == {1}
    assert peak(points) == max(points[1][phase]["peak_bytes"] for phase in ("prefill", "decode"))


def test_other_errors_stop_a_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "prefill", lambda model, prompt: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        Benchmark(batch_sizes=[1], prompt_lengths=[8], new_tokens=4, dtype="float32").measure([OPT], tmp_path)


def test_the_machine_is_part_of_the_identity(raw, monkeypatch):
    raw["benchmark"] = {}
    here = {"kind": "gpu", "device": "A", "count": 1, "driver": "1", "software": {"torch": "2"}}
    digests = set()
    for change in ({}, {"device": "B"}, {"count": 2}, {"driver": "2"}, {"software": {"torch": "3"}}):
        monkeypatch.setattr(hardware, "detect", lambda change=change: here | change)
        planned = plan.Plan(load.load(raw))
        digests.add(planned.benchmark("opt+nf4+lora").digest)
        assert len(planned.report().parents["benchmarks"]) == len(planned.config.benchmarked) == 5
    assert len(digests) == 5


def test_speech_models_are_measured_by_the_same_section(raw):
    raw["models"]["whisper"] = {"path": str(WHISPER)}
    raw["variants"] = ["opt", "whisper+nf4"]

    def artefacts(**section):
        planned = plan.Plan(load.load(raw | {"benchmark": {"new_tokens": 60} | section}))
        return planned, planned.benchmark("opt"), planned.benchmark("whisper+nf4")

    planned, text, speech = artefacts()
    assert planned.config.benchmarked == ["opt", "whisper", "whisper+nf4"]
    _, other_text, other_speech = artefacts(prompt_lengths=[8])
    assert text.digest != other_text.digest and speech.digest == other_speech.digest
    small, large = (artefacts(batch_sizes=[batch]) for batch in (1, 64))
    low, high = (resources.estimate(planned, speech).total for planned, _, speech in (small, large))
    assert high > low > 0 and "whisper+nf4" in costs.table(costs.of_plan(planned))
    with pytest.raises(ConfigError, match=r"new_tokens: 61 is too many, the model 'whisper' has 64 .*: up to 60"):
        artefacts(new_tokens=61)


def test_without_a_section_nothing_is_measured(raw):
    planned = plan.Plan(load.load(raw))
    assert "benchmarks" not in planned.report().parents
    with pytest.raises(ConfigError, match="the section 'benchmark' is missing"):
        planned.benchmark("opt")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"repeats": 3}, "benchmark.repeats: input should be greater than or equal to 5"),
        ({"batch_size": [1]}, "benchmark.batch_size: unknown key.*batch_sizes"),
        ({"prompt_lengths": [1000]}, "benchmark.prompt_lengths: the longest makes 1128 tokens"),
    ],
)
def test_a_wrong_section_is_explained(raw, section, message):
    raw["benchmark"] = section
    with pytest.raises(ConfigError, match=message):
        load.load(raw)


def test_hidden_gpus_are_left_out():
    gpus = [{"index": "0", "uuid": "GPU-aa"}, {"index": "1", "uuid": "GPU-bb"}]
    assert hardware._visible(gpus, None) == gpus
    assert hardware._visible(gpus, "1") == gpus[1:] == hardware._visible(gpus, "GPU-bb")
    assert hardware._visible(gpus, "") == [] == hardware._visible(gpus, "-1")
