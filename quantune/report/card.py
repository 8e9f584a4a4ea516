"""The model card of an export: what it is, its numbers with their intervals, its lineage, and how it is made again.

The header is written by huggingface_hub, as its hub reads it. Everything in a card follows from the recipe, so the same
export has the same card.
"""

from typing import Any

import yaml

from quantune.artefacts import layout
from quantune.artefacts.lineage import read_lineage
from quantune.core.errors import printable
from quantune.core.units import size
from quantune.exports import Export
from quantune.report import scores, wording
from quantune.report.scores import Score

FILE = "README.md"
CHECKPOINTS = "checkpoints"
TASKS = {"text": "text-generation", "speech": "automatic-speech-recognition"}
"""Track -> name of its task on the hub."""


def render(order: dict[str, Any], form: Export) -> str:
    """Return the model card of the export that an order describes.

    Raises:
        QuantuneError: if a provenance of the lineage was changed.
    """
    variant, name = layout.names(order["path"], "exports")
    facts = order["options"]["card"]
    numbers = _scores(order, facts)
    sections = {
        "": _introduction(variant, name, facts, form),
        "How to use it": f"`PATH` is the folder of this file.\n\n{form.usage(variant, facts['track'] == 'speech')}",
        "Evaluation": _evaluation(variant, facts, numbers, form),
        "Data": _data(facts),
        "Lineage": _lineage(order, facts),
        "Licence": _licence(order["recipe"]["licences"], facts),
        "How to make it again": _again(f"work/exports/{variant}/{name}", facts),
    }
    body = "\n".join(f"## {head}\n\n{text}" if head else f"# {variant}\n\n{text}" for head, text in sections.items())
    return printable(f"---\n{_header(variant, order, facts, numbers, form)}\n---\n\n{body}")


def _scores(order: dict[str, Any], facts: dict[str, Any]) -> dict[tuple[str, str], Score]:
    """Return (variant, evaluation) -> score of the evaluations that the export was made from."""
    (model,) = order["reads"]["model"]
    numbers = {}
    for item in order["parents"].get("evaluations", []):
        key = layout.names(item["path"], "evaluations")
        if score := scores.read(item["path"], facts["evaluations"][key[1]], model):
            numbers[key] = score
    return numbers


