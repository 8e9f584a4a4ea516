"""Intervals, p-values and claims, in simulations of which the truth is known: how often they are right.

Short ones, with the seeds of one run; `make test-slow` runs each on more items and more often.
"""

import math

import numpy
import pandas
import pytest

from quantune.evaluations.metrics import dependence, estimates, families, quantiles, summaries
from quantune.evaluations.metrics.dependence import DIFFERENCE, LEVEL

SHORT, LONG = 800, 3000
"""Simulations: their own error is 0.8 and 0.4 points of coverage."""
LOSSES = (0.808, 0.8165)  # correlations 0.66, 0.54, 0.44 at lags 1 to 3, as of the losses of WikiText-2


def correlated(runs: int, count: int, share: float, decay: float, seed: int = 0) -> numpy.ndarray:
    """Return series of which correlations are share times decay to the power of the lag."""
    draw = numpy.random.default_rng(seed)
    fresh = draw.standard_normal((count, runs)) * math.sqrt(1 - decay**2)
    state, states = draw.standard_normal(runs), []
    for step in fresh:
        state = decay * state + step
        states.append(state)
    return math.sqrt(share) * numpy.array(states).T + math.sqrt(1 - share) * draw.standard_normal((runs, count))


def clips(runs: int, count: int, rate: float, alike: float, seed: int = 0) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return errors and lengths of clips, the error rates of which differ; the more, the smaller `alike` is."""
    draw = numpy.random.default_rng(seed)
    lengths = draw.integers(4, 25, (runs, count))
    return draw.binomial(lengths, draw.beta(rate * alike, (1 - rate) * alike, (runs, count))), lengths


def covered(found: list, truth: float) -> float:
    """Return the percentage of intervals that hold the truth."""
    bounds = [item.bounds() for item in found]
    return 100 * float(numpy.mean([low <= truth <= high for low, high in bounds]))


LEVELS = [(30, SHORT), (60, SHORT), (321, SHORT), *((count, LONG) for count in (30, 40, 80, 160, 321, 1000))]


def slow(cases):
    """Mark the long simulations."""
    return [pytest.param(*case, marks=[pytest.mark.slow] * (LONG in case)) for case in cases]


@pytest.mark.parametrize(("count", "runs"), slow(LEVELS))
def test_losses_that_correlate_as_those_of_wikitext(count, runs):
    series = 3 + correlated(runs, count, *LOSSES)
    found = [estimates.in_order(row, numpy.ones(count), LEVEL) for row in series]
    assert 93.5 - 1.2 * (runs == SHORT) <= covered(found, 3) <= 96.5 + 1.2 * (runs == SHORT)


@pytest.mark.parametrize("lag", [0, 0.16, 0.3, 0.6])
@pytest.mark.parametrize(("count", "runs"), slow([(20, SHORT), (80, SHORT), *((n, LONG) for n in (20, 40, 160, 321))]))
def test_differences_that_correlate(count, runs, lag):
    series = correlated(runs, count, 1, lag)
    found = [estimates.in_order(row, numpy.ones(count), DIFFERENCE) for row in series]
    margin = 1.5 + 1.2 * (runs == SHORT)
    assert abs(covered(found, 0) - 95) <= margin
    rejected = 100 * numpy.mean([item.p_value < 0.05 for item in found])
    assert rejected == pytest.approx(100 - covered(found, 0), abs=0.2), "the p-value is that of the interval"


def test_too_few_windows_have_no_interval():
    for spacing in (LEVEL, DIFFERENCE):
        found = estimates.in_order(numpy.arange(spacing - 1), numpy.ones(spacing - 1), spacing)
        assert math.isnan(found.bounds()[0]) and f"at least {spacing} are needed" in found.method


def test_todays_interval_fails_where_neighbours_correlate():
    """The standard error of independent items, for comparison: a test that could not fail would show nothing."""
    series = correlated(SHORT, 321, *LOSSES)
    assert numpy.mean(abs(series.mean(axis=1)) < 1.96 * series.std(axis=1) / math.sqrt(321)) < 0.6


@pytest.mark.parametrize("alike", [1000, 3, 0.6])
@pytest.mark.parametrize(("count", "rate", "runs"), slow([(20, 0.05, 500), (80, 0.05, 500), (200, 0.01, LONG)]))
def test_error_rates(count, rate, alike, runs):
    found = [estimates.independent(*row, paired=False) for row in zip(*clips(runs, count, rate, alike), strict=True)]
    assert covered(found, rate) >= 93.5 - 1.2 * (runs != LONG), "above where few clips have errors: bounds are exact"
    assert all(item.bounds()[0] <= item.value <= item.bounds()[1] for item in found)


@pytest.mark.parametrize("count", [5, 10, 20, 80])
def test_changes_of_error_rates_reject_at_their_level(count):
    (one, lengths), (other, _) = clips(500, count, 0.08, 5), clips(500, count, 0.08, 5, seed=1)
    other = numpy.minimum(other, lengths)
    both = estimates.independent
    rows = zip(numpy.concatenate([one - other]), lengths, strict=True)
    assert 100 * numpy.mean([both(*row, paired=True).p_value < 0.05 for row in rows]) <= 6.5 + 1.2


@pytest.mark.parametrize(("count", "words"), [(10, 1), (40, 1), (100, 1), (400, 1), (40, 12), (200, 12)])
def test_a_loss_below_a_point_is_rarely_claimed_of_two_points(count, words):
    """Each clip is lost as a whole with a probability of 0.02, else it is the same: mostly no clip differs."""
    lost = numpy.random.default_rng(count).random((500, count)) < 0.02
    found = [estimates.independent(row * words, numpy.full(count, words), paired=True) for row in lost]
    assert 100 * numpy.mean([item.p_below(0.01) <= 0.025 for item in found]) <= 2.5
    assert 100 * numpy.mean([item.bounds()[1] < 0.02 for item in found]) <= 2.5 + 1.4


def test_identical_results_claim_nothing_of_few_clips():
    for count, claimed in ((10, False), (367, False), (368, True)):
        found = estimates.independent(numpy.zeros(count), numpy.ones(count), paired=True)
        assert (found.p_below(0.01) <= 0.025) is claimed and found.p_value == 1
        assert found.bounds() == pytest.approx((0.025 ** (1 / count) - 1, 1 - 0.025 ** (1 / count)))
    few = estimates.independent(numpy.zeros(4), numpy.ones(4), paired=True)
    assert math.isnan(few.bounds()[0]) and math.isnan(few.p_below(0.5)) and "at least 5" in few.method


def test_speakers_are_the_items_where_ten_are_known():
    draw = numpy.random.default_rng(0)
    found = []
    for _ in range(300):
        rate = numpy.repeat(draw.beta(0.6, 5.4, 20), 10)  # 20 speakers with 10 clips each
        table = pd_clips([f"{speaker}-7-{clip:04}" for speaker in range(20) for clip in range(10)])
        found.append(summaries.of_clips(table, draw.binomial(10, rate), numpy.full(200, 10), paired=False))
    assert {item.items for item in found} == {20} and "20 speakers" in found[0].method
    assert covered(found, 0.1) >= 92.3
    two = pd_clips([f"{speaker}-7-{clip:04}" for speaker in range(2) for clip in range(10)])
    found = summaries.of_clips(two, numpy.arange(20) % 3, numpy.full(20, 10), paired=False)
    assert found.items == 20 and "the clips are of 2 speakers, so nothing is said about others" in found.method


def pd_clips(names: list[str]) -> pandas.DataFrame:
    return pandas.DataFrame({"id": names})


def test_the_speaker_is_read_from_the_name():
    named = {"84/121123/84-121123-0002.flac": "84", "talk.wav:12.5+7": "talk.wav", "a.parquet:0:17": None, "x": None}
    assert {name: (summaries.speakers(pd_clips([name]))[0] or [None])[0] for name in named} == named


@pytest.mark.parametrize("variants", [5, 12, 30])
def test_a_family_of_equals_is_rarely_told_apart(variants):
    draw, wrong = numpy.random.default_rng(variants), 0
    for _ in range(300):
        compared = families.pairs(draw.standard_normal((variants, 60)), numpy.ones(60), ordered=True)
        wrong += min(families.holm([p_value for _, _, p_value in compared])) < 0.05
    assert wrong / 300 <= 0.065 + 0.012


def test_holm_by_hand():
    assert families.holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)


def test_letters_by_hand():
    # lowest first: 2 and 0 alike, 0 and 1 alike, 2 and 1 differ; 3 differs from all
    compared = [(0, 1, 0.5), (0, 2, 0.5), (0, 3, 1e-9), (1, 2, 1e-9), (1, 3, 1e-9), (2, 3, 1e-9)]
    assert families.letters([2.0, 3.0, 1.0, 9.0], compared) == ["ab", "b", "a", "c"]
    assert families.letters([2.0, 1.0], [(0, 1, 0.5)]) == ["a", "a"]


def test_the_block_length_grows_with_the_correlation():
    lengths = [dependence.block_length(correlated(1, 2000, 1, decay)[0]) for decay in (0.0, 0.3, 0.6, 0.9)]
    assert lengths == sorted(lengths) and lengths[0] < 4
    # for an autoregression the rule aims at (2 (2 d / (1 - d^2))^2 / (4 / 3) n)^(1/3), here 22.9 at d = 0.6
    assert lengths[2] == pytest.approx((1.5 * (1.2 / 0.64) ** 2 * 2000) ** (1 / 3), rel=0.35)


def test_quantiles_are_those_of_tables():
    assert quantiles.student(0.975, 1) == pytest.approx(12.7062047, rel=1e-8)
    assert quantiles.student(0.975, 29) == pytest.approx(2.0452296, rel=1e-7)
    assert quantiles.student_below(-8.5, 30) == pytest.approx(8.7204423e-10, rel=1e-7)
    assert quantiles.largest_share(3, 20) == pytest.approx(0.37892682654, rel=1e-9)
    assert quantiles.smallest_share(3, 20) == pytest.approx(0.03207093719, rel=1e-9)
    assert quantiles.binomial_at_most(5, 1000, 0.02) == pytest.approx(6.400906688e-5, rel=1e-8)
    assert quantiles.beta(0.001, 0.5, 0.5) == pytest.approx(0.020135041633, rel=1e-9)


def test_clips_that_are_all_alike_have_no_interval():
    """All wholly wrong, or each a word worse: they say nothing of clips that were not seen."""
    for errors, length in (([9.0] * 20, [9.0] * 20), ([1.0] * 20, [10.0] * 20)):
        for paired in (False, True):
            alike = estimates.independent(errors, length, paired)
            assert math.isnan(alike.bounds()[0]) and math.isnan(alike.p_value) and "the same rate" in alike.method
    assert estimates.independent([0.0] * 19 + [1.0], [9.0] * 20, True).rare.count == 1


def test_letters_do_not_depend_on_the_groups_on_the_way():
    """40 variants, neighbours of which are alike: 34 letters, but more groups while they are split."""
    values = numpy.random.default_rng(2).permutation(numpy.linspace(0, 1, 40))
    compared = [(i, j, float(abs(values[i] - values[j]) < 1 / 6)) for i in range(40) for j in range(i + 1, 40)]
    letters = families.letters(values.tolist(), compared)
    assert len(set("".join(letters))) == 34
    for one, other, alike in compared:
        assert bool(set(letters[one]) & set(letters[other])) == bool(alike)


def test_transforms_of_many_items_are_the_cosines():
    residuals = numpy.random.default_rng(0).standard_normal((2, 501))
    places = (numpy.arange(501) + 0.5) / 501
    expected = residuals @ numpy.cos(numpy.pi * numpy.outer(numpy.arange(1, 8), places)).T * math.sqrt(2 / 501)
    assert numpy.allclose(dependence.transforms(residuals, 7), expected, rtol=1e-10)
