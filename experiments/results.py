"""Draw the figure and write the table of an experiment over several seeds, from its work folder.

    PYTHONPATH=. python experiments/results.py work-methods docs/experiments        # or work-instructions, work-order

It reads the raw items of the evaluations and the records of the trainings, and writes NAME.svg and NAME.md. Variants
without all evaluations are left out. Variants that differ in nothing but seeds are one row: its number is the geometric
mean of their perplexities. It is compared with the model (figure) or with a reference (table), window by window. The
95 % interval is that of docs/statistics.md over the windows. A pale point is one seed.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas

from quantune.artefacts import record
from quantune.evaluations.metrics.significance import perplexity_change
from quantune.report.figures.canvas import BLUE, GREY, ORANGE, canvas


@dataclass(frozen=True)
class Experiment:
    """What is shown of an experiment."""

    panels: dict[str, tuple[str, str]]
    """Title -> the evaluation, and the end of the names of the variants that it shows."""
    reference: tuple[str, str]
    """A regular expression that finds the steps of a variant, and what makes them those of the reference."""
    marked: str = "^$"
    """Regular expression of the rows in colour."""


EXPERIMENTS = {
    "methods": Experiment(
        {
            "quotes, 100 rows": ("quotes", "-100"),
            "quotes, 1,000 rows": ("quotes", "-1000"),
            "quotes, all rows": ("quotes", ""),
            "C4, all rows": ("c4", ""),
        },
        (r"^.*?(-100|-1000|)$", r"lora\1"),
        "^(unipelt|lora|prefix|pfeiffer)$",
    ),
    "instructions": Experiment(
        {"English": ("english", ""), "Chinese": ("chinese", ""), "WikiText-2": ("wikitext-2", ""), "C4": ("c4", "")},
        (r"^.*$", "general-0"),
    ),
    "order": Experiment({"quotes": ("quotes", ""), "C4": ("c4", "")}, (r"^.*(nf4|gptq-w4).*$", r"\1+train"), "nf4"),
}


@dataclass(frozen=True)
class Row:
    """Variants that differ in nothing but seeds."""

    steps: str
    variants: list[str]


class Results:
    """The evaluations and trainings of a work folder."""

    def __init__(self, work: Path, evaluations: set[str]):
        """Take a work folder, and the evaluations that a variant must have."""
        self.work = work
        made = [path.name for path in sorted((work / "evaluations").glob("*"))]
        made = [name for name in made if all((self._items(name, item)).exists() for item in evaluations)]
        models = [name for name in made if "+" not in name]
        if len(models) != 1:
            sys.exit(f"{work}: the model is not evaluated yet; go on with snakemake")
        (self.model,) = models
        grouped: dict[str, list[str]] = {}
        for name in made:
            if name != self.model:
                grouped.setdefault(re.sub(r"@\d+", "", name.removeprefix(f"{self.model}+")), []).append(name)
        self.rows = [Row(steps, variants) for steps, variants in grouped.items()]

    def _items(self, variant: str, evaluation: str) -> Path:
        return self.work / "evaluations" / variant / evaluation / "items.parquet"

    def items(self, variants: list[str], evaluation: str) -> pandas.DataFrame:
        """Return the windows, with the mean of the variants' negative log-likelihoods."""
        read = [pandas.read_parquet(self._items(name, evaluation)) for name in variants]
        return read[0].assign(nll=sum(items.nll for items in read) / len(read))

    def change(self, variants: list[str], evaluation: str, against: list[str]) -> dict:
        """Return the relative change of perplexity with its 95 % interval."""
        return perplexity_change(self.items(variants, evaluation), self.items(against, evaluation))

    def perplexity(self, variants: list[str], evaluation: str) -> float:
        """Return the geometric mean of the perplexities."""
        items = self.items(variants, evaluation)
        return math.exp(items.nll.sum() / items.tokens.sum())

    def mean(self, variants: list[str], number: str) -> float | None:
        """Return the mean of a number that the jobs of the last step recorded, or None."""
        folders = [self.work / "checkpoints" / name for name in variants]
        numbers = [record.read_provenance(folder)["facts"] | record.read_run(folder) for folder in folders]
        values = [known[number] for known in numbers if known.get(number) is not None]
        return sum(values) / len(values) if values else None


