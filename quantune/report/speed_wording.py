"""What the benchmarks found, in sentences: claims only what the repeats tell apart."""

from quantune.core import units
from quantune.report import wording
from quantune.report.gather import Report, Variant
from quantune.report.speed import Performance, Speed

VERBS = {
    "prefill": "Reading the prompt",
    "encode": "Encoding",
    "decode": "Decoding",
    "transcribe": "Transcribing",
}
HEADS = {
    "text": {"prefill": "Prefill", "decode": "Decode"},
    "speech": {"transcribe": "RTF", "encode": "Encode, s", "decode": "Decode, tokens/s"},
}
"""Track -> phase -> head of its column."""
STEADY = 0.25  # largest spread of repeats, over their median, at which speeds are compared


def findings(report: Report) -> list[wording.Finding]:
    """Return what was found about memory and speed; nothing without benchmarks."""
    found = []
    for model in report.models:
        measured = {item.name: item for item in report.variants.values() if item.performance and item.model == model}
        if model in measured:
            found.append(_of_model(report, measured.pop(model), list(measured.values())))
    return found


def rate(speed: Speed) -> str:
    """Return a speed without its unit: `131 (125 to 140)`, the range that of the repeats."""
    return f"{digits(speed.median)} ({span(speed)})"


def told(speed: Speed) -> str:
    """Return a speed: `131 (125 to 140) tokens/s`, `real-time factor 0.0121 (0.012 to 0.0125)`."""
    return speed.quantity.form.format(rate(speed))


def span(speed: Speed) -> str:
    """Return the least and the largest of the repeats: `125 to 140`."""
    return f"{digits(speed.low)} to {digits(speed.high)}"


def of_length(item: Performance, length: int | None = None, phase: str = "") -> str:
    """Return what a batch is made of: `prompt of 512 tokens`, `windows of 30 s`, and in the phases that make tokens of
    them `windows of 30 s, 128 tokens each`.
    """
    length = item.length if length is None else length
    if item.track == "text":
        return f"prompt of {length} tokens"
    windows = f"windows of {length} s"
    return f"{windows}, {item.new_tokens} tokens each" if phase in ("decode", "transcribe") else windows


def numbers(item: Performance) -> dict[str, str]:
    """Return the numbers of a benchmark in words: name -> value."""
    found = {"memory after loading": units.size(item.loaded_bytes), "memory in use": units.size(item.running_bytes)}
    for (phase, batch, length), speed in item.speeds.items():
        parts = [f"{told(speed)} over {speed.repeats} repeats", f"peak {units.size(speed.peak_bytes)}"]
        energy = f"J a {speed.quantity.energy}".replace("audio_second", "second of audio")
        parts += [f"{speed.joules:.3g} {energy}"] if speed.joules is not None else []
        parts += [f"decoder: {item.decoders[batch, length]}"] if phase == "decode" else []
        found[f"{phase}, batch {batch}, {of_length(item, length, phase)}"] = ", ".join(parts)
    found |= {f"batch {batch}, {of_length(item, length)}": "did not fit into memory" for batch, length in item.unfit}
    return found | {"measured on": item.machine, "dtype": item.dtype}


def _of_model(report: Report, model: Variant, others: list[Variant]) -> wording.Finding:
    item = model.performance
    sentences = [_memory(model, others)]
    for batch, speed in item.shown(item.leading).items():
        sentences.append(_fastest(item.leading, batch, speed, model, others))
    for phase in item.phases:
        for batch, speed in list(item.shown(phase).items())[-1:] if phase != item.leading else []:
            sentences.append(_fastest(phase, batch, speed, model, others))
    sentences += _unfit([model, *others])
    evaluations = report.scored(model)
    if evaluations and others and item.shown(item.leading):
        sentences.append(_advice(model, [other for other in others if wording.unharmed(other, evaluations)]))
    return wording.Finding(f"Memory and speed of `{model.name}` and its variants on {item.machine}", sentences)


def _memory(model: Variant, others: list[Variant]) -> str:
    whole = model.performance.running_bytes
    sentence = f"In use, `{model.name}` takes {units.size(whole)} in {model.performance.dtype}"
    least = min(others, key=lambda other: other.performance.running_bytes, default=None)
    if least is None:
        return f"{sentence}."
    if least.performance.running_bytes >= whole:
        return f"{sentence}; no variant takes less, whatever its size on disk."
    share = 100 * (1 - least.performance.running_bytes / whole)
    least_told = f"`{least.name}` takes least, {units.size(least.performance.running_bytes)} ({share:.0f} % less)"
    return f"{sentence}; {least_told}."


def _unfit(variants: list[Variant]) -> list[str]:
    """Say at which points of the sweep memory did not suffice, and for which variants."""
    found: dict[tuple[int, int], list[str]] = {}
    for variant in variants:
        for point in variant.performance.unfit:
            found.setdefault(point, []).append(f"`{variant.name}`")
    what = {point: of_length(variants[0].performance, point[1]) for point in found}
    return [
        f"At batch size {point[0]} ({what[point]}), {wording.listing(names)} did not fit into memory."
        for point, names in found.items()
    ]


def _fastest(phase: str, batch: int, own: Speed, model: Variant, others: list[Variant]) -> str:
    """Say which variant is fastest, if its slowest repeat beats the model's fastest."""
    where = f"at batch size {batch} ({of_length(model.performance, phase=phase)})"
    sentence = f"{VERBS[phase]} {where}: `{model.name}` {told(own)}"
    fitting = [other for other in others if batch in other.performance.shown(phase)]
    if not fitting:
        return f"{sentence}."
    best = max(fitting, key=lambda other: other.performance.shown(phase)[batch].times(own))
    speed = best.performance.shown(phase)[batch]
    if max(own.spread, speed.spread) > STEADY:
        return f"{sentence}; repeats differ too much to compare (was something else running?)."
    if faster(speed, own):
        return f"{sentence}; fastest `{best.name}`, {rate(speed)}, {speed.times(own):.2g} times as fast."
    return f"{sentence}; no variant is faster in every repeat."


def _advice(model: Variant, kept: list[Variant]) -> str:
    """Say what takes least memory and what is fastest among the variants that lose no quality."""
    of_them = "Of the variants without a significant loss on any evaluation"
    smaller = [item for item in kept if item.performance.running_bytes < model.performance.running_bytes]
    phase = model.performance.leading
    batch, own = next(iter(model.performance.shown(phase).items()))
    speeds = {
        item.name: item.performance.shown(phase)[batch] for item in kept if batch in item.performance.shown(phase)
    }
    quicker = [name for name, speed in speeds.items() if faster(speed, own)]
    parts = []
    if smaller:
        least = min(smaller, key=lambda item: item.performance.running_bytes)
        parts.append(f"`{least.name}` takes least memory ({units.size(least.performance.running_bytes)})")
    if quicker:
        best = max(quicker, key=lambda name: speeds[name].times(own))
        parts.append(f"`{best}` {phase}s fastest at batch size {batch} ({told(speeds[best])})")
    return (
        f"{of_them}, {wording.listing(parts) if parts else f'none is clearly smaller or faster than `{model.name}`'}."
    )


def faster(one: Speed, other: Speed) -> bool:
    """Return whether every repeat of one beats every repeat of the other, and both are steady."""
    return one.beats(other) and max(one.spread, other.spread) <= STEADY


def digits(value: float) -> str:
    """Return a rate with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
