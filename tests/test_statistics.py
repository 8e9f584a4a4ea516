"""Numbers shown, against numbers computed by hand and against a bootstrap."""

import math

import numpy
import pandas
import pytest

from quantune.evaluations.metrics import rates, significance

VOCABULARY = 12288


def windows(nll, tokens, size=None, words=None) -> pandas.DataFrame:
    """Return the raw items of a perplexity evaluation."""
    tokens = numpy.asarray(tokens)
    begin = numpy.concatenate([[0], numpy.cumsum(tokens)[:-1]])
    size, words = (tokens * 4 if size is None else size), (tokens if words is None else words)
    return pandas.DataFrame({"begin": begin, "tokens": tokens, "bytes": size, "words": words, "nll": nll})


def synthetic(count: int, seed: int) -> pandas.DataFrame:
    """Return windows of different lengths and difficulties."""
    draw = numpy.random.default_rng(seed)
    tokens = draw.integers(50, 150, count)
    return windows(tokens * draw.normal(3.0, 0.4, count), tokens)


def test_ratio_by_hand():
    # 12 / 6 = 2; residuals 0, 1, -1: sqrt(3 / 2 * 2) / 6
    value, error = rates.ratio([2, 5, 5], [1, 2, 3])
    assert value == 2.0
    assert error == pytest.approx(math.sqrt(3) / 6, rel=1e-12)


def test_ratio_over_equal_denominators_is_the_mean_and_its_standard_error():
    sample = numpy.random.default_rng(1).normal(5, 2, 40)
    value, error = rates.ratio(sample * 7, numpy.full(40, 7))
    assert value == pytest.approx(sample.mean(), rel=1e-12)
    assert error == pytest.approx(sample.std(ddof=1) / math.sqrt(40), rel=1e-12)


def test_the_error_of_a_ratio_is_that_of_a_bootstrap():
    items = synthetic(400, seed=2)
    nll, tokens = items.nll.to_numpy(), items.tokens.to_numpy()
    picks = numpy.random.default_rng(3).integers(0, 400, (4000, 400))
    resampled = nll[picks].sum(axis=1) / tokens[picks].sum(axis=1)
    value, error = rates.ratio(nll, tokens)
    assert value == pytest.approx(nll.sum() / tokens.sum(), rel=1e-12)
    assert error == pytest.approx(resampled.std(ddof=1), rel=0.1)


def test_ratio_of_too_little():
    value, error = rates.ratio([3.0], [2.0])
    assert value == 1.5 and math.isnan(error)
    assert all(math.isnan(number) for number in rates.ratio([], []))
    assert all(math.isnan(number) for number in rates.ratio([1.0, 2.0], [0, 0]))


def test_a_uniform_model_has_the_vocabularys_size_as_perplexity():
    tokens = numpy.array([127, 127, 127, 60])
    found = rates.perplexity(windows(tokens * math.log(VOCABULARY), tokens))
    assert found["token_perplexity"] == pytest.approx(VOCABULARY, rel=1e-12)
    assert found["token_perplexity_error"] == pytest.approx(0, abs=1e-8)


def test_perplexity_by_hand():
    # 40 ln 2 nats over 20 tokens, 10 words, 80 bytes: 2 bits a token, 4 a word, half a bit a byte
    found = rates.perplexity(windows([10 * math.log(2), 30 * math.log(2)], [10, 10], [40, 40], [5, 5]))
    assert found["token_perplexity"] == pytest.approx(4)
    assert found["word_perplexity"] == pytest.approx(16)
    assert found["bits_per_byte"] == pytest.approx(0.5)
    # residuals -10 ln 2 and 10 ln 2: sqrt(2 * 200) ln 2 = 20 ln 2 over the total
    assert found["token_perplexity_error"] == pytest.approx(4 * math.log(2))
    assert found["word_perplexity_error"] == pytest.approx(16 * 2 * math.log(2))
    assert found["bits_per_byte_error"] == pytest.approx(0.25)
    counts = {key: found[key] for key in ("version", "windows", "tokens", "bytes", "words")}
    assert counts == {"version": rates.VERSION, "windows": 2, "tokens": 20, "bytes": 80, "words": 10}


def test_a_perplexity_too_large_for_a_float_is_infinite():
    assert rates.perplexity(windows([8000.0, 8000.0], [10, 10]))["token_perplexity"] == math.inf


