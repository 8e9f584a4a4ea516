"""The answer that opens the report, in words: short templates over `recommendation`."""

import re
from dataclasses import dataclass

from quantune.core.units import duration, plural, size
from quantune.report import recommendation, wording
from quantune.report.gather import Report
from quantune.report.limits import Limits
from quantune.report.recommendation import Answer, Candidate, Choice, Turn
from quantune.report.scores import Change

KINDS = {"peak": "of device memory at its peak", "tensors": "of memory for its tensors", "disk": "on disk"}
WAITS = {"text": "to the next token", "speech": "to the transcripts of a batch"}
NOTES = {
    "shown": "loss shown",
    "measured": "loss measured, not shown",
    "beyond": "measured above the loss limit",
    "over": "over the limits",
}


@dataclass(frozen=True)
class Option:
    """One named choice, where no limits are given."""

    name: str
    variant: str
    text: str


@dataclass(frozen=True)
class AnswerText:
    """An answer in words; names stand in backticks."""

    model: str
    variant: str
    standing: str
    """Of the chosen variant, for the style of its badge."""
    badge: str
    reasons: list[str]
    runner_up: str
    """Empty without one."""
    turns: list[str]
    options: list[Option]
    """Without limits: smallest, balanced, best."""


def in_words(report: Report) -> list[AnswerText]:
    """Return the answers, one for each model."""
    return [_in_words(report, answer) for answer in recommendation.answers(report)]


def limits(report: Report) -> str:
    """Return the limits: `memory 4 MB, loss 1 %`; empty without limits."""
    given = report.limits
    parts = [f"at most {_given(given.memory)}"] if given.memory is not None else []
    parts += [f"a loss below {100 * given.loss:g} %"] if given.loss is not None else []
    parts += [f"at most {_time(given.latency)}"] if given.latency is not None else []
    parts += [f"batch size {given.batch}"] if given.batch is not None and parts else []
    return wording.listing(parts)


def _in_words(report: Report, answer: Answer) -> AnswerText:
    choice = answer.choice
    first = choice.candidate
    if not answer.limits.given:
        return AnswerText(answer.model.name, "", "shown", "", [_no_limits(answer)], "", [], _options(answer))
    changes = list(first.changes.values())
    reasons = [_takes(first, answer), *([_loses(first)] if changes else []), _rule(report, answer)]
    turns = [*_more_data(report, answer), *(_turn(turn, answer) for turn in answer.turns)]
    badge = _badge(answer, choice)
    return AnswerText(
        answer.model.name, first.variant.name, choice.standing, badge, reasons, _runner_up(answer), turns, []
    )


def _badge(answer: Answer, choice: Choice) -> str:
    if choice.standing != "over" and choice.candidate.variant is answer.model:
        return "the model itself"
    return "within the limits" if choice.standing == "shown" and answer.limits.loss is None else NOTES[choice.standing]


def _takes(item: Candidate, answer: Answer) -> str:
    """Say what a variant takes, beside the limits."""
    model, given = answer.model, answer.limits
    if item.taken.memory is None:
        return "Its memory was not measured, or the batch did not fit."
    text = f"It takes {_memory(item)}"
    text += f" (limit {_given(given.memory)})" if given.memory is not None else ""
    if item.variant is not model and item.taken.kind == "disk":
        share = 100 * (1 - item.memory / model.size_bytes)
        text += f", {abs(share):.0f} % {'less' if share >= 0 else 'more'} than `{model.name}`"
    if given.latency is not None and item.taken.slowest is not None:
        wait = WAITS[item.variant.performance.track]
        text += f", and {_time(item.taken.slowest)} {wait} in its slowest repeat (limit {_time(given.latency)})"
    return f"{text}."


def _memory(item: Candidate) -> str:
    return f"{size(item.taken.memory)} {KINDS[item.taken.kind]}"


def _given(bytes_: float) -> str:
    """Return a limit of memory as it is usually written: `4 MB`."""
    return re.sub(r"\.0+ |(?<=\.\d)0 ", " ", size(bytes_))


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)


def _loses(item: Candidate, note: str = "; in brackets 95 % intervals") -> str:
    """Return the changes against the model, each with its interval."""
    parts = [f"{wording.briefly(change)} on {name}" for name, change in item.changes.items()]
    labels = list(dict.fromkeys(change.metric.label for change in item.changes.values()))
    label = wording.listing(labels)
    return f"{label[0].upper()}{label[1:]} {wording.listing(parts)}{note}."