def shown(results: Results, experiment: Experiment) -> dict[str, dict[str, Row]]:
    """Return label -> title of the panel -> row; the best of the first panel first."""
    ends = {end for _, end in experiment.panels.values()}
    table: dict[str, dict[str, Row]] = {}
    for row in results.rows:
        end = max((end for end in ends if row.steps.endswith(end)), key=len)
        for title, (_, wanted) in experiment.panels.items():
            if wanted == end:
                table.setdefault(row.steps.removesuffix(end), {})[title] = row
    first, (evaluation, _) = next(iter(experiment.panels.items()))

    def quality(label: str) -> float:
        return results.perplexity(table[label][first].variants, evaluation) if first in table[label] else math.inf

    return {label: table[label] for label in sorted(table, key=quality)}


def draw(results: Results, experiment: Experiment, path: Path) -> None:
    """Draw the changes against the model: a panel for each evaluation, a line for each row."""
    table = shown(results, experiment)
    with canvas(path, height=1.0 + 0.3 * len(table)) as figure:
        panels = figure.subplots(1, len(experiment.panels), sharey=True, squeeze=False)[0]
        for axes, (title, (evaluation, _)) in zip(panels, experiment.panels.items(), strict=True):
            axes.axvline(0, color="#333333", linewidth=1)
            for place, (label, cells) in enumerate(table.items()):
                if title in cells:
                    colour = ORANGE if re.search(experiment.marked, label) else BLUE
                    _mark(axes, place, colour, results, cells[title].variants, evaluation)
            axes.set_title(title)
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(table)), list(table))
        panels[0].set_ylim(len(table) - 0.4, -0.6)
        figure.supxlabel("change of perplexity against the model, %  (← better | worse →)", fontsize=10)


def _mark(axes, place: int, colour: str, results: Results, variants: list[str], evaluation: str) -> None:
    """Draw the mean of the seeds with its interval, and each seed."""
    seeds = [100 * results.change([name], evaluation, [results.model])["change"] for name in variants]
    axes.plot(seeds, [place] * len(seeds), "o", color=GREY, alpha=0.5, markersize=4)
    change = results.change(variants, evaluation, [results.model])
    middle, low, high = (100 * change[key] for key in ("change", "low", "high"))
    axes.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="D", color=colour, markersize=5, capsize=2)


NUMBERS = {
    "trained parameters": ("trainable_parameters", "{:,.0f}", 1),
    "peak GB": ("peak_device_bytes", "{:.2f}", 1e9),
    "steps/s": ("steps_per_second", "{:.1f}", 1),
}
"""Columns of the training itself: the number that the job recorded, its form, its unit."""


def write(results: Results, experiment: Experiment, path: Path) -> None:
    """Write the table in Markdown."""
    evaluations = [evaluation for evaluation, _ in experiment.panels.values()]
    lines = [["", *NUMBERS, *experiment.panels], ["---"] * (1 + len(NUMBERS) + len(evaluations))]
    base = [f"{results.perplexity([results.model], evaluation):.4g}" for evaluation in evaluations]
    lines.append([results.model, *[""] * len(NUMBERS), *base])
    for label, cells in shown(results, experiment).items():
        variants, line = list(cells.values())[-1].variants, [label]
        for name, form, unit in NUMBERS.values():
            value = results.mean(variants, name)
            line.append("" if value is None else form.format(value / unit))
        for title, (evaluation, _) in experiment.panels.items():
            line.append(_cell(results, experiment, cells[title], evaluation) if title in cells else "")
        lines.append(line)
    path.write_text("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")


def _cell(results: Results, experiment: Experiment, row: Row, evaluation: str) -> str:
    """Return the perplexity, and its change against the reference with the interval."""
    text = f"{results.perplexity(row.variants, evaluation):.4g}"
    steps = re.sub(*experiment.reference, row.steps, count=1)
    reference = next((other for other in results.rows if other.steps == steps), row)
    if reference == row:
        return text
    change = results.change(row.variants, evaluation, reference.variants)
    middle, low, high = (f"{100 * change[key]:+.1f}" for key in ("change", "low", "high"))
    return f"{text} ({middle} %, {low} to {high})".replace("-", "−")


def main() -> None:
    work, folder = Path(sys.argv[1]), Path(sys.argv[2])
    name = work.name.removeprefix("work-")
    folder.mkdir(parents=True, exist_ok=True)
    experiment = EXPERIMENTS[name]
    results = Results(work, {evaluation for evaluation, _ in experiment.panels.values()})
    draw(results, experiment, folder / f"{name}.svg")
    write(results, experiment, folder / f"{name}.md")


if __name__ == "__main__":
    main()