def _header(variant: str, order: dict, facts: dict, numbers: dict, form: Export) -> str:
    """Return the metadata of the card, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    task, datasets = TASKS[facts["track"]], facts["configuration"].get("datasets", {})
    trained = any(step["kind"] == "finetuning" for step in facts["steps"])
    relation = "quantized" if facts["quantized"] or form.relation else "finetune" if trained else None
    results = []
    for (of, name), score in numbers.items() if form.relation is None else ():
        recipe, numbered = facts["evaluations"][name], score.broken is None
        if of == variant and numbered:
            results += [
                EvalResult(
                    task_type=task,
                    dataset_name=recipe["dataset"],
                    dataset_type=datasets[recipe["dataset"]].get("hub", recipe["dataset"]),
                    dataset_split=recipe.get("split"),
                    metric_type=score.metric.key,
                    metric_name=score.metric.label,
                    metric_value=float(f"{score.value:.6g}"),
                )
            ]
    repositories = [entry["hub"] for entry in datasets.values() if entry.get("hub")]
    data = ModelCardData(
        base_model=facts["model"]["hub"],
        base_model_relation=relation if facts["model"]["hub"] else None,
        license=order["recipe"]["licences"][f"models.{facts['model']['name']}"],
        library_name=form.library,
        pipeline_tag=task,
        datasets=repositories or None,
        tags=["quantune", *form.tags],
        model_name=variant if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _introduction(variant: str, name: str, facts: dict, form: Export) -> str:
    """Return the first sentences: which steps made the variant, and the format."""
    model, steps = facts["model"], [f"`{step['name']}`" for step in facts["steps"]]
    base = f"[{model['hub']}](https://huggingface.co/{model['hub']})" if model["hub"] else f"`{model['name']}`"
    made = f"the model {base}, after the steps {wording.listing(steps)}" if steps else f"the model {base}, unchanged"
    return f"This is {made}, in the format `{name}`. quantune made, evaluated and exported it.\n"


def _evaluation(variant: str, facts: dict, numbers: dict[tuple[str, str], Score], form: Export) -> str:
    """Return the table of the numbers, beside those of the model that the chain begins with."""
    names = [name for of, name in numbers if of == variant]
    if not names:
        return "It was not evaluated.\n"
    model = facts["model"]["name"]
    columns = ["evaluation", "data", "metric", f"`{variant}`"]
    columns += [f"`{model}`, the original model", "change"] if variant != model else []
    rows = [columns, ["---"] * len(columns)]
    for name in names:
        score, recipe = numbers[variant, name], facts["evaluations"][name]
        data = f"`{recipe['dataset']}`" + (f", split `{recipe['split']}`" if "split" in recipe else "")
        row = [
            f"`{name}`",
            data,
            f"{score.metric.label}, {score.metric.note}",
            score.broken or wording.with_interval(score),
        ]
        if variant != model:
            reference = numbers[model, name]
            change = scores.change(score, model, reference)
            row += [reference.broken or wording.with_interval(reference), wording.evidence(change)]
        rows.append(row)
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    notes = [
        "Intervals are 95 % intervals. The change is measured on the same windows or clips, so its interval is its own."
    ]
    if form.relation == "quantized":
        notes += [
            "**These numbers are those of the variant before this export, which rounds its weights once more.** The "
            "error of the weights is `relative_weight_error` in `provenance.json`."
        ]
    return "\n".join([*lines, "", *notes, ""])


def _data(facts: dict[str, Any]) -> str:
    """Return the use of each dataset."""
    configuration, lines = facts["configuration"], []
    for section, use in (("quantizations", "calibration"), ("finetunings", "training"), ("evaluations", "evaluation")):
        for name, entry in configuration.get(section, {}).items():
            uses = dict.fromkeys(filter(None, (entry.get("dataset"), *entry.get("mix", ()))), use)
            for dataset, use in (dict.fromkeys(entry.get("also_validate", ()), "validation") | uses).items():
                source = configuration["datasets"][dataset]
                origin = (
                    f" ([{source['hub']}](https://huggingface.co/datasets/{source['hub']}))"
                    if source.get("hub")
                    else ""
                )
                lines.append(f"- {use} (`{name}`): `{dataset}`{origin}")
    return "\n".join([*lines, ""]) if lines else "No data were used.\n"


def _lineage(order: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the artefacts that the chain consists of, with their digests, the model first."""
    lineage = read_lineage(order["parents"]["checkpoint"])
    chain = sorted(
        (path for path in lineage if f"/{CHECKPOINTS}/" in f"/{path}"), key=lambda path: (path.count("+"), path)
    )
    lines = []
    for number, path in enumerate(chain, 1):
        (name,), made = layout.names(path, CHECKPOINTS), lineage[path]
        files = [file for file in made.get("files", []) if file["path"].endswith(".safetensors")]
        weights = f", {size(sum(file['size'] for file in files))} of weights" if files else ""
        commit = f", commit {facts['model']['commit']}" if number == 1 and facts["model"]["commit"] else ""
        stage, digest = made.get("stage", "not kept"), made["digest"][:16]
        lines.append(f"{number}. `{name}`: stage {stage}{commit}{weights}, digest `{digest}`")
    lines += [
        "",
        "`provenance.json` holds the recipe, the packages with their versions, and the SHA-256 of each file.",
        "",
    ]
    return "\n".join(lines)


def _licence(licences: dict[str, str | None], facts: dict[str, Any]) -> str:
    """Return the licence of the model, or that it is not known."""
    model = facts["model"]["name"]
    if known := licences[f"models.{model}"]:
        own = "It holds for this one too. Data may have terms of their own."
        return f"The licence of the original model is {known}. {own}\n"
    return (
        "The licence of the original model is not recorded. State it before you pass this export on: "
        f"`models.{model}.licence` in the configuration.\n"
    )


def _again(target: str, facts: dict[str, Any]) -> str:
    """Return the configuration and the command that make the export."""
    text = yaml.safe_dump(facts["configuration"], sort_keys=False, allow_unicode=True, width=110)
    local = [
        f"`{section}.{name}`"
        for section in ("models", "datasets")
        for name, entry in facts["configuration"].get(section, {}).items()
        if "path" in entry
    ]
    note = f"The paths of {wording.listing(local)} are local: give your own.\n\n" if local else ""
    return f"With this `config.yaml`:\n\n```yaml\n{text}```\n\n{note}```shell\nsnakemake {target} --cores all\n```\n"
