"""Published values beside the measured ones."""

import math

import pytest

from quantune.core.errors import ConfigError
from quantune.planning import load
from quantune.planning.plan import Plan
from quantune.report import gather
from quantune.report import published as report_published
from tests.reports import write

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
            "expected.0.evaluation: 'new' is not a perplexity evaluation; allowed: harbour, news; did",
        ),
        ("evaluation", "prompts", "expected.0.evaluation: 'prompts' is not a perplexity evaluation; allowed: harbour"),
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


def test_only_the_report_depends_on_it(published):
    before = Plan(load.load(published))
    published["expected"][0]["values"]["opt"] = 21.0
    after = Plan(load.load(published))
    assert before.report().digest != after.report().digest
    assert before.evaluation("opt", "news").digest == after.evaluation("opt", "news").digest


def test_the_table(work, tmp_path):
    home = {"m": math.exp(5.0), "m+rough": math.exp(5.1)}
    work.expected = [
        {"source": PAPER, "evaluation": "home", "values": home},
        {"source": "Another <paper>", "evaluation": "away", "values": {"m": 2 * math.exp(5.5)}},
    ]
    gathered, html = write(work.order(), tmp_path / "report")
    found = report_published.compare(gathered)
    assert [item.difference for item in found] == pytest.approx([0.0, math.expm1(0.1), -0.5])
    assert [report_published.difference(item) for item in found] == ["+0.00 %", "+11 %", "−50 %"]
    told = "1 of 3 published values came out within 1 %; furthest off is `m` on away, −50 %."
    assert report_published.summary(found) == told
    assert PAPER in html and "Another &lt;paper&gt;" in html and "148.413" in html and "−50 %" in html


def test_a_broken_variant(work):
    work.perplexity("m+rough", "home", 20.0)
    work.expected = [{"source": PAPER, "evaluation": "home", "values": {"m+rough": 1300.0}}]
    (item,) = report_published.compare(gather.gather(work.order()))
    assert report_published.difference(item) == "+3.7e+07 %"
    assert (
        report_published.difference(report_published.PublishedValue(PAPER, "home", "m", "p", 1.0, math.inf, 0.0)) == "∞"
    )


def test_without_published_values_nothing_is_shown(work, tmp_path):
    assert "Expected and measured" not in write(work.order(), tmp_path / "report")[1]
