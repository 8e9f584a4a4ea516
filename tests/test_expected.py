"""Published values beside the measured ones."""

import json
import math

import pytest
import yaml

from quantune.core.errors import ConfigError
from quantune.planning import expected, load
from quantune.planning.plan import Plan
from quantune.report import gather
from quantune.report import published as report_published
from tests.reports import write
from tests.voices import WHISPER

PAPER = "A paper, table 3"


@pytest.fixture
def published(raw):
    """A configuration with one published value."""
    raw["expected"] = [{"source": PAPER, "evaluation": "news", "values": {"opt": 20.5, "opt+rtn-w4": 25.0}}]
    return raw


def test_ancestors_may_have_values_too(published):
    published["expected"][0]["values"]["opt+nf4"] = 22.0
    assert load.load(published).expected[0].values["opt+nf4"] == 22.0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "evaluation",
            "new",
            "expected.0.evaluation: 'new' is not an evaluation with a leading number; allowed: harbour, news; did",
        ),
        ("evaluation", "prompts", "'prompts' is not an evaluation with a leading number; allowed: harbour"),
        ("evaluation", None, "expected.0: give 'evaluation', 'number', or both"),
        (
            "number",
            "bits_per_bite",
            "expected.0.number: 'bits_per_bite' is not a number of the evaluation 'news'; allowed: token_perplexity, "
            "word_perplexity, bits_per_byte, seconds, peak_memory_bytes, peak_device_bytes; did you mean 'bits_per_b",
        ),
        (
            "values",
            {"opt+rtn-w5": 3.0},
            "expected.0.values: 'opt+rtn-w5' is not one of the variants or their ancestors",
        ),
        ("values", {"opt": 0}, "expected.0.values.opt: input should be greater than 0, found 0"),
        ("values", {}, "expected.0.values: must not be empty"),
        ("source", "", "expected.0.source: "),
        ("sauce", "x", "expected.0.sauce: unknown key; did you mean 'source'?"),
    ],
)
def test_what_is_wrong_is_named(published, key, value, message):
    published["expected"][0][key] = value
    with pytest.raises(ConfigError) as caught:
        load.load(published)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("number", "variant", "allowed"),
    [
        ("seconds", "opt", None),
        ("parameters", "opt", None),
        ("layers_quantized", "opt+rtn-w4", None),
        ("train_loss.step20", "opt+nf4+lora", None),
        ("bits_per_weight", "opt+nf4+lora", None),
        ("decode.batch8.prompt16.tokens_per_second", "opt+rtn-w4", None),
        ("trainable_parameters", "opt+rtn-w4", "size_bytes, layers_quantized, bits_per_weight, seconds, peak_mem"),
        ("bits_per_weight", "opt+lora", "size_bytes, parameters, trainable_parameters, total_parameters, base_footp"),
        ("train_loss.step*", "opt+nf4+lora", "size_bytes, parameters"),
        ("train_loss.stepx", "opt+nf4+lora", "size_bytes, parameters"),
        ("decode.batch8.prompt17.tokens_per_second", "opt+rtn-w4", "size_bytes, layers_quantized"),
        ("footprint_bytes", "opt+nf4", "size_bytes, layers_quantized"),  # an ancestor, which is not benchmarked
    ],
)
def test_numbers_of_variants_follow_from_their_last_step(published, number, variant, allowed):
    published["benchmark"] = {"batch_sizes": [8], "prompt_lengths": [16]}
    published["expected"] = [{"source": PAPER, "number": number, "values": {variant: 1.5}}]
    if not allowed:
        assert load.load(published)
        return
    with pytest.raises(ConfigError) as caught:
        load.load(published)
    assert f"expected.0.number: '{number}' is not a number of '{variant}'; allowed: {allowed}" in str(caught.value)


def test_one_wrong_name_is_one_line(published):
    values = {"opt": 1.0, "opt+rtn-w4": 2.0, "opt+nf4+lora": 3.0}
    published["expected"] = [{"source": PAPER, "number": "steps", "values": values}]
    with pytest.raises(ConfigError) as caught:
        load.load(published)
    allowed = "size_bytes, seconds, peak_memory_bytes, peak_device_bytes; did you mean 'size_bytes'?"
    assert (
        str(caught.value)
        == f"config: expected.0.number: 'steps' is not a number of 'opt', 'opt+rtn-w4'; allowed: {allowed}"
    )


def test_an_evaluation_of_the_other_track_is_refused(published):
    published["models"]["whisper"] = {"path": str(WHISPER)}
    published["variants"].append("whisper+rtn-w4")
    published["expected"][0]["values"] = {"whisper": 20.0}
    with pytest.raises(ConfigError, match=r"0\.values: 'whisper' is a speech model, which 'news' does not eval"):
        load.load(published)


