"""Numbers, changes, speeds and commands in words. Names stand in backticks."""

import argparse
import math
import re
import shlex
from dataclasses import replace

from quantune.core import units
from quantune.core.errors import printable
from quantune.report.scores import Change, Score
from quantune.report.speed import Performance, Speed

HUGE = 1e6  # from here on numbers are written with an exponent: the variant is broken, and digits say no more
NAN = "not a number"
TOO_FEW = "too few {}s for an interval"
HEADS = {
    "text": {"prefill": "Prefill", "decode": "Decode"},
    "speech": {"transcribe": "RTF", "encode": "Encode, s", "decode": "Decode, tokens/s"},
}
"""Track -> phase -> head of its column."""


def number(value: float, error: float = math.nan) -> str:
    """Return a value with the digits that its standard error leaves it: two of the error's, or four without one."""
    if not math.isfinite(value):
        return NAN if math.isnan(value) else "∞"
    if value >= HUGE:
        return f"{value:.3g}"
    return f"{value:,.{_decimals(error if error > 0 else abs(value) / 100)}f}"


def measured(value: float, error: float) -> str:
    """Return a value and its standard error: `125.5 ± 4.1`."""
    return f"{number(value, error)} ± {number(error, error)}" if math.isfinite(error) else number(value)


def scored(score: Score, key: str | None = None) -> str:
    """Return a number of a score, by default the leading one, to the digits of its interval: `125.5`, `40.4 %`."""
    key, scale = key or score.metric.key, score.metric.scale
    text = number(scale * score.numbers[key], scale * score.numbers[f"{key}_error"])
    return text if scale == 1 or text == NAN else f"{text} %"


def between(score: Score, key: str | None = None) -> str:
    """Return the 95 % interval of a number of a score: `117.5 to 134.0`; why there is none, if there is none; empty if
    the number is not finite.
    """
    key, scale = key or score.metric.key, score.metric.scale
    low, high, error = (scale * score.numbers[f"{key}_{end}"] for end in ("low", "high", "error"))
    if not math.isfinite(low):
        return TOO_FEW.format(score.metric.item) if math.isfinite(score.numbers[key]) else ""
    return f"{number(low, error)} to {number(high, error)}"


def with_interval(score: Score, key: str | None = None) -> str:
    """Return a number and its interval: `125.5 (95 % interval 117.5 to 134.0)`."""
    if not (ends := between(score, key)):
        return scored(score, key)
    known = math.isfinite(score.numbers[f"{key or score.metric.key}_low"])
    return f"{scored(score, key)} ({'95 % interval ' if known else ''}{ends})"


def changed(change: Change) -> str:
    """Return a change to the digits that its interval leaves it: `+1.9 %` of perplexity, `+1.9 points` of a rate."""
    return NAN if math.isnan(change.change) else f"{_signed(change.change, change)} {change.metric.unit}"


def interval(change: Change) -> str:
    """Return the 95 % interval in the unit of the change: `+0.4 to +3.5 %`."""
    if math.isnan(change.change):
        return NAN
    if not math.isfinite(change.low):
        return TOO_FEW.format(change.metric.item)
    return f"{_signed(change.low, change)} to {_signed(change.high, change)} {change.metric.unit}"


def p_value(value: float) -> str:
    """Return a p-value: `p = 0.03`, `p < 0.001`."""
    if math.isnan(value):
        return "p unknown"
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.2g}"


def evidence(change: Change) -> str:
    """Return a change with its interval: `+1.9 % (95 % interval +0.4 to +3.5 %)`."""
    if math.isnan(change.change):
        return NAN
    same, rare = f"the same in every {change.metric.item}", change.estimate and change.estimate.rare
    if math.isclose(change.low, change.high, rel_tol=1e-9, abs_tol=1e-15):
        return f"{changed(change)} ({same})"
    if rare and not rare.count:
        return f"unchanged ({same}; 95 % interval {interval(change)})"
    prefix = "95 % interval " if math.isfinite(change.low) else ""
    differ = ""
    if rare:
        verb = "differs" if rare.count == 1 else "differ"
        differ = f"; only {rare.count} of {units.plural(rare.items, change.metric.item)} {verb}"
    return f"{changed(change)} ({prefix}{interval(change)}{differ})"


def briefly(change: Change) -> str:
    """Return a change with the ends of its interval: `+1.9 % (+0.4 to +3.5 %)`."""
    if math.isnan(change.change):
        return NAN
    rare = change.estimate and change.estimate.rare
    if rare and not rare.count:
        return f"unchanged ({interval(change)})"
    return f"{changed(change)} ({interval(change)})"


def probability(change: Change) -> str:
    """Return the p-value of a change among all that are compared: `p = 0.03 (of 5 compared)`."""
    text = p_value(change.p_in_family)
    return f"{text} (of {change.family} compared)" if change.family > 1 and math.isfinite(change.p_in_family) else text


def tolerance(change: Change) -> str:
    """Return the loss that counts as none: `1 %`, `1 point`, `0.5 points`."""
    value = 100 * change.tolerance
    return f"{value:g} %" if change.metric.relative else f"{value:g} {'point' if value == 1 else 'points'}"


