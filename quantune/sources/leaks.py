"""Held-out documents that repeat a training document, exactly or nearly.

Documents are compared by 64-bit hashes of their words, so the texts stay on disk. Memory holds the hashes of the
held-out documents' runs of three words; the training documents pass by once. Two different texts get the same hash with
a probability below one in a million, even among millions of documents.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy

NEAR = 0.5  # share of a document's three-word runs, all in one training document, that makes it a near duplicate
RUN = 3  # words in a run
PIECE = 2**20  # characters that are divided into words at once
BATCH = 2**16  # words that are hashed at once
WORD = re.compile(r"[^\W_]+")  # letters and digits, as `str.isalnum` knows them
EDGE = re.compile(r"\s")


def without_leaks(splits: dict[str, Any], how: str) -> dict[str, numpy.ndarray]:
    """Return held-out split -> the numbers of its documents that repeat no training document.

    Args:
        splits: split -> documents, which are iterated over and have a length; "train" is the training split.
        how: "exact" (same letters and digits, case aside) or "near" (also: at least half of the document's three-word
            runs occur in one training document).
    """
    held = {split: texts for split, texts in splits.items() if split != "train"}
    total = sum(map(len, held.values()))
    every = (text for texts in held.values() for text in texts)
    if how == "near":  # an exact repetition has the same runs
        leaks = _near(every, splits["train"], total)
    else:
        keys = numpy.fromiter(map(_key, every), "uint64", total)
        leaks = numpy.isin(keys, numpy.fromiter(map(_key, splits["train"]), "uint64", len(splits["train"])))
    kept, begin = {}, 0
    for split, texts in held.items():
        kept[split] = numpy.flatnonzero(~leaks[begin : begin + len(texts)])
        begin += len(texts)
    return kept


def _words(text: str) -> Iterator[list[str]]:
    """Yield the words of a text, case-folded, piece by piece."""
    begin = 0
    while begin < len(text):
        edge = EDGE.search(text, begin + PIECE)
        end = edge.start() if edge else len(text)
        yield WORD.findall(text[begin:end].casefold())
        begin = end


def _key(text: str) -> int:
    """Return the hash of a text's words; of the text, if it has none."""
    content = hashlib.blake2b(digest_size=8)
    some = False
    for words in filter(None, _words(text)):
        content.update((" ".join(words) + " ").encode())
        some = True
    if not some:
        content.update(text.strip().encode())
    return int.from_bytes(content.digest(), "little")


def _runs(texts: Iterable[str]) -> Iterator[tuple[int, numpy.ndarray]]:
    """Yield the number of each text and the hashes of its runs of three words, each once, ascending, uint64.

    A text of one or two words is one run; so is one without words, which stands for itself.
    """
    words, sizes, first = [], [], 0
    hashes: list[numpy.ndarray] = []

    def hashed() -> Iterator[tuple[int, numpy.ndarray]]:
        every = numpy.concatenate([*hashes, _hashed(words)])
        for number, (end, size) in enumerate(zip(numpy.cumsum(sizes), sizes, strict=True), first):
            yield number, _of_words(every[end - size : end])

    for text in texts:
        size = 0
        for part in _words(text):
            words += part
            size += len(part)
            if len(words) > BATCH:
                hashes.append(_hashed(words))
                words.clear()
        if not size:
            words.append(text.strip())
            size = 1
        sizes.append(size)
        if sum(map(len, hashes)) + len(words) > BATCH:
            yield from hashed()
            first += len(sizes)
            words, sizes, hashes = [], [], []
    if sizes:
        yield from hashed()


def _hashed(words: list[str]) -> numpy.ndarray:
    from pandas.util import hash_array

    return hash_array(numpy.array(words, dtype=object), categorize=False)


def _of_words(words: numpy.ndarray) -> numpy.ndarray:
    """Return the hashes of the runs of a text from the hashes of its words."""
    length = max(1, len(words) - RUN + 1)
    runs = numpy.full(length, min(len(words), RUN), "uint64")
    for place in range(min(len(words), RUN)):
        runs = (runs ^ words[place : place + length]) * numpy.uint64(0x9E3779B97F4A7C15)
        runs ^= runs >> numpy.uint64(29)
    return numpy.unique(runs)


def _near(held: Iterable[str], train: Iterable[str], total: int) -> numpy.ndarray:
    """Return which held-out documents share at least half of their runs with one training document.

    The most common runs of a document, up to half of the number needed, are not looked up, so phrases that many
    documents share cost no time. A document that shares too few of the others cannot share enough of all.
    """
    leaks = numpy.zeros(total, bool)
    parts = [runs for _, runs in _runs(held)]
    if not total:
        return leaks
    sizes = numpy.fromiter(map(len, parts), "int64", total)
    runs, starts = numpy.concatenate(parts), numpy.concatenate([[0], numpy.cumsum(sizes)])
    del parts
    needed = numpy.ceil(NEAR * sizes).astype("int64")
    owner = numpy.repeat(numpy.arange(total, dtype="int32"), sizes)
    looked_up, owners = _rarest(runs, owner, starts, sizes - needed // 2)
    likely = numpy.zeros(2**24, bool)  # by the first bits of a hash: most runs are excluded by one look
    likely[looked_up >> numpy.uint64(40)] = True
    for _, every in _runs(train):
        matches = every[likely[every >> numpy.uint64(40)]]
        begin = numpy.searchsorted(looked_up, matches)
        hit = looked_up[numpy.minimum(begin, len(looked_up) - 1)] == matches
        if not hit.any():
            continue
        begin, end = begin[hit], numpy.searchsorted(looked_up, matches[hit], "right")
        candidates, shared = numpy.unique(owners[_ranges(begin, end - begin)], return_counts=True)
        enough = shared >= needed[candidates] - needed[candidates] // 2
        for document in candidates[enough & ~leaks[candidates]]:
            own = runs[starts[document] : starts[document + 1]]
            places = numpy.minimum(numpy.searchsorted(every, own), len(every) - 1)
            leaks[document] = (every[places] == own).sum() >= needed[document]
    return leaks


def _rarest(
    runs: numpy.ndarray, owner: numpy.ndarray, starts: numpy.ndarray, count: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the `count` rarest runs of each document, ascending, and the document of each."""
    _, places, counts = numpy.unique(runs, return_inverse=True, return_counts=True)
    order = numpy.lexsort((counts[places], owner))
    rank = numpy.arange(len(runs)) - starts[owner]
    chosen = order[rank < count[owner]]
    chosen = chosen[numpy.argsort(runs[chosen])]
    return runs[chosen], owner[chosen]


def _ranges(begin: numpy.ndarray, count: numpy.ndarray) -> numpy.ndarray:
    """Return the indices of several ranges, one after the other."""
    ends = numpy.cumsum(count)
    return numpy.arange(ends[-1]) - numpy.repeat(ends - count - begin, count)
