"""The findings that open the report: sentences over decisions, the most useful for deciding first."""

import math
from dataclasses import dataclass

from quantune.core.units import plural, size
from quantune.report import comparisons, decisions, losses
from quantune.report.decisions import Advice, Comparisons, Fastest, Gain, Lightest, Performances
from quantune.report.gather import Report, VariantResult
from quantune.report.losses import Smallest
from quantune.report.scores import Change
from quantune.report.wording import (
    digits,
    evidence,
    labelled,
    listing,
    of_length,
    rate,
    rounded,
    speed,
    tolerance,
    with_interval,
)

VERBS = {
    "prefill": "Reading the prompt",
    "encode": "Encoding",
    "decode": "Decoding",
    "transcribe": "Transcribing",
}


@dataclass(frozen=True)
class Finding:
    """A heading and its sentences."""

    heading: str
    sentences: list[str]


def findings(report: Report) -> list[Finding]:
    """Return all findings."""
    quality = [*_smallest(report), *_finetuning(report), *_quantizing(report), *_calibrating(report), *_seeds(report)]
    return [_scope(report), *(quality if report.scored() else []), *_warnings(report), *performance(report)]


def performance(report: Report) -> list[Finding]:
    """Return the findings about memory and speed; none without benchmarks."""
    return [_performance(item) for item in decisions.performances(report)]


def _scope(report: Report) -> Finding:
    """Say which variants were compared, and on which data."""
    listed = sum(variant.listed for variant in report.variants.values())
    ancestors = len(report.variants) - listed
    names = listing([f"`{name}`" for name in report.models])
    variants = f"{plural(listed, 'variant')} of {names}" + (
        f" (and {plural(ancestors, 'ancestor')}, to measure each step against)" if ancestors else ""
    )
    pickled = {name: [*report.variants[name].facts.get("converted", {}).get("files", ())] for name in report.models}
    converted = [
        f"The weights of `{name}` were pickled ({files[0] if len(files) == 1 else plural(len(files), 'file')}); "
        "they were converted to safetensors."
        for name, files in pickled.items()
        if files
    ]
    formats = {name: report.variants[name].facts.get("repacked", {}).get("format") for name in report.models}
    converted += [
        f"The weights of `{name}` came in the format {form}; they were repacked, with the same values."
        for name, form in formats.items()
        if form
    ]
    dense = {name: report.variants[name].facts.get("dequantized", {}) for name in report.models}
    converted += [
        f"The weights of `{name}` came in a GGUF file ({listing(list(facts['types']))}); they were dequantized into "
        f"{facts['dtype']}."
        for name, facts in dense.items()
        if facts
    ]
    if not report.scored():
        nothing = f"{variants}. Nothing was evaluated, so nothing is said here about quality."
        return Finding("Compared", [nothing, *converted])
    metrics = {name: report.metric(name) for name in report.scored()}
    purposes = dict.fromkeys((metric.purpose, metric.domain) for metric in metrics.values())
    by, notes = [], []
    for purpose, domain in purposes:
        own = {name: item for name, item in metrics.items() if (item.purpose, item.domain) == (purpose, domain)}
        by.append(f"by how well each {purpose} {listing([_data(report, name) for name in own])}")
        labels = listing(list(dict.fromkeys(item.label for item in own.values())))
        notes.append(f"{labels[0].upper()}{labels[1:]}: {next(iter(own.values())).note}.")
    sentences = [" ".join([f"{variants}, {listing(by)}.", *notes]), *converted]
    if len(report.variants) == 1:
        (first,) = report.variants.values()
        numbers = [f"{score.metric.label} {with_interval(score)} on {name}" for name, score in first.scores.items()]
        sentences.append(f"`{first.name}` alone: {listing(numbers)}. There is no variant to compare it with.")
    mixed = [name for name, item in metrics.items() if item.across_models and report.of_several_models(name)]
    if mixed:
        sentences.append(
            "Where models cut text into different tokens, their perplexities do not compare: use bits per byte."
        )
    return Finding("Compared", sentences)


