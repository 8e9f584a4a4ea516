"""What the benchmarks found, in sentences: claims only what the repeats tell apart."""

from quantune import words
from quantune.performance import Performance, Speed
from quantune.report import Report, Variant

STEADY = 0.25  # largest spread of repeats, over their median, at which speeds are compared


def findings(report: Report) -> list[words.Finding]:
    """Return what was found about memory and speed; nothing without benchmarks."""
    found = []
    for model in report.models:
        measured = {item.name: item for item in report.variants.values() if item.performance and item.model == model}
        if model in measured:
            found.append(_of_model(report, measured.pop(model), list(measured.values())))
    return found


def rate(speed: Speed) -> str:
    """Return tokens a second: `131 (125 to 140)`, the range that of the repeats."""
    return f"{digits(speed.median)} ({span(speed)})"


def span(speed: Speed) -> str:
    """Return the slowest and the fastest repeat: `125 to 140`."""
    return f"{digits(speed.low)} to {digits(speed.high)}"


def numbers(item: Performance) -> dict[str, str]:
    """Return the numbers of a benchmark in words: name -> value."""
    told = {"memory after loading": words.size(item.loaded_bytes), "memory in use": words.size(item.running_bytes)}
    for (phase, batch, length), speed in item.speeds.items():
        name = f"{phase}, batch {batch}, prompt {length}"
        parts = [f"{rate(speed)} tokens/s over {speed.repeats} repeats", f"peak {words.size(speed.peak_bytes)}"]
        parts += [f"{speed.joules_per_token:.3g} J a token"] if speed.joules_per_token is not None else []
        parts += [f"decoder: {item.decoders[batch, length]}"] if phase == "decode" else []
        told[name] = ", ".join(parts)
    told |= {f"batch {batch}, prompt {length}": "did not fit into memory" for batch, length in item.unfit}
    return told | {"measured on": item.machine, "dtype": item.dtype}


def _of_model(report: Report, model: Variant, others: list[Variant]) -> words.Finding:
    item = model.performance
    sentences = [_memory(model, others)]
    for batch, speed in item.shown("decode").items():
        sentences.append(_fastest("decode", batch, speed, model, others))
    for batch, speed in list(item.shown("prefill").items())[-1:]:
        sentences.append(_fastest("prefill", batch, speed, model, others))
    sentences += _unfit([model, *others])
    evaluations = report.scored(model)
    if evaluations and others and item.shown("decode"):
        sentences.append(_advice(model, [other for other in others if words.unharmed(other, evaluations)]))
    return words.Finding(f"Memory and speed of `{model.name}` and its variants on {item.machine}", sentences)


def _memory(model: Variant, others: list[Variant]) -> str:
    whole = model.performance.running_bytes
    told = f"In use, `{model.name}` takes {words.size(whole)} in {model.performance.dtype}"
    least = min(others, key=lambda other: other.performance.running_bytes, default=None)
    if least is None:
        return f"{told}."
    if least.performance.running_bytes >= whole:
        return f"{told}; no variant takes less, whatever its size on disk."
    share = 100 * (1 - least.performance.running_bytes / whole)
    least_told = f"`{least.name}` takes least, {words.size(least.performance.running_bytes)} ({share:.0f} % less)"
    return f"{told}; {least_told}."


def _unfit(variants: list[Variant]) -> list[str]:
    """Say at which points of the sweep memory did not suffice, and for which variants."""
    told: dict[tuple[int, int], list[str]] = {}
    for variant in variants:
        for point in variant.performance.unfit:
            told.setdefault(point, []).append(f"`{variant.name}`")
    return [
        f"At batch size {batch} with a prompt of {length} tokens, {words.listing(names)} did not fit into memory."
        for (batch, length), names in told.items()
    ]


def _fastest(phase: str, batch: int, own: Speed, model: Variant, others: list[Variant]) -> str:
    """Say which variant is fastest, if its slowest repeat beats the model's fastest."""
    verb = {"decode": "Decoding", "prefill": "Reading the prompt"}[phase]
    where = f"at batch size {batch} (prompt of {model.performance.prompt} tokens)"
    told = f"{verb} {where}: `{model.name}` {rate(own)} tokens/s"
    fitting = [other for other in others if batch in other.performance.shown(phase)]
    best = max(fitting, key=lambda other: other.performance.shown(phase)[batch].median, default=None)
    if best is None:
        return f"{told}."
    speed = best.performance.shown(phase)[batch]
    if max(own.spread, speed.spread) > STEADY:
        return f"{told}; repeats differ too much to compare (was something else running?)."
    if faster(speed, own):
        return f"{told}; fastest `{best.name}`, {rate(speed)}, {speed.median / own.median:.2g} times as fast."
    return f"{told}; no variant is faster in every repeat."


def _advice(model: Variant, kept: list[Variant]) -> str:
    """Say what takes least memory and what decodes fastest among the variants that lose no quality."""
    of_them = "Of the variants without a significant loss on any evaluation"
    smaller = [item for item in kept if item.performance.running_bytes < model.performance.running_bytes]
    batch, own = next(iter(model.performance.shown("decode").items()))
    fitting = [item for item in kept if batch in item.performance.shown("decode")]
    quicker = [item for item in fitting if faster(item.performance.shown("decode")[batch], own)]
    parts = []
    if smaller:
        least = min(smaller, key=lambda item: item.performance.running_bytes)
        parts.append(f"`{least.name}` takes least memory ({words.size(least.performance.running_bytes)})")
    if quicker:
        best = max(quicker, key=lambda item: item.performance.shown("decode")[batch].median)
        told = rate(best.performance.shown("decode")[batch])
        parts.append(f"`{best.name}` decodes fastest at batch size {batch} ({told} tokens/s)")
    return f"{of_them}, {words.listing(parts) if parts else f'none is clearly smaller or faster than `{model.name}`'}."


def faster(one: Speed, other: Speed) -> bool:
    """Return whether every repeat of one beats every repeat of the other, and both are steady."""
    return one.low > other.high and max(one.spread, other.spread) <= STEADY


def digits(value: float) -> str:
    """Return a rate with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
