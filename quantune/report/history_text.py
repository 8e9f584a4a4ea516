"""Two runs compared, as text for a terminal: recipes, numbers, the variant to ship."""

from typing import Any

from quantune.core.units import plural, size
from quantune.report import wording
from quantune.report.history import Cost, History, Moved
from quantune.report.speed import Speed


def text(history: History, before: str, now: str) -> str:
    """Return the comparison; `before` and `now` name the runs."""
    parts = [[f"{now}, compared with {before}"], _variants(history), _recipes(history), _numbers(history)]
    parts += [_costs(history), _ship(history)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _variants(history: History) -> list[str]:
    lines = [f"only now: {', '.join(history.added)}"] if history.added else []
    return lines + ([f"only before: {', '.join(history.removed)}"] if history.removed else [])


def _recipes(history: History) -> list[str]:
    if not history.remade:
        return ["Recipes: none changed."]
    return ["Recipes", *(f"  {item.path}: {'; '.join(item.changes)}" for item in history.remade)]


def _numbers(history: History) -> list[str]:
    """Return a line for each number that changed, those that are significant first."""
    changed = [item for item in history.moved if not item.same]
    if not history.moved:
        return ["Numbers: no evaluation is in both runs."]
    same = len(history.moved) - len(changed)
    note = f"{plural(same, 'evaluation')} the same in every item." if same else ""
    if not changed:
        return [f"Numbers: {note}"]
    order = {"worse": 0, "better": 1, "unclear": 2}
    changed.sort(key=lambda item: order[item.change.verdict] if item.change else 3)
    rows = [("variant", "evaluation", "metric", "before", "now", "change"), *map(_row, changed)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    ]
    return ["Numbers", *(f"  {line}" for line in lines), *([f"  {note}"] if note else [])]


def _row(item: Moved) -> tuple[str, ...]:
    metric = item.now.metric
    values = (wording.scored(item.before), wording.scored(item.now))
    return (item.variant, item.evaluation, metric.label, *values, _verdict(item))


def _verdict(item: Moved) -> str:
    """Return the change with its interval, and whether it is significant."""
    if item.change is None:
        return f"not tested: the {item.now.metric.item}s are not the same"
    if why := item.now.broken or item.before.broken:
        return f"not tested: the number {'now' if item.now.broken else 'before'} is not finite ({why})"
    verdict = {"worse": "worse", "better": "better", "unclear": "not significant"}[item.change.verdict]
    return f"{wording.briefly(item.change)}, {wording.probability(item.change)}: {verdict}".replace("\u00a0", " ")


def _costs(history: History) -> list[str]:
    return ["Size, memory and speed", *map(_cost, history.costs)] if history.costs else []


def _cost(item: Cost) -> str:
    if not isinstance(item.now, Speed):
        return f"  {item.variant}: {item.name} {size(item.before)} -> {size(item.now)}"
    faster, slower = item.now.beats(item.before), item.before.beats(item.now)
    verdict = "faster in every repeat" if faster else "slower in every repeat" if slower else "repeats overlap"
    texts = f"{wording.speed(item.before)} -> {wording.speed(item.now)}"
    return f"  {item.variant}: {item.name} {texts}: {verdict}"


def _ship(history: History) -> list[str]:
    lines = [f"  limit {change}" for change in history.limits]
    lines += [f"  {model}: {_arrow(*pair)}" for model, pair in history.ship.items()]
    return ["Recommended variant", *lines] if lines else []


def _arrow(before: Any, now: Any) -> str:
    return f"{now} (as before)" if before == now else f"{before or 'none'} -> {now or 'none'}"