def _data(report: Report, name: str) -> str:
    score, general = report.having(name)[0].scores[name], report.evaluations[name].get("general")
    domain = f", general {score.metric.domain}" if general else ""
    return f"{name} ({score.metric.extent(score.numbers)}{domain})"


def _smallest(report: Report) -> list[Finding]:
    """Say which variants of a model are smallest without a loss."""
    texts = []
    for decided in losses.sizes(report):
        model = decided.model
        heading = f"Smallest without a loss against `{model.name}` ({size(model.size_bytes)})"
        sentences = [sentence for item in decided.smallest for sentence in _smallest_on(item, model)]
        texts.append(
            Finding(heading, sentences if decided.smaller else ["No listed variant is smaller than the model."])
        )
    return texts


def _smallest_on(item: Smallest, model: VariantResult) -> list[str]:
    where = item.evaluations[0] if len(item.evaluations) == 1 else "every evaluation"
    limit = tolerance(item.tolerance) if item.tolerance else ""
    if item.variant:
        share = 100 * (1 - item.variant.size_bytes / model.size_bytes)
        text = f"`{item.variant.name}` ({size(item.variant.size_bytes)}, {share:.0f} % smaller) loses less than {limit}"
        text += "" if len(item.evaluations) > 1 else f": {labelled(item.variant.scores[where].from_root)}"
    else:
        text = f"no smaller variant is shown to lose less than {limit}"
    sentences = [f"On {where}, {text}."]
    if item.unclear and len(item.evaluations) == 1:
        change = item.unclear.scores[where].from_root
        sentences.append(
            f"On {where}, the data cannot tell whether `{item.unclear.name}` ({size(item.unclear.size_bytes)}) loses"
            f" less than {limit}: {labelled(change)}; {_more(item, change)}."
        )
    return sentences


def _more(item: Smallest, change: Change) -> str:
    """Say how much more data would settle what is unclear."""
    unit = change.metric.item
    if not math.isfinite(change.low):
        return change.estimate.method if change.estimate else f"more {unit}s are needed"
    if item.needed is None:
        return f"the loss measured is not below the limit, so more {unit}s are not likely to show that it is"
    now = f" instead of {change.estimate.items:,}" if change.estimate else ""
    return f"about {rounded(item.needed):,} {unit}s{now} would settle it if the loss is as measured"


def _finetuning(report: Report) -> list[Finding]:
    """Say what each fine-tuning gained on its target and cost on general data, against its parent."""
    sentences = []
    for group in decisions.gains(report):
        sentences += [_gain(item) for item in group.shown]
        if group.others:
            other = plural(group.others, "other")
            sentences.append(f"These gained most on the data that they were trained on; {other} below.")
    return [Finding("What fine-tuning changed", sentences)] if sentences else []


def _gain(item: Gain) -> str:
    one_metric = len({change.metric.label for _, _, change in item.changes}) == 1
    forms = {"target": "its target domain ({})", "general": "general {domain} ({})", "other": "{}"}
    parts = []
    for number, (name, role, change) in enumerate(item.changes):
        where = forms[role].format(name, domain=change.metric.domain)
        parts.append(f"{evidence(change) if number and one_metric else labelled(change)} on {where}")
    return f"`{item.variant.name}` against `{item.variant.parent}`: {listing(parts)}."


def _quantizing(report: Report) -> list[Finding]:
    """Say the least and the most that quantizing cost, each against the parent."""
    sentences = []
    for item in decisions.quantizing(report):
        texts = [f"{evidence(change)} with `{variant.name}`" for variant, change in item.changes]
        cost = f"from {texts[0]} to {texts[-1]}" if len(texts) > 1 else texts[0]
        sentences.append(f"On {item.evaluation}, {_label(item)} {cost}.")
    return [Finding("What quantizing changed", sentences)] if sentences else []


