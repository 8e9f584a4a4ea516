"""Word and character error rates: against examples counted by hand, and against jiwer over a whole corpus."""

import math
import unicodedata

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
    # each clip 0 or 1 more wrong of 4 words: standard error sqrt(30 * 0.25 * 30 / 29) / 120; t of 29 degrees, or wider
    margin = 2.04523 * math.sqrt(30 * 0.25 * 30 / 29) / 120
    assert found["low"] < 15 / 120 - 0.999 * margin and 15 / 120 + 0.999 * margin < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * margin, rel=0.05)
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
        ("٣个", "三个"),
        ("电话010", "电话零一零"),
        ("用GPT写", "用gpt写"),
        ("。！", ""),
        ("", ""),
    ],
)
def test_chinese(text, wanted):
    assert normalizers.chinese(text) == wanted


def test_basic_drops_case_punctuation_and_brackets():
    assert normalizers.basic("  Ça, c'est (rires) l'Été! [bruit] ") == "ça c est l été"


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "wrong"),
    [
        ("hi", "मैं कल स्कूल जाऊँगी", "मैं कल बाज़ार जाऊँगी", 1),
        ("hi", "मेरा दिन", "मेरी दून", 2),
        ("bn", "আমার বাংলা ভাষা", "আমার বাংলা ভোষা", 1),
        ("ta", "அவள் வந்தாள்", "அவள் வந்தான்", 1),
        ("vi", "mả đi", "mã đi", 1),
        ("de", "Er hat schon gezahlt", "Er hat schön gezählt", 2),
        ("ru", "мой край", "мои краи", 2),
        ("ko", "학교에 간다", "학교에 갔다", 1),
        ("tr", "kış", "kis", 1),
        ("pl", "łaska", "laska", 1),
        ("es", "el año", "el ano", 1),
        ("cs", "byt", "být", 1),
        ("th", "ใกล้", "ใกล", 1),
        ("ja", "かぎがはいる", "かきかはいる", 1),
        # the same words, written another way
        ("tr", "İstanbul", "istanbul", 0),
        ("vi", unicodedata.normalize("NFD", "tiếng Việt"), "tiếng Việt", 0),
        ("ko", unicodedata.normalize("NFD", "학교"), "학교", 0),
        ("ar", "مُحَمَّد", "محمد", 0),
        ("he", "שָׁלוֹם", "שלום", 0),
        ("fa", "می\u200cخواهم", "میخواهم", 0),
        ("hi", "कमरा ३", "कमरा 3", 0),
        ("el", "ΣΟΦΟΣ", "σοφος", 0),
        ("ja", "今日は、晴れ。", "今日は晴れ", 0),
    ],
)
def test_marks_that_are_part_of_the_spelling_count(language, reference, hypothesis, wrong):
    normal = normalizers.normalizer(normalizers.of_language(language), WHISPER)
    assert edits.words(normal(reference), normal(hypothesis)).substitutions == wrong
    assert (normal(reference) == normal(hypothesis)) == (wrong == 0)


def test_characters_are_those_of_the_script():
    """A Hangul syllable is one character, not the letters in it; a Thai tone mark and a voiced kana count."""
    for language, reference, hypothesis, length in (
        ("ko", "간다", "갔다", 2),
        ("th", "ใกล้", "ใกล", 4),
        ("ja", "かぎ", "かき", 2),
    ):
        normal = normalizers.normalizer(normalizers.of_language(language), WHISPER)
        counted = edits.characters(normal(reference), normal(hypothesis))
        assert (counted.length, counted.substitutions + counted.deletions) == (length, 1)


@pytest.mark.parametrize("name", ["basic", "unspaced", "english", "chinese"])
def test_no_text_is_too_strange_for_a_normalizer(name):
    normal = normalizers.normalizer(name, WHISPER)
    for code in range(32, 0x20000, 7):
        if not 0xD800 <= code < 0xE000:
            normal(f"12{chr(code)}{chr(code + 1) if code + 1 != 0xD800 else ''}3")


def test_the_normalizer_is_that_of_the_language():
    assert [normalizers.of_language(code) for code in ("en", "zh", "yue", "de", "ja")] == [
        "english",
        "chinese",
        "chinese",
        "basic",
        "unspaced",
    ]
