"""Write the report: the table, metrics and loss curves for DVC, the figures, and one HTML page with all of them."""

import json
import os

from quantune.artefacts import job
from quantune.report import gather, page, table
from quantune.report.figures import gallery


def write(order, inputs, folder, scratch):
    gathered = gather.gather(order)
    table.write_table(table.table(gathered), folder / "table.csv")
    (folder / "metrics.json").write_text(json.dumps(table.metrics(gathered), indent=1) + "\n")
    table.write_curves(gathered, folder / "curves")
    figures = {name: (folder / f"{name}.svg").read_text() for name in gallery.draw(gathered, folder, png=True)}
    command = os.environ.get("QUANTUNE_COMMAND", "snakemake")
    (folder / "report.html").write_text(page.render(gathered, figures, command))
    print(f"{len(gathered.variants)} variants, {len(figures)} figures: open {order['path']}/report.html")


job.run(snakemake, write, imports=False)
