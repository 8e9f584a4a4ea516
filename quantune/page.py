"""The report as one HTML page that needs no network: styles, script, figures and lineage are inside it."""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from quantune import expected, performance_words, words
from quantune.report import Report, Score
from quantune.table import MEASURES

TOLD = ("digest", "stage", "recipe", "sources", "facts", "packages", "run")  # of an artefact's lineage
TEMPLATES = Path(__file__).resolve().parent.parent / "report"


def render(report: Report, figures: dict[str, str], command: str) -> str:
    """Return the page.

    Args:
        report: what it tells.
        figures: name -> SVG, in the order to be shown.
        command: the Snakemake command line that the report is made with; names the configuration in the commands shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "breakable": breakable, "json": embedded}
    return environment.get_template("template.html.j2").render(
        report=report,
        words=words,
        findings=[*words.findings(report), *performance_words.findings(report)],
        benchmark=next((item.performance for item in report.variants.values() if item.performance), None),
        performance_words=performance_words,
        figures={name: data_uri(svg) for name, svg in figures.items()},
        lineage=lineage(report, command),
        again=lambda path: words.again(path, command),
        prompts=prompts(report),
        expected=expected,
        published=expected.comparisons(report),
        same_beginning=same_beginning,
        measures=MEASURES,
        sort_key=sort_key,
        folder=Path(report.path),
    )


def lineage(report: Report, command: str) -> dict[str, dict[str, Any]]:
    """Return path -> what the page tells of an artefact when a number that rests on it is opened."""
    told = {}
    for path, found in report.artefacts.items():
        kept = {key: found[key] for key in TOLD if key in found}
        parents = [parent["path"] for made_from in found.get("parents", {}).values() for parent in made_from]
        told[path] = kept | {"parents": parents, "again": words.again(path, command)}
    for variant in report.variants.values():
        for score in variant.scores.values():
            told[score.path]["numbers"] = numbers(score)
        if variant.performance:
            told[variant.performance.path]["numbers"] = performance_words.numbers(variant.performance)
    return told


def numbers(score: Score) -> dict[str, str]:
    """Return the numbers of an evaluation in words: name -> value."""
    told = {
        measure.replace("_", " "): words.measured(score.numbers[measure], score.numbers[f"{measure}_error"])
        for measure in MEASURES
    }
    for change in filter(None, (score.from_root, score.from_parent)):
        evidence = f"{words.evidence(change)}, {words.p_value(change.p_value)}"
        told[f"token perplexity against {change.against}"] = evidence
    told["measured over"] = words.plural(score.numbers["windows"], "window") + f", {score.numbers['tokens']:,} tokens"
    return told


def prompts(report: Report) -> dict[str, list[tuple[Any, str, str, str]]]:
    """Return prompt -> (variant, evaluation's path, continuation, the full-precision model's continuation)."""
    found: dict[str, list[tuple[Any, str, str, str]]] = {}
    for evaluation in report.named("generation"):
        for variant in report.variants.values():
            mine, reference = (report.variants[name].generations[evaluation] for name in (variant.name, variant.model))
            for item, original in zip(mine.items, reference.items, strict=True):
                found.setdefault(item["prompt"], []).append((variant, mine.path, item["text"], original["text"]))
    return found


def same_beginning(text: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning, whole words only."""
    pairs = zip(text, other, strict=False)
    length = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    return length if length in (len(text), 0) else text.rfind(" ", 0, length) + 1


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
