"""How the report says things: numbers with as many digits as they deserve, and what was found, in sentences.

The sentences follow from the numbers alone and claim no more than them. Names stand in backticks.
"""

import argparse
import math
import shlex
from dataclasses import dataclass

from quantune.report import Change, Report, Variant

TOLERANCE = 0.01  # a loss of perplexity that most uses would not notice; said beside significance, which sees any loss
HUGE = 1e6  # from here on numbers are written with an exponent: the variant is broken, and digits say no more
SPELLED_OUT = 3  # fine-tunings told one by one; of more, those that gained most


@dataclass(frozen=True)
class Finding:
    """One thing that was found: a heading and its sentences."""

    heading: str
    sentences: list[str]


def size(count: float) -> str:
    """Return bytes in a decimal unit, with three digits: `3.88 MB`."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = next((power for power in range(len(units) - 1) if count < 1000 ** (power + 1)), len(units) - 1)
    value = count / 1000**power
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {units[power]}" if power else f"{value:.0f} bytes"


def number(value: float, error: float = math.nan) -> str:
    """Return a value with the digits that its standard error leaves it: two of the error's, or four without one."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value >= HUGE:
        return f"{value:.3g}"
    return f"{value:,.{_decimals(error if error > 0 else abs(value) / 100)}f}"


def measured(value: float, error: float) -> str:
    """Return a value and its standard error: `125.5 ± 4.1`."""
    return f"{number(value, error)} ± {number(error, error)}" if math.isfinite(error) else number(value)


def percent(change: Change) -> str:
    """Return a change in per cent, to the digits that its interval leaves it: `+1.9 %`."""
    return f"{_signed(change.change, change)} %"


def interval(change: Change) -> str:
    """Return the 95 % interval in per cent: `+0.4 to +3.5 %`."""
    if not math.isfinite(change.low):
        return "only one window: no interval"
    return f"{_signed(change.low, change)} to {_signed(change.high, change)} %"


def p_value(value: float) -> str:
    """Return a p-value: `p = 0.03`, `p < 0.001`."""
    if math.isnan(value):
        return "p unknown"
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.2g}"


def evidence(change: Change) -> str:
    """Return a change with its interval: `+1.9 % (95 % interval +0.4 to +3.5 %)`."""
    if math.isclose(change.low, change.high, rel_tol=1e-9):
        return f"{percent(change)} (the same in every window)"
    prefix = "95 % interval " if math.isfinite(change.low) else ""
    return f"{percent(change)} ({prefix}{interval(change)})"


def listing(items: list[str], word: str = "and") -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def plural(count: int, noun: str) -> str:
    """Return a count and its noun: `1 variant`, `12 variants`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def again(path: str, command: str) -> str:
    """Return the command that makes an artefact, with the configuration that a Snakemake command line named."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[])
    parser.add_argument("--config", "-C", nargs="+", action="extend", default=[])
    named, _ = parser.parse_known_args(shlex.split(command)[1:])
    options = [word for key, values in vars(named).items() if values for word in (f"--{key}", *values)]
    return shlex.join(["snakemake", path, *options])


def findings(report: Report) -> list[Finding]:
    """Return what was found, the most useful for deciding first."""
    found = [_scope(report)]
    if report.named("perplexity"):
        for model in report.models:
            found += _smallest(report, report.variants[model])
        found += [*_finetuning(report), *_quantizing(report), *_calibrating(report)]
    return [*found, *_warnings(report)]


def _scope(report: Report) -> Finding:
    """Say what was compared, on what."""
    asked = sum(variant.listed for variant in report.variants.values())
    ancestors = len(report.variants) - asked
    names = listing([f"`{name}`" for name in report.models])
    what = f"{plural(asked, 'variant')} of {names}" + (
        f" (and {plural(ancestors, 'ancestor')}, to measure each step against)" if ancestors else ""
    )
    evaluations = report.named("perplexity")
    if not evaluations:
        return Finding("Compared", [f"{what}. No perplexity was evaluated, so nothing is said here about quality."])
    first = next(iter(report.variants.values()))
    sets = [_set(report, name, first) for name in evaluations]
    sentences = [f"{what}, by how well each predicts {listing(sets)}. Perplexity: lower is better."]
    if len(report.variants) == 1:
        scores = [f"{measured(*_perplexity(first, name))} on {name}" for name in evaluations]
        sentences.append(f"`{first.name}` alone: perplexity {listing(scores)}. There is nothing to compare it with.")
    if len(report.models) > 1:
        sentences.append(
            "Where models cut text into different tokens, their perplexities do not compare: use bits per byte."
        )
    return Finding("Compared", sentences)


def _set(report: Report, name: str, variant: Variant) -> str:
    general = ", general text" if report.evaluations[name].get("general") else ""
    return f"{name} ({variant.scores[name].numbers['words']:,} words{general})"


def _perplexity(variant: Variant, evaluation: str) -> tuple[float, float]:
    numbers = variant.scores[evaluation].numbers
    return numbers["token_perplexity"], numbers["token_perplexity_error"]