def allowed(loss: float, changes: list[Change]) -> str:
    """Return a limit of a loss in the units of the changes: `1 %`, `1 point`, `1 % or 1 point`."""
    by_unit = {change.metric.relative: tolerance(replace(change, tolerance=loss)) for change in changes}
    return listing([by_unit[relative] for relative in (True, False) if relative in by_unit], "or")


def rounded(count: int) -> int:
    """Return a count to two digits."""
    return int(float(f"{count:.1e}"))


def labelled(change: Change) -> str:
    """Return a metric and its change: `WER +1.9 points (95 % interval +0.4 to +3.5 points)`."""
    return f"{change.metric.label} {evidence(change)}"


def drawn(sampling: dict[str, float | None] | None) -> str:
    """Return how tokens were drawn: `temperature 0.8, the 50 likeliest tokens, seed 1`; empty for greedy decoding."""
    if not sampling:
        return ""
    texts = [f"temperature {sampling['temperature']:g}"]
    texts += [f"the {sampling['top_k']} likeliest tokens"] if sampling["top_k"] else []
    texts += [f"top-p {sampling['top_p']:g}"] if sampling["top_p"] < 1 else []
    return ", ".join([*texts, f"seed {sampling['seed']}"])


def listing(items: list[str], word: str = "and") -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def digits(value: float) -> str:
    """Return a rate with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def span(speed: Speed) -> str:
    """Return the least and the largest of the repeats: `125 to 140`."""
    return f"{digits(speed.low)} to {digits(speed.high)}"


def rate(speed: Speed) -> str:
    """Return a speed without its unit, with the range of its repeats: `131 (125 to 140)`."""
    return f"{digits(speed.median)} ({span(speed)})"


def speed(item: Speed) -> str:
    """Return a speed: `131 (125 to 140) tokens/s`, `real-time factor 0.0121 (0.012 to 0.0125)`."""
    return item.quantity.form.format(rate(item))


def of_length(item: Performance, length: int | None = None, phase: str = "") -> str:
    """Return the content of a batch: `prompt of 512 tokens`, `windows of 30 s`, and in the phases that make tokens of
    them `windows of 30 s, 128 tokens each`.
    """
    length = item.length if length is None else length
    if item.track == "text":
        return f"prompt of {length} tokens"
    windows = f"windows of {length} s"
    return f"{windows}, {item.new_tokens} tokens each" if phase in ("decode", "transcribe") else windows


def performance(item: Performance) -> dict[str, str]:
    """Return the numbers of a benchmark: name -> text."""
    texts = {"memory after loading": units.size(item.loaded_bytes), "memory in use": units.size(item.running_bytes)}
    for (phase, batch, length), one in item.speeds.items():
        parts = [f"{speed(one)} over {one.repeats} repeats", f"peak {units.size(one.peak_bytes)}"]
        energy = f"J a {one.quantity.energy}".replace("audio_second", "second of audio")
        parts += [f"{one.joules:.3g} {energy}"] if one.joules is not None else []
        parts += [f"decoder: {item.decoders[batch, length]}"] if phase == "decode" else []
        texts[f"{phase}, batch {batch}, {of_length(item, length, phase)}"] = ", ".join(parts)
    texts |= {f"batch {batch}, {of_length(item, length)}": "did not fit into memory" for batch, length in item.unfit}
    return texts | {"measured on": item.machine, "dtype": item.dtype}


def again(path: str, command: str, commit: str = "") -> str:
    """Return the command that makes an artefact, with the configuration that a Snakemake command line named.

    It begins with a checkout of the commit, unless there were uncommitted changes (`-dirty`). Path and commit may be
    from outside: every word is quoted, a path is never an option, and only a commit's number is checked out.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[])
    parser.add_argument("--config", "-C", nargs="+", action="extend", default=[])
    named, _ = parser.parse_known_args(shlex.split(command)[1:])
    options = [word for key, values in vars(named).items() if values for word in (f"--{key}", *values)]
    checkout = f"git checkout {commit} && " if re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""
    target = f"./{path}" if path.startswith("-") else path
    return checkout + printable(shlex.join(["snakemake", target, *options]))


def quoted(command: str) -> str:
    """Return a recorded command line with every word quoted: pasted into a shell, it starts one program."""
    try:
        return printable(shlex.join(shlex.split(command)))
    except ValueError:
        return printable(shlex.quote(command))


def _signed(value: float, change: Change) -> str:
    """Return a share, times 100, with its sign, rounded as the change's interval allows."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if 100 * value >= HUGE:
        return f"{100 * value:+.3g}"
    width = 50 * (change.high - change.low)
    decimals = _decimals(width if width > 0 else abs(100 * change.change) / 100)
    return f"{100 * value:+,.{decimals}f}".replace("-", "−")


def _decimals(error: float) -> int:
    """Return how many decimals show two digits of an error, four at most."""
    return min(4, max(0, 1 - math.floor(math.log10(error)))) if math.isfinite(error) and error > 0 else 1
