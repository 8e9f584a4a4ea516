"""Normal forms of transcripts, for comparison: rules for each language, each with a version.

- basic: lower case, no punctuation, no text in brackets; letters keep the marks that are part of their spelling. The
  normalizer of Radford et al., 2022 (arXiv:2212.04356, appendix C) for languages other than English drops such marks or
  puts spaces in their place, so the rates of this one can be higher than published ones.
- unspaced: basic, without spaces; for languages that put none between words.
- english: that of the paper's appendix, from transformers: also contractions, numbers and titles in one form.
- chinese: unspaced, traditional characters folded into simplified ones (OpenCC), numbers in digits spelled out (cn2an).
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

from quantune.sources.entries import UNSPACED

VERSIONS = {"basic": 2, "unspaced": 1, "english": 1, "chinese": 2}
"""Raised when the meaning of a normalizer changes."""
Name = Literal["basic", "unspaced", "english", "chinese"]
OPTIONAL = re.compile("[\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")
"""Marks that ordinary spelling leaves out: the vowel signs of Arabic and Hebrew, and the stretched line of Arabic."""


def of_language(language: str) -> Name:
    """Return the normalizer of a language."""
    known = {"en": "english", "zh": "chinese", "yue": "chinese"}
    return known.get(language, "unspaced" if language in UNSPACED else "basic")


@cache
def normalizer(name: Name, model: Path) -> Callable[[str], str]:
    """Return a function from a transcript to its normal form; the function caches its results.

    Args:
        name: of the normalizer.
        model: the checkpoint folder, whose `normalizer.json`, if it has one, maps British to American spellings.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    if name != "english":
        return cache({"basic": basic, "unspaced": unspaced, "chinese": chinese}[name])
    spellings = Path(model) / "normalizer.json"
    normal = EnglishTextNormalizer(json.loads(spellings.read_text()) if spellings.is_file() else {})
    return cache(lambda text: " ".join(normal(text).split()))


def basic(text: str) -> str:
    """Return text in its normal form: words of letters with their marks, and digits, separated by single spaces."""
    text = re.sub(r"[<\[][^>\]]*[>\]]|\([^)]+?\)", "", _folded(text))
    return " ".join("".join(_kept(letter) for letter in OPTIONAL.sub("", text)).split())


def unspaced(text: str) -> str:
    """Return text in its normal form, without spaces."""
    return basic(text).replace(" ", "")


def chinese(text: str) -> str:
    """Return Chinese text in its normal form."""
    text = _spelled_out(_simplified()(_folded(text)))
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LNM")


def _folded(text: str) -> str:
    """Return composed letters (NFKC), in lower case, and digits of any script as 0 to 9."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower().replace("i\u0307", "i"))
    return "".join(str(unicodedata.decimal(letter, letter)) for letter in text)


def _kept(letter: str) -> str:
    """Return a letter, mark or digit itself, nothing for an invisible format character, and else a space."""
    kind = unicodedata.category(letter)
    return letter if kind[0] in "LNM" else "" if kind == "Cf" else " "


@cache
def _simplified() -> Callable[[str], str]:
    from opencc import OpenCC

    return OpenCC("t2s").convert


def _spelled_out(text: str) -> str:
    """Return the text with numbers in digits as they are read: 2024年 二零二四年, 12.5 十二点五, 30% 百分之三十."""
    import cn2an

    text = re.sub(r"(?<=\d),(?=\d{3})", "", text, flags=re.ASCII)
    text = re.sub(r"[0-9]{4}(?=年)", lambda match: cn2an.an2cn(match[0], "direct"), text)
    return re.sub(r"([0-9]+(?:\.[0-9]+)?)(%?)", lambda match: _number(match[1], match[2]), text)


def _number(digits: str, percent: str) -> str:
    import cn2an

    whole = digits.partition(".")[0]
    if len(whole) > 16 or (len(whole) > 1 and whole[0] == "0"):  # an identifier: read digit by digit
        spoken = cn2an.an2cn(whole, "direct") if len(whole) < 17 else "".join(cn2an.an2cn(digit) for digit in whole)
        spoken += digits[len(whole) :]
    else:
        spoken = cn2an.an2cn(digits)
    return f"百分之{spoken}" if percent else spoken
