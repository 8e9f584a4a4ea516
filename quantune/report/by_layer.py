"""Numbers that a training records for each layer: the mean gates of UniPELT, the ranks of AdaLoRA."""

import re
from dataclasses import dataclass

from quantune.report.gather import Report

FACTS = {"gates": "mean gate", "ranks": "rank"}
"""Fact in a variant's provenance, linear layer -> number; and what the number is."""
LAYER = re.compile(r"(?:(.*)\.)?(\w+)\.(\d+)\.(.+)")
"""A linear layer's name: `model.decoder.layers.3.self_attn.q_proj`."""


@dataclass(frozen=True)
class Study:
    """One fact of one variant."""

    variant: str
    path: str
    """Of the variant's checkpoint."""
    parts: dict[str, dict[int, float]]
    """Name of a linear layer -> layer of the model, from 0 -> number."""


def studies(report: Report) -> dict[str, list[Study]]:
    """Return fact -> its study of each variant that was trained and has it."""
    trained = report.made_by("finetuning")
    made = {fact: [_study(item.name, item.path, item.facts.get(fact)) for item in trained] for fact in FACTS}
    return {fact: kept for fact, items in made.items() if (kept := [item for item in items if item])}


def _study(variant: str, path: str, numbers: dict[str, float] | None) -> Study | None:
    matches = [(match.groups(), value) for name, value in (numbers or {}).items() if (match := LAYER.fullmatch(name))]
    if not matches:
        return None
    sides = {side for (side, *_), _ in matches}
    parts: dict[str, dict[int, float]] = {}
    for (side, _, layer, name), value in matches:
        short = name.split(".")[-1] if len(sides) == 1 else f"{side.split('.')[-1]} {name}"
        parts.setdefault(short, {})[int(layer)] = value
    return Study(variant, path, parts)


def layers(made: list[Study]) -> list[int]:
    """Return the layers of which there is a number."""
    return sorted({layer for study in made for numbers in study.parts.values() for layer in numbers})
