"""A random order that does not depend on the version of a library."""

import hashlib


def order(count: int, seed: int) -> list[int]:
    """Return the numbers from 0 to count - 1 in the order of SHA-256 over "seed:number"."""
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{seed}:{number}".encode()).digest())
