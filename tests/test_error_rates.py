"""Word and character error rates: against examples counted by hand, and against jiwer over a whole corpus."""

import math

import jiwer
import pandas
import pytest

from quantune.evaluations.metrics import edits, normalizers, rates, significance
from tests.voices import WHISPER

REFERENCES = ["The cat sat.", "on the mat", "all day long", "One"]
HYPOTHESES = ["the cat sat", "on a mat now", "all day", ""]


def items(references: list[str], hypotheses: list[str], normal=str) -> pandas.DataFrame:
    found = pandas.DataFrame(
        {
            "id": [str(number) for number in range(len(references))],
            "seconds": 1.0,
            "reference": references,
            "hypothesis": hypotheses,
        }
    )
    return rates.with_edits(rates.with_edits(found), normal)


@pytest.fixture(scope="module")
def english():
    return normalizers.normalizer("english", WHISPER)


def test_edits_by_hand():
    assert edits.words("a b c d", "a x c d e") == edits.Edits(4, substitutions=1, insertions=1, deletions=0)
    assert edits.words("a b c", "") == edits.Edits(3, 0, 0, 3)
    assert edits.characters("ab c", "abc") == edits.Edits(4, 0, 0, 1)


@pytest.mark.parametrize("count", [edits.words, edits.characters])
def test_everything_written_of_an_empty_reference_is_inserted(count):
    assert count("", "a b").insertions == (2 if count is edits.words else 3)
    assert count("", "") == edits.Edits(0, 0, 0, 0)


def test_rates_by_hand(english):
    found = rates.error_rates(items(REFERENCES, HYPOTHESES, english))
    # normalized: 3 + 3 + 3 + 1 words; a for the, now inserted, long and One missing. Raw: The, sat. substituted too
    assert found["wer_length"] == 10 and found["wer"] == pytest.approx(4 / 10)
    counted = [found[f"wer_{name}"] for name in ("substitutions", "insertions", "deletions")]
    assert counted == [1, 1, 2]
    assert found["wer_raw"] == pytest.approx(6 / 10)
    assert found["clips"] == 4 and found["seconds"] == 4.0


def test_rates_are_those_of_jiwer_over_the_corpus():
    table = items(REFERENCES, HYPOTHESES)
    found = rates.error_rates(table)
    assert found["wer_raw"] == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES), abs=1e-12)
    assert found["cer_raw"] == pytest.approx(jiwer.cer(REFERENCES, HYPOTHESES), abs=1e-12)


def test_the_change_is_paired():
    table, worse = items(["a b c d"] * 30, ["a b c d"] * 30), ["a b c x"] * 15 + ["a b c d"] * 15
    found = significance.error_rate_change(items(["a b c d"] * 30, worse), table, "wer")
    assert found["change"] == pytest.approx(15 / 120)
    # each clip 0 or 1 more wrong of 4 words: standard error sqrt(30 * 0.25 * 30 / 29) / 120
    margin = significance.Z95 * math.sqrt(30 * 0.25 * 30 / 29) / 120
    assert (found["low"], found["high"]) == pytest.approx((15 / 120 - margin, 15 / 120 + margin))
    assert found["p_value"] < 0.001
    assert significance.error_rate_change(table, table, "wer")["p_value"] == 1.0


def test_other_clips_are_not_compared():
    with pytest.raises(ValueError, match="not over the same clips"):
        significance.error_rate_change(items(["a"], ["a"]), items(["b"], ["a"]), "wer")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Mr. Smith won't pay twenty-one dollars!", "mister smith will not pay $21"),
        ("  It's   [noise] fine, um, isn't it? ", "it is fine is not it"),
        ("1,000 and two hundred", "1000 and 200"),
        ("The colour is grey?!", "the colour is grey"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_english(english, text, wanted):
    assert english(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("我們在臺灣學習漢語。", "我们在台湾学习汉语"),
        ("我们 在,台湾!学习汉语", "我们在台湾学习汉语"),
        ("2024年有12.5%", "二零二四年有百分之十二点五"),
        ("共1,024个", "共一千零二十四个"),
        ("２１岁", "二十一岁"),
        ("电话010", "电话零一零"),
        ("用GPT写", "用gpt写"),
        ("。！", ""),
        ("", ""),
    ],
)
def test_chinese(text, wanted):
    assert normalizers.chinese(text) == wanted


def test_basic_drops_case_punctuation_and_diacritics():
    normal = normalizers.normalizer("basic", WHISPER)
    assert normal("  Ça, c'est l'Été!  ") == "ca c est l ete"


def test_the_normalizer_is_that_of_the_language():
    assert [normalizers.of_language(code) for code in ("en", "zh", "yue", "de")] == [
        "english",
        "chinese",
        "chinese",
        "basic",
    ]