def _rule(report: Report, answer: Answer) -> str:
    """Say why the rule chooses the variant."""
    choice, given = answer.choice, answer.limits
    within = _within(given)
    if choice.standing == "over":
        return f"No variant is within {_costs(given)}; it comes nearest."
    if given.loss is None:
        aims = wording.listing(list(choice.candidate.aims))
        return f"Of the variants{within} it loses least on {aims}."
    limit = _limit(answer)
    if choice.standing == "beyond":
        unsettled = not any(change.exceeds for change in choice.candidate.changes.values())
        note = " The data do not exclude that it loses less." if unsettled else ""
        return f"No variant{within} measured a loss below {limit} everywhere; it comes nearest.{note}"
    if choice.standing == "shown":
        if choice.candidate.variant is answer.model:
            return f"No smaller variant{within} is shown to lose less than {limit}."
        return f"It is the smallest variant{within} that is shown to lose less than {limit}."
    return f"No variant{within} is shown to lose less than {limit}; of those that measured less, it loses least."


def _within(given: Limits) -> str:
    return f" within {_costs(given)}" if given.memory is not None or given.latency is not None else ""


def _costs(given: Limits) -> str:
    parts = [_given(given.memory)] if given.memory is not None else []
    return wording.listing(parts + ([_time(given.latency)] if given.latency is not None else []))


def _limit(answer: Answer, loss: float | None = None) -> str:
    """Return the limit of the loss in the units of the evaluations that count."""
    loss = answer.limits.tolerance if loss is None else loss
    return wording.allowed(loss, _changes(answer)) or f"{100 * loss:g} %"


def _changes(answer: Answer) -> list[Change]:
    pairs = (answer.choice.candidate, answer.choice.runner_up)
    return [change for item in pairs if item for change in item.changes.values()]


def _runner_up(answer: Answer) -> str:
    """Name the runner-up, and say whether the data tell the two apart."""
    other = answer.choice.runner_up
    if other is None:
        return ""
    losses = [f"{wording.briefly(change)} on {name}" for name, change in other.changes.items()]
    standing = answer.choice.runner_up_standing
    note = "" if standing == answer.choice.standing else f" ({NOTES[standing]})"
    text = f"`{other.variant.name}`{note}: {wording.listing([size(other.taken.memory), *losses])}."
    if answer.apart:
        return f"{text} The data tell the two apart on {wording.listing(list(answer.apart))}."
    pair = (answer.choice.candidate, other)
    if not all(item.variant.scores[name].letters for item in pair for name in answer.evaluations):
        return text  # they were not compared
    return f"{text} The data do not tell the two apart."


def _more_data(report: Report, answer: Answer) -> list[str]:
    if not answer.open:
        return []
    parts = []
    for name, needed in answer.open.needed.items():
        change = answer.open.candidate.changes[name]
        now = f" (now {change.estimate.items:,})" if change.estimate else ""
        parts.append(f"about {plural(wording.rounded(needed), change.metric.item)} of {name}{now}")
    own = answer.open.candidate is answer.choice.candidate
    subject = "the loss" if own else f"that the loss of `{answer.open.candidate.variant.name}`"
    claim = f"would show {'that ' if own else ''}{subject} is below {_limit(answer)}, if it is as measured"
    return [f"More data: {wording.listing(parts)} {claim}."]


def _turn(turn: Turn, answer: Answer) -> str:
    """Say which variant another limit would choose."""
    name = f"`{turn.candidate.variant.name}`"
    if turn.limit == "loss":
        where = f"A loss limit of {_limit(answer, turn.value)}"
        note = {"shown": "", "measured": ", measured", "beyond": ", above it"}[turn.standing]
        return f"{where}: {name} ({size(turn.candidate.taken.memory)}{note})."
    shown = size if turn.limit == "memory" else _time
    if turn.looser:
        return f"{shown(turn.value)} or more allowed: {name}."
    own = answer.choice.candidate
    return f"Less than {shown(own.memory if turn.limit == 'memory' else own.taken.slowest)} allowed: {name}."


def _no_limits(answer: Answer) -> str:
    return (
        f"No limits are given (key `ship`), so these are three of the best trade-offs of"
        f" {plural(answer.count, 'variant')}; in brackets 95 % intervals."
    )


def _options(answer: Answer) -> list[Option]:
    """Return the three choices."""
    balanced, limit = answer.balanced, _limit(answer)
    how = {
        "shown": f"smallest that is shown to lose less than {limit}",
        "measured": f"of the smaller variants that measured less than {limit}, it loses least; not shown",
        "beyond": f"no smaller variant measured a loss below {limit}; it comes nearest",
    }[balanced.standing]
    best = f"loses least on {wording.listing(list(answer.choice.candidate.aims))}"
    named = (
        ("Smallest", answer.smallest, "least memory"),
        ("Balanced", balanced.candidate, how),
        ("Best", answer.choice.candidate, best),
    )
    return [Option(name, item.variant.name, f"{_memory(item)}: {how}. {_change(item)}") for name, item, how in named]


def _change(item: Candidate) -> str:
    return _loses(item, note="") if item.changes else "It is the model itself."