def test_names_are_checked_before_the_hub_is_asked(published):
    published["models"]["opt"] = {"hub": "a/opt"}
    published["benchmark"] = {}
    published["expected"][0] = {"source": PAPER, "number": "footprint_byte", "values": {"opt": 20.0}}
    with pytest.raises(
        ConfigError, match=r"'footprint_byte' is not a number of 'opt'; .* did you mean 'footprint_bytes'"
    ):
        load.load(published)
    published["expected"][0]["number"] = "footprint_bytes"
    assert load.load(published)


def test_only_the_report_depends_on_it(published):
    before = Plan(load.load(published))
    published["expected"][0]["values"]["opt"] = 21.0
    after = Plan(load.load(published))
    assert before.report().digest != after.report().digest
    assert before.evaluation("opt", "news").digest == after.evaluation("opt", "news").digest


def test_the_table(work, tmp_path):
    home = {"m": math.exp(5.0), "m+rough": math.exp(5.1)}
    work.expected = [
        {"source": PAPER, "evaluation": "home", "number": None, "values": home},
        {"source": "Another <paper>", "evaluation": "away", "number": None, "values": {"m": 2 * math.exp(5.5)}},
    ]
    gathered, html = write(work.order(), tmp_path / "report")
    found = report_published.compare(gathered)
    assert [item.difference for item in found] == pytest.approx([0.0, math.expm1(0.1), -0.5])
    assert [report_published.difference(item) for item in found] == ["+0.00 %", "+11 %", "−50 %"]
    told = "1 of 3 published values came out within 1 %; furthest off is `m`, away: token perplexity, −50 %."
    assert report_published.summary(found) == told
    assert PAPER in html and "Another &lt;paper&gt;" in html and "148.413" in html and "−50 %" in html


def test_a_broken_variant(work):
    work.perplexity("m+rough", "home", 20.0)
    work.expected = [{"source": PAPER, "evaluation": "home", "number": None, "values": {"m+rough": 1300.0}}]
    (item,) = report_published.compare(gather.gather(work.order()))
    assert report_published.difference(item) == "+3.7e+07 %"
    broken = report_published.PublishedValue(PAPER, "home", "m", "p", 1.0, math.inf, 0.0)
    assert report_published.difference(broken) == "∞"


def test_any_number_of_the_report(work, tmp_path):
    def published(number: str, value: float, evaluation: str | None = None, variant: str = "m+tune") -> dict:
        return {"source": PAPER, "evaluation": evaluation, "number": number, "values": {variant: value}}

    work.expected = [
        published("trainable_parameters", 12),
        published("train_loss.step10", 4.0),
        published("total_parameters", 90),
        published("validation_loss.step0", 5.0),
        published("train_loss.step7", 1.0),
        published("size_bytes", 2000, variant="m"),
        published("bits_per_weight", 4.5, variant="m+fine+tune"),
        published("bits_per_byte", 1.0, "home", "m"),
        published("peak_device_bytes", 3703 * 2**20, "prompts", "m"),
    ]
    gathered, html = write(work.order(), tmp_path / "report")
    items = report_published.compare(gathered)
    found = {item.number: item for item in items}
    assert [item.measured for item in items[:7]] == [12, 4.5, 90, 5.0, None, 1000, 4.5]
    assert found["home.bits_per_byte"].measured == gathered.variants["m"].scores["home"].numbers["bits_per_byte"]
    assert found["home.bits_per_byte"].error > 0 and math.isnan(found["size_bytes"].error)
    assert found["prompts.peak_device_bytes"].measured is None and found["prompts.peak_device_bytes"].path in html
    sentence = report_published.summary(items)
    assert sentence.startswith("4 of 7 published values came out") and sentence.endswith(
        "For 2 more nothing was measured in this run."
    )
    assert "For 1 published value nothing was measured" in report_published.summary(items[-1:])
    for text in ("3.88 GB", "not measured", "1.00 kB", "train loss: step10", "prompts: peak device bytes"):
        assert text in html, text


def test_what_is_planned_is_in_the_report(finished):
    """Every name that the configuration may give is a number of the report, on the machine's own hardware."""
    raw = yaml.safe_load((finished.path / "config.yaml").read_text())
    config = load.load(raw)
    metrics = json.loads((finished.work / "report/metrics.json").read_text())
    for variant in config.evaluated:
        known = expected.of_variant(config, variant, benchmarked=[])
        curves = {name for name in known if "*" in name}
        absent = set(known) - curves - set(metrics[str(variant)])
        assert absent <= {"peak_device_bytes"}, variant
        for name in config.evaluations:
            assert {f"{name}.{number}" for number in config.evaluations[name].numbers} <= set(metrics[str(variant)])


def test_without_published_values_nothing_is_shown(work, tmp_path):
    assert "Expected and measured" not in write(work.order(), tmp_path / "report")[1]