def test_word_perplexity_of_a_text_without_words_is_undefined():
    assert math.isnan(rates.perplexity(windows([10.0, 20.0], [10, 10], words=[0, 0]))["word_perplexity"])


@pytest.mark.parametrize(("factor", "sign"), [(1.02, 1), (0.98, -1)])
def test_a_real_change_is_seen(factor, sign):
    reference = synthetic(200, seed=4)
    noise = numpy.random.default_rng(5).normal(0, 0.5, 200)
    found = significance.perplexity_change(reference.assign(nll=reference.nll * factor + noise), reference)
    assert numpy.sign(found["change"]) == sign
    assert found["change"] == pytest.approx(math.expm1(3.0 * (factor - 1)), rel=0.1)
    assert found["low"] < found["change"] < found["high"]
    assert found["low"] * found["high"] > 0 and found["p_value"] < 1e-6


def test_the_change_is_that_of_the_two_perplexities():
    items, reference = synthetic(50, seed=6), synthetic(50, seed=6)
    items["nll"] += numpy.random.default_rng(7).normal(2, 5, 50)
    before, after = (rates.perplexity(frame)["token_perplexity"] for frame in (reference, items))
    assert significance.perplexity_change(items, reference)["change"] == pytest.approx(after / before - 1, rel=1e-9)


def test_interval_and_p_value_by_hand():
    # 0.2 nats a token in the mean; ten windows, so one cosine: t with one degree
    differences = numpy.array([1.0, 1, 2, 2, 4, 2, 2, 2, 1, 3])
    found = significance.perplexity_change(windows(10 + differences, [10] * 10), windows([10.0] * 10, [10] * 10))
    wave = [math.cos(math.pi * (place + 0.5) / 10) for place in range(10)]
    error = math.sqrt(2) * abs(sum((differences - 2) * wave)) / 100  # root of 10 windows times 2 / 10, over the tokens
    assert found["change"] == pytest.approx(math.exp(0.2) - 1)
    assert found["low"] == pytest.approx(math.exp(0.2 - 12.7062 * error) - 1, rel=1e-5)
    assert found["high"] == pytest.approx(math.exp(0.2 + 12.7062 * error) - 1, rel=1e-5)
    assert found["p_value"] == pytest.approx(1 - 2 * math.atan(0.2 / error) / math.pi)
    assert found["estimate"].method == "cosine transforms (1) over 10 windows in their order, Student's t"


def test_an_interval_covers_no_change_nineteen_times_out_of_twenty():
    reference, draw = synthetic(60, seed=8), numpy.random.default_rng(9)
    found = [
        significance.perplexity_change(reference.assign(nll=reference.nll + draw.normal(0, 4, 60)), reference)
        for _ in range(300)
    ]
    covered = sum(item["low"] <= 0 <= item["high"] for item in found) / 300
    assert 0.91 <= covered <= 0.98
    assert all((item["p_value"] < 0.05) == (not item["low"] <= 0 <= item["high"]) for item in found)


def test_identical_evaluations_do_not_differ():
    items = synthetic(20, seed=10)
    found = significance.perplexity_change(items, items)
    assert [found[key] for key in ("change", "low", "high", "p_value")] == [0.0, 0.0, 0.0, 1.0]


def test_nine_windows_are_too_few():
    items = synthetic(9, seed=10)
    found = significance.perplexity_change(items, items.assign(nll=items.nll * 1.1))
    assert math.isfinite(found["change"]) and math.isnan(found["low"]) and math.isnan(found["p_value"])
    assert found["estimate"].method == "no interval: 9 windows, at least 10 are needed"


@pytest.mark.parametrize("column", ["begin", "tokens"])
def test_different_windows_are_refused(column):
    items, reference = synthetic(20, seed=11), synthetic(20, seed=11)
    items.loc[3, column] += 1
    with pytest.raises(ValueError, match="not over the same windows"):
        significance.perplexity_change(items, reference)
    with pytest.raises(ValueError, match="not over the same windows"):
        significance.perplexity_change(reference[:19], reference)


def test_a_broken_variant_is_infinitely_worse():
    found = significance.perplexity_change(windows([8000.0, 8000.0], [10, 10]), windows([10.0, 10.0], [10, 10]))
    assert found["change"] == math.inf


def test_a_difference_without_spread_is_certain():
    found = significance.perplexity_change(windows([20.0] * 10, [10] * 10), windows([10.0] * 10, [10] * 10))
    assert found["p_value"] == 0