def _seeds(report: Report) -> list[Finding]:
    """Say how far seeds spread, apart from the error of the data."""
    sentences = []
    for item in comparisons.seeds(report.variants):
        change = item.variants[0].scores[item.evaluation].from_root
        names = listing([f"`{variant.name}`" for variant in item.variants])
        spread, sampling = (f"{digits(100 * value)} {change.metric.unit}" for value in (item.spread, item.sampling))
        sentences.append(
            f"On {item.evaluation}, {names} differ in their seed alone; {change.metric.label} varies by {spread}"
            f" between them (standard deviation); other {change.metric.item}s would change it by {sampling} (error)."
        )
    return [Finding("How much the seed changes", sentences)] if sentences else []


def _calibrating(report: Report) -> list[Finding]:
    """Say what calibration bought, each against rounding to nearest on the same grid."""
    sentences = []
    for item in decisions.calibrating(report):
        texts = [f"{evidence(it)} with `{variant.name}` instead of `{it.against}`" for variant, it in item.changes]
        sentences.append(f"On {item.evaluation}, {_label(item)} {listing(texts)}.")
    return [Finding("What calibrating changed", sentences)] if sentences else []


def _label(item: Comparisons) -> str:
    return item.changes[0][1].metric.label


def _warnings(report: Report) -> list[Finding]:
    """Repeat the warnings about quantized variants."""
    sentences = [
        f"{listing([f'`{name}`' for name in item.variants])}: {item.text}." for item in decisions.warned(report)
    ]
    return [Finding("Warnings", sentences)] if sentences else []


def _performance(item: Performances) -> Finding:
    own = item.model.performance
    sentences = [_lightest(item.lightest), *map(_fastest, item.fastest)]
    for unfit in item.unfit:
        names = listing([f"`{name}`" for name in unfit.variants])
        where = f"At batch size {unfit.batch} ({of_length(own, unfit.length)})"
        sentences.append(f"{where}, {names} did not fit into memory.")
    sentences += [_advice(item.advice, item.model)] if item.advice else []
    return Finding(f"Memory and speed of `{item.model.name}` and its variants on {own.machine}", sentences)


def _lightest(item: Lightest) -> str:
    own = item.model.performance
    sentence = f"In use, `{item.model.name}` takes {size(own.running_bytes)} in {own.dtype}"
    if item.least is None:
        return f"{sentence}."
    if not item.saves:
        return f"{sentence}; no variant takes less, whatever its size on disk."
    bytes_ = item.least.performance.running_bytes
    share = 100 * (1 - bytes_ / own.running_bytes)
    return f"{sentence}; `{item.least.name}` takes least, {size(bytes_)} ({share:.0f} % less)."


def _fastest(item: Fastest) -> str:
    where = f"at batch size {item.batch} ({of_length(item.model.performance, phase=item.phase)})"
    sentence = f"{VERBS[item.phase]} {where}: `{item.model.name}` {speed(item.speed)}"
    if item.verdict == "alone":
        return f"{sentence}."
    if item.verdict == "unsteady":
        return f"{sentence}; repeats differ too much to compare (was something else running?)."
    if item.verdict == "none":
        return f"{sentence}; no variant is faster in every repeat."
    best = item.best.performance.shown(item.phase)[item.batch]
    return f"{sentence}; fastest `{item.best.name}`, {rate(best)}, {best.times(item.speed):.2g} times as fast."


def _advice(item: Advice, model: VariantResult) -> str:
    parts = []
    if item.lightest:
        memory = size(item.lightest.performance.running_bytes)
        parts.append(f"`{item.lightest.name}` takes least memory ({memory})")
    if item.fastest:
        best = item.fastest.performance.shown(item.phase)[item.batch]
        parts.append(f"`{item.fastest.name}` {item.phase}s fastest at batch size {item.batch} ({speed(best)})")
    best = listing(parts) or f"none is clearly smaller or faster than `{model.name}`"
    return f"Of the variants whose loss is shown to be small on every evaluation, {best}."
