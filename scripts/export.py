"""Export a variant: write its files in a format that other programs open, and its model card."""

from quantune import exports
from quantune.artefacts import job, layout
from quantune.report import card


def export(order, inputs, folder, scratch):
    variant, name = layout.names(order["path"], "exports")
    form, (checkpoint,) = exports.by_name()[name], inputs["checkpoint"]
    facts = form.write(checkpoint, folder, variant)
    (folder / card.FILE).write_text(card.render(order, form), encoding="utf-8")
    return facts


job.run(snakemake, export)
