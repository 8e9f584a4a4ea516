"""How the report says things: numbers with as many digits as they deserve, and what was found, in sentences.

The sentences follow from the numbers alone and claim no more than them. Names stand in backticks.
"""

import argparse
import math
import shlex
from dataclasses import dataclass

from quantune.core.units import duration, plural, size
from quantune.report.gather import Report, Variant
from quantune.report.scores import Change, Measure, Score

TOLERANCE = 0.01  # a loss that most uses would not notice, 1 % of perplexity or 1 point of an error rate; said beside
# significance, which sees any loss
HUGE = 1e6  # from here on numbers are written with an exponent: the variant is broken, and digits say no more
SPELLED_OUT = 3  # fine-tunings told one by one; of more, those that gained most


@dataclass(frozen=True)
class Finding:
    """One thing that was found: a heading and its sentences."""

    heading: str
    sentences: list[str]


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


def scored(score: Score, key: str | None = None) -> str:
    """Return a number of a score, by default the leading one, and its standard error: `125.5 ± 4.1`, `40.4 ± 3.7 %`."""
    key = key or score.measure.key
    value, error = score.numbers[key], score.numbers[f"{key}_error"]
    return measured(value, error) if score.measure.relative else f"{measured(100 * value, 100 * error)} %"


def changed(change: Change) -> str:
    """Return a change to the digits that its interval leaves it: `+1.9 %` of perplexity, `+1.9 points` of a rate."""
    return f"{_signed(change.change, change)} {change.measure.unit}"


def interval(change: Change) -> str:
    """Return the 95 % interval in the unit of the change: `+0.4 to +3.5 %`."""
    if not math.isfinite(change.low):
        return f"only one {change.measure.paired}: no interval"
    return f"{_signed(change.low, change)} to {_signed(change.high, change)} {change.measure.unit}"


def p_value(value: float) -> str:
    """Return a p-value: `p = 0.03`, `p < 0.001`."""
    if math.isnan(value):
        return "p unknown"
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.2g}"


def evidence(change: Change) -> str:
    """Return a change with its interval: `+1.9 % (95 % interval +0.4 to +3.5 %)`."""
    if math.isclose(change.low, change.high, rel_tol=1e-9):
        return f"{changed(change)} (the same in every {change.measure.paired})"
    prefix = "95 % interval " if math.isfinite(change.low) else ""
    return f"{changed(change)} ({prefix}{interval(change)})"


