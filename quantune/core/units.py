"""Numbers with units as text, and the bytes of one value of each dtype."""

import math
import re

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
"""Bytes of one value of a dtype."""
UNKNOWN = "–"
SIZES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""Unit -> bytes."""
SHARES = {"%": 0.01}
TIMES = {"µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Unit -> seconds."""


def size(count: float | None) -> str:
    """Return a number of bytes in a decimal unit, with three digits: `3.88 MB`; a dash if it is not known."""
    if count is None:
        return UNKNOWN
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = next((power for power in range(len(units) - 1) if count < 1000 ** (power + 1)), len(units) - 1)
    value = count / 1000**power
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {units[power]}" if power else f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Return a length of time: `1 h 05 min`, `2 min 30 s`, `8.25 s`; a dash if it is not known."""
    if seconds is None:
        return UNKNOWN
    if round(seconds) < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: `1 variant`, `12 variants`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def pattern(units: dict[str, float]) -> str:
    """Return the regular expression of a number with one of the units."""
    return rf"^\s*([0-9]{{1,15}}(?:\.[0-9]{{1,9}})?)\s*({'|'.join(map(re.escape, units))})\s*$"


def parse(text: str, units: dict[str, float]) -> float | None:
    """Return a number with a unit, such as `4 GB`, in the base unit; None if it is not written in this way."""
    match = re.search(pattern(units), text)
    return float(match[1]) * units[match[2]] if match else None
