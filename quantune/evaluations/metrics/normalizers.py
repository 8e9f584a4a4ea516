"""Normal forms of transcripts, for comparison: rules for each language, each with a version.

basic: lower case, no punctuation, no diacritics; english: also contractions, numbers and titles in one form, as in
Radford et al., 2022 (arXiv:2212.04356, appendix C), both from transformers. chinese: NFKC, no punctuation and spaces,
traditional characters folded into simplified ones (OpenCC), numbers written in digits spelled out (cn2an).
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

VERSIONS = {"basic": 1, "english": 1, "chinese": 1}
"""Raised when the meaning of a normalizer changes."""
Name = Literal["basic", "english", "chinese"]


def of_language(language: str) -> Name:
    """Return the normalizer of a language."""
    return {"en": "english", "zh": "chinese", "yue": "chinese"}.get(language, "basic")


@cache
def normalizer(name: Name, model: Path) -> Callable[[str], str]:
    """Return a function from a transcript to its normal form; the function caches its results.

    Args:
        name: of the normalizer.
        model: the checkpoint folder, whose `normalizer.json`, if it has one, maps British to American spellings.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if name == "chinese":
        return cache(chinese)
    if name == "basic":
        return _squeezed(BasicTextNormalizer(remove_diacritics=True))
    spellings = Path(model) / "normalizer.json"
    return _squeezed(EnglishTextNormalizer(json.loads(spellings.read_text()) if spellings.is_file() else {}))


def chinese(text: str) -> str:
    """Return Chinese text in its normal form."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = _spelled_out(_simplified()(text))
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LNM")


def _squeezed(function: Callable[[str], str]) -> Callable[[str], str]:
    return cache(lambda text: " ".join(function(text).split()))


@cache
def _simplified() -> Callable[[str], str]:
    from opencc import OpenCC

    return OpenCC("t2s").convert


def _spelled_out(text: str) -> str:
    """Return the text with numbers in digits as they are read: 2024年 二零二四年, 12.5 十二点五, 30% 百分之三十."""
    import cn2an

    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"\d{4}(?=年)", lambda match: cn2an.an2cn(match[0], "direct"), text)
    return re.sub(r"(\d+(?:\.\d+)?)(%?)", lambda match: _number(match[1], match[2]), text)


def _number(digits: str, percent: str) -> str:
    import cn2an

    whole = digits.partition(".")[0]
    if len(whole) > 16 or (len(whole) > 1 and whole[0] == "0"):  # an identifier: read digit by digit
        spoken = cn2an.an2cn(whole, "direct") if len(whole) < 17 else "".join(cn2an.an2cn(digit) for digit in whole)
        spoken += digits[len(whole) :]
    else:
        spoken = cn2an.an2cn(digits)
    return f"百分之{spoken}" if percent else spoken
