"""Numbers with units as text, and the bytes of one value of each dtype."""

import math

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}
"""Bytes of one value of a dtype."""
UNKNOWN = "–"


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
