"""The report as one HTML page that needs no network: styles, script, figures and lineage are inside it."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from quantune.core import units
from quantune.evaluations.metrics.edits import Piece
from quantune.report import by_layer, listening, memory_check, published, scatter, shipping, wording
from quantune.report.findings import findings
from quantune.report.gather import Report
from quantune.report.scores import Score

SHOWN = ("digest", "stage", "recipe", "sources", "facts", "packages", "run", "files")  # facts of an artefact
TEMPLATES = Path(__file__).resolve().parents[2] / "report"


def render(report: Report, figures: dict[str, str], command: str) -> str:
    """Return the page.

    Args:
        report: its content.
        figures: name -> SVG, in the order to be shown.
        command: the Snakemake command line that the report is made with; names the configuration in the commands shown.
    """
    speeds = [speed for item in report.benchmarks.values() for speed in item.speeds.values()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    answers = shipping.in_words(report)
    environment.filters |= {"code": code, "breakable": breakable, "json": embedded, "marked": marked}
    return environment.get_template("template.html.j2").render(
        report=report,
        wording=wording,
        units=units,
        answers=answers,
        limits=shipping.limits(report),
        scatter=scatter.data(report, answers) if report.scored() else None,
        findings=findings(report),
        repeats=next((speed.repeats for speed in speeds), 0),
        comparisons=memory_check.compare(report),
        estimates=memory_check,
        by_layer=by_layer,
        figures={name: data_uri(svg) for name, svg in figures.items()},
        lineage=lineage(report, command),
        again=lambda path: wording.again(path, command),
        prompts=prompts(report),
        expected=published,
        published=published.compare(report),
        same_beginning=same_beginning,
        played=listening.played(report),
        listening=listening,
        sort_key=sort_key,
        folder=Path(report.path),
    )


def lineage(report: Report, command: str) -> dict[str, dict[str, Any]]:
    """Return path -> the facts about an artefact that the page shows when a number that rests on it is opened."""
    entries = {}
    for path, item in report.artefacts.items():
        kept = {key: item[key] for key in SHOWN if key in item}
        parents = [parent["path"] for made_from in item.get("parents", {}).values() for parent in made_from]
        commit = item.get("run", {}).get("commit", "")
        if "run" in kept:
            kept["run"] = kept["run"] | {"command": wording.quoted(kept["run"]["command"])}
        entries[path] = kept | {"parents": parents, "again": wording.again(path, command, commit)}
    for variant in report.variants.values():
        for score in variant.scores.values():
            entries[score.path]["numbers"] = numbers(score)
        if variant.performance:
            entries[variant.performance.path]["numbers"] = wording.performance(variant.performance)
    return entries


def numbers(score: Score) -> dict[str, str]:
    """Return the numbers of an evaluation in words: name -> value."""
    if score.broken:
        return {"not a number, because": score.broken}
    texts = {_named(key): wording.with_interval(score, key) for key in score.metric.reported}
    texts["interval by"] = score.numbers["method"]
    for change in filter(None, (score.from_root, score.from_parent)):
        name = f"{_named(change.metric.key)} against {change.against}"
        texts[name] = f"{wording.evidence(change)}, {wording.probability(change)}"
        texts |= {f"{name}, interval by": change.estimate.method} if change.estimate else {}
    texts |= {"group": score.letters} if score.letters else {}
    texts |= {f"edits of {_named(rate)}": edits(score, rate) for rate in ("wer", "cer") if rate in score.numbers}
    if score.real_time_factor is not None:
        texts["real-time factor"] = wording.number(score.real_time_factor)
    return texts | score.details | {"measured over": score.metric.amount(score.numbers)}


def edits(score: Score, rate: str) -> str:
    """Return the errors of a rate by kind: `110 substitutions, 5 insertions, 20 deletions in 334 words`."""
    kinds = ("substitution", "insertion", "deletion")
    counts = [units.plural(score.numbers[f"{rate}_{kind}s"], kind) for kind in kinds]
    unit = "word" if rate.startswith("wer") else "character"
    return f"{', '.join(counts)} in {units.plural(score.numbers[f'{rate}_length'], unit)}"


def _named(key: str) -> str:
    """Return a measure in words: `token perplexity`, `WER raw`."""
    return key.replace("_", " ").replace("wer", "WER").replace("cer", "CER")


def prompts(report: Report) -> dict[str, list[tuple[Any, str, str, str]]]:
    """Return prompt -> (variant, evaluation's path, continuation, the full-precision model's continuation).

    The prompt of a sampled continuation is followed by how it was drawn.
    """
    continuations: dict[str, list[tuple[Any, str, str, str]]] = {}
    for evaluation in report.named("generation"):
        drawn = wording.drawn(report.evaluations[evaluation].get("sampling"))
        for variant in report.variants.values():
            if evaluation not in variant.generations:
                continue
            mine, reference = (report.variants[name].generations[evaluation] for name in (variant.name, variant.model))
            for item, original in zip(mine.items, reference.items, strict=True):
                prompt = item["prompt"] + (f" [sample {item['sample'] + 1}, {drawn}]" if drawn else "")
                continuations.setdefault(prompt, []).append((variant, mine.path, item["text"], original["text"]))
    return continuations


def same_beginning(text: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning, whole words only."""
    pairs = zip(text, other, strict=False)
    length = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    return length if length in (len(text), 0) else text.rfind(" ", 0, length) + 1


def marked(pieces: list[Piece], between: str) -> Markup:
    """Return a transcript as HTML: what was written and not said is marked, what was left out struck out."""
    forms = {
        "equal": "{written}",
        "substitute": '<mark title="said: {said}">{written}</mark>',
        "insert": '<mark title="not said">{written}</mark>',
        "delete": "<del>{said}</del>",
    }
    parts = [Markup(forms[item.kind]).format(said=item.said, written=item.written) for item in pieces]
    return Markup(between).join(parts)


def sort_key(value: float | None) -> str:
    """Return what a cell is sorted by; empty sorts last."""
    return "" if value is None or math.isnan(value) else repr(value)


def code(text: str) -> Markup:
    """Return the text as HTML: what stands in backticks as code, numbers kept on one line with their unit."""
    text = text.replace(" %", "\u00a0%").replace(" to +", "\u00a0to +").replace(" to −", "\u00a0to −")
    return Markup(re.sub(r"`([^`]+)`", lambda match: f"<code>{breakable(match[1])}</code>", str(escape(text))))


def breakable(name: str) -> Markup:
    """Return a variant's name as HTML that may be broken before each step, and nowhere else."""
    model, *steps = str(name).split("+")
    pieces = [model, *(f"+{step}" for step in steps)]
    return Markup("<wbr>").join(Markup('<span class="step">{}</span>').format(piece) for piece in pieces)


def embedded(value: Any) -> Markup:
    """Return a value as JSON that can stand inside a script element; what is not finite becomes null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return Markup(json.dumps(finite, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def data_uri(svg: str) -> str:
    """Return an image as an address that holds the image itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