def listing(items: list[str], word: str = "and") -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def again(path: str, command: str, commit: str = "") -> str:
    """Return the command that makes an artefact, with the configuration that a Snakemake command line named.

    It begins with a checkout of the commit, unless there were uncommitted changes (`-dirty`).
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[])
    parser.add_argument("--config", "-C", nargs="+", action="extend", default=[])
    named, _ = parser.parse_known_args(shlex.split(command)[1:])
    options = [word for key, values in vars(named).items() if values for word in (f"--{key}", *values)]
    checkout = f"git checkout {commit} && " if commit and not commit.endswith("-dirty") else ""
    return checkout + shlex.join(["snakemake", path, *options])


def findings(report: Report) -> list[Finding]:
    """Return what was found, the most useful for deciding first."""
    found = [_scope(report)]
    if report.scored():
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
    if not report.scored():
        return Finding("Compared", [f"{what}. No perplexity was evaluated, so nothing is said here about quality."])
    texts, clips = _scored(report, "perplexity"), _scored(report, "transcription")
    how = [f"by how well each predicts {listing([_set(report, name) for name in texts])}"] if texts else []
    how += [f"by how well each writes down {listing([_set(report, name) for name in clips])}"] if clips else []
    rates = listing(list(dict.fromkeys(_measure(report, name).label for name in clips)))
    lower = (["Perplexity: lower is better."] if texts else []) + (
        [f"{rates}, in per cent of what was said: lower is better; changes are in points."] if clips else []
    )
    sentences = [" ".join([f"{what}, {listing(how)}.", *lower])]
    if len(report.variants) == 1:
        (first,) = report.variants.values()
        told = [f"{score.measure.label} {scored(score)} on {name}" for name, score in first.scores.items()]
        sentences.append(f"`{first.name}` alone: {listing(told)}. There is nothing to compare it with.")
    if any(len({item.model for item in report.having(name)}) > 1 for name in texts):
        sentences.append(
            "Where models cut text into different tokens, their perplexities do not compare: use bits per byte."
        )
    return Finding("Compared", sentences)


def _scored(report: Report, kind: str) -> list[str]:
    return [name for name in report.scored() if report.evaluations[name]["kind"] == kind]


def _measure(report: Report, evaluation: str) -> Measure:
    return report.having(evaluation)[0].scores[evaluation].measure


def _set(report: Report, name: str) -> str:
    numbers, general = report.having(name)[0].scores[name].numbers, report.evaluations[name].get("general")
    if "clips" in numbers:
        told = f"{plural(numbers['clips'], 'clip')} in {duration(numbers['seconds'])}"
        return f"{name} ({told}{', general speech' if general else ''})"
    return f"{name} ({numbers['words']:,} words{', general text' if general else ''})"


def _smallest(report: Report, root: Variant) -> list[Finding]:
    """Say which variants of a model are smallest without a loss, evaluation by evaluation and on all together."""
    evaluations = report.scored(root)
    asked = [item for item in report.variants.values() if item.listed and root.name in item.ancestors]
    smaller = sorted((item for item in asked if item.size_bytes < root.size_bytes), key=lambda item: item.size_bytes)
    heading = f"Smallest without a significant loss against `{root.name}` ({size(root.size_bytes)})"
    if not asked or not evaluations:
        return []
    if not smaller:
        return [Finding(heading, ["No variant asked for is smaller than the model itself."])]

    sentences = []
    for name in evaluations:
        best = next((item for item in smaller if unharmed(item, [name])), None)
        change = f": {_labelled(best.scores[name].from_root)}" if best else ""
        sentences.append(f"On {name}, {_sized(best, root)}{change}.")
    if len(evaluations) > 1:
        best = next((item for item in smaller if unharmed(item, evaluations)), None)
        sentences.append(f"On every evaluation, {_sized(best, root)}.")
    best = next((item for item in smaller if _bounded(item, evaluations)), None)
    where = "every evaluation" if len(evaluations) > 1 else evaluations[0]
    relative = root.scores[evaluations[0]].measure.relative
    tolerance = f"{100 * TOLERANCE:g} %" if relative else plural(round(100 * TOLERANCE), "point")
    sentences.append(f"With a loss below {tolerance} on {where}, at 95 % confidence, {_sized(best, root)}.")
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
    sentences = []
    for _, variants in report.groups:
        trained = [variant for variant in variants if variant.kind == "finetuning" and variant.scores]
        trained.sort(key=lambda item: _target_change(report, item))
        for variant in trained[:SPELLED_OUT]:
            target_first = sorted(variant.scores, key=lambda name: report.role(variant, name) != "target")
            changes = [(name, variant.scores[name].from_parent) for name in target_first]
            same = len({change.measure.label for _, change in changes}) == 1
            parts = [
                f"{_labelled(change) if number == 0 or not same else evidence(change)} on"
                f" {_told_role(report, variant, name)}"
                for number, (name, change) in enumerate(changes)
            ]
            sentences.append(f"`{variant.name}` against `{variant.parent}`: {listing(parts)}.")
        if len(trained) > SPELLED_OUT:
            rest = len(trained) - SPELLED_OUT
            sentences.append(f"These gained most on what they were trained on; {plural(rest, 'other')} below.")
    return [Finding("What fine-tuning changed", sentences)] if sentences else []


def _labelled(change: Change) -> str:
    """Return a change with its interval, and what changed: `WER +1.9 points (95 % interval +0.4 to +3.5 points)`."""
    return f"{change.measure.label} {evidence(change)}"


def _target_change(report: Report, variant: Variant) -> float:
    """Return the best change on what the variant was trained on; infinity if that was not evaluated."""
    targets = [name for name in variant.scores if report.role(variant, name) == "target"]
    return min((variant.scores[name].from_parent.change for name in targets), default=math.inf)


def _told_role(report: Report, variant: Variant, evaluation: str) -> str:
    what = "speech" if variant.scores[evaluation].measure.paired == "clip" else "text"
    told = {"target": "its target domain ({})", "general": f"general {what} ({{}})", "other": "{}"}
    return told[report.role(variant, evaluation)].format(evaluation)


def _quantizing(report: Report) -> list[Finding]:
    """Say the least and the most that quantizing cost, each against what was quantized."""
    sentences = []
    for name in report.scored():
        quantized = [item for item in report.having(name) if item.kind == "quantization"]
        ranked = sorted(quantized, key=lambda item: item.scores[name].from_parent.change)
        told = [f"{evidence(item.scores[name].from_parent)} with `{item.name}`" for item in ranked]
        if told:
            label = _measure(report, name).label
            sentences.append(f"On {name}, {label} {f'from {told[0]} to {told[-1]}' if len(told) > 1 else told[0]}.")
    return [Finding("What quantizing changed", sentences)] if sentences else []


def _calibrating(report: Report) -> list[Finding]:
    """Say what calibration bought: each calibrated variant against rounding to nearest on the same grid."""
    sentences = []
    for name in report.scored():
        told = {
            variant.name: variant.scores[name].from_rounding
            for variant in report.having(name)
            if variant.scores[name].from_rounding
        }
        pairs = [f"{evidence(change)} with `{item}` instead of `{change.against}`" for item, change in told.items()]
        if pairs:
            sentences.append(f"On {name}, {_measure(report, name).label} {listing(pairs)}.")
    return [Finding("What calibrating changed", sentences)] if sentences else []


def _warnings(report: Report) -> list[Finding]:
    """Say what is doubtful about calibrations."""
    told: dict[str, list[str]] = {}
    for variant in report.variants.values():
        for warning in report.warnings(variant):
            told.setdefault(warning, []).append(f"`{variant.name}`")
    return [Finding("Warnings", [f"{listing(names)}: {warning}." for warning, names in told.items()])] if told else []


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
