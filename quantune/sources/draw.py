"""A random order that does not depend on the version of a library, and shares drawn in it."""

import hashlib
from typing import Any

from quantune.core.errors import QuantuneError


def order(count: int, seed: int) -> list[int]:
    """Return the numbers from 0 to count - 1 in the order of SHA-256 over "seed:number"."""
    return _order(count, seed).tolist()


def shares(count: int, parts: dict[str, float], seed: int) -> dict[str, Any]:
    """Return split -> the numbers of its share, ascending, int64: taken from the order that `order` returns."""
    import numpy

    numbers = _order(count, seed)
    drawn, begin, share = {}, 0, 0.0
    for split, part in parts.items():
        share += part
        end = round(share * count)
        drawn[split] = numpy.sort(numbers[begin:end])
        begin = end
    return drawn


def sample(count: int, size: int, seed: int, split: str) -> Any:
    """Return the first numbers of the order that `order` returns, ascending, int64.

    Raises:
        QuantuneError: if there are fewer; it names the split.
    """
    import numpy

    if size > count:
        raise QuantuneError(f"sample.{split}: {size:,} are more than the split has; allowed: up to {count:,}")
    return numpy.sort(_order(count, seed)[:size])


def _order(count: int, seed: int) -> Any:
    """Return the order of `order` as an array, int64."""
    import numpy

    hashed = (hashlib.sha256(f"{seed}:{number}".encode()).digest() for number in range(count))
    digests = numpy.fromiter(hashed, "S32", count)  # no list of them in memory
    return numpy.lexsort(digests.view(">u8").reshape(count, 4).T[::-1])


def divide(items: list, parts: dict[str, float], seed: int) -> dict[str, list]:
    """Return split -> its share of the items, in their order; drawn with the seed."""
    return {split: [items[at] for at in numbers] for split, numbers in shares(len(items), parts, seed).items()}