def _smallest(report: Report, root: Variant) -> list[Finding]:
    """Say which variants of a model are smallest without a loss, evaluation by evaluation and on all together."""
    evaluations = report.named("perplexity")
    asked = [item for item in report.variants.values() if item.listed and root.name in item.ancestors]
    smaller = sorted((item for item in asked if item.size_bytes < root.size_bytes), key=lambda item: item.size_bytes)
    heading = f"Smallest without a significant loss against `{root.name}` ({size(root.size_bytes)})"
    if not asked:
        return []
    if not smaller:
        return [Finding(heading, ["No variant asked for is smaller than the model itself."])]

    sentences = []
    for name in evaluations:
        best = next((item for item in smaller if unharmed(item, [name])), None)
        change = f": perplexity {evidence(best.scores[name].from_root)}" if best else ""
        sentences.append(f"On {name}, {_sized(best, root)}{change}.")
    if len(evaluations) > 1:
        best = next((item for item in smaller if unharmed(item, evaluations)), None)
        sentences.append(f"On every evaluation, {_sized(best, root)}.")
    best = next((item for item in smaller if _bounded(item, evaluations)), None)
    where = "every evaluation" if len(evaluations) > 1 else evaluations[0]
    sentences.append(f"With a loss below {100 * TOLERANCE:g} % on {where}, at 95 % confidence, {_sized(best, root)}.")
    return [Finding(heading, sentences)]


def unharmed(variant: Variant, evaluations: list[str]) -> bool:
    """Return whether no evaluation shows a significant loss; false where that cannot be tested."""
    changes = [variant.scores[name].from_root for name in evaluations]
    return all(math.isfinite(change.p_value) and change.verdict != "worse" for change in changes)


def _bounded(variant: Variant, evaluations: list[str]) -> bool:
    """Return whether the whole 95 % interval of every loss lies below the tolerance."""
    return all(variant.scores[name].from_root.high < TOLERANCE for name in evaluations)


def _sized(variant: Variant | None, root: Variant) -> str:
    if variant is None:
        return "none of the smaller variants"
    share = 100 * (1 - variant.size_bytes / root.size_bytes)
    return f"`{variant.name}` ({size(variant.size_bytes)}, {share:.0f} % smaller)"


def _finetuning(report: Report) -> list[Finding]:
    """Say what each fine-tuning gained on its target and cost on general text, against what it was applied to."""
    trained = sorted(report.made_by("finetuning"), key=lambda item: _target_change(report, item))
    sentences = []
    for variant in trained[:SPELLED_OUT]:
        target_first = sorted(variant.scores, key=lambda name: report.role(variant, name) != "target")
        changes = {name: evidence(variant.scores[name].from_parent) for name in target_first}
        parts = [f"{change} on {_told_role(report, variant, name)}" for name, change in changes.items()]
        sentences.append(f"`{variant.name}` against `{variant.parent}`: perplexity {listing(parts)}.")
    if len(trained) > SPELLED_OUT:
        rest = len(trained) - SPELLED_OUT
        sentences.append(f"These gained most on what they were trained on; {plural(rest, 'other')} below.")
    return [Finding("What fine-tuning changed", sentences)] if sentences else []


def _target_change(report: Report, variant: Variant) -> float:
    """Return the best change on what the variant was trained on; infinity if that was not evaluated."""
    targets = [name for name in variant.scores if report.role(variant, name) == "target"]
    return min((variant.scores[name].from_parent.change for name in targets), default=math.inf)


def _told_role(report: Report, variant: Variant, evaluation: str) -> str:
    told = {"target": "its target domain ({})", "general": "general text ({})", "other": "{}"}
    return told[report.role(variant, evaluation)].format(evaluation)


def _quantizing(report: Report) -> list[Finding]:
    """Say the least and the most that quantizing cost, each against what was quantized."""
    quantized, sentences = report.made_by("quantization"), []
    for name in report.named("perplexity") if quantized else []:
        ranked = sorted(quantized, key=lambda item: item.scores[name].from_parent.change)
        told = [f"{evidence(item.scores[name].from_parent)} with `{item.name}`" for item in ranked]
        sentences.append(f"On {name}, perplexity {f'from {told[0]} to {told[-1]}' if len(told) > 1 else told[0]}.")
    return [Finding("What quantizing changed", sentences)] if sentences else []


def _calibrating(report: Report) -> list[Finding]:
    """Say what calibration bought: each calibrated variant against rounding to nearest on the same grid."""
    sentences = []
    for name in report.named("perplexity"):
        told = {
            variant.name: variant.scores[name].from_rounding
            for variant in report.made_by("quantization")
            if variant.scores[name].from_rounding
        }
        pairs = [f"{evidence(change)} with `{item}` instead of `{change.against}`" for item, change in told.items()]
        if pairs:
            sentences.append(f"On {name}, perplexity {listing(pairs)}.")
    return [Finding("What calibrating changed", sentences)] if sentences else []


def _warnings(report: Report) -> list[Finding]:
    """Repeat what the quantization jobs warned about."""
    told: dict[str, list[str]] = {}
    for variant in report.variants.values():
        for warning in variant.facts.get("calibration", {}).get("warnings", []):
            told.setdefault(warning, []).append(f"`{variant.name}`")
    return [Finding("Warnings", [f"{listing(names)}: {warning}." for warning, names in told.items()])] if told else []


def _signed(value: float, change: Change) -> str:
    """Return a share in per cent with its sign, rounded as the change's interval allows."""
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
