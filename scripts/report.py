"""Write the report: the table, metrics and loss curves for DVC, the figures, one HTML page with all of them, each table
of the page as CSV, JSON and LaTeX, and the recommendation for other programs."""

import json
import os

from quantune.artefacts import job
from quantune.report import gather, page, table, table_files
from quantune.report.figures import gallery
from quantune.report.recommended import recommended


def write(order, inputs, folder, scratch):
    gathered = gather.gather(order)
    table.write_table(table.table(gathered), folder / "table.csv")
    (folder / "metrics.json").write_text(json.dumps(table.metrics(gathered), indent=1) + "\n")
    table.write_curves(gathered, folder / "curves")
    figures = {name: (folder / f"{name}.svg").read_text() for name in gallery.draw(gathered, folder, png=True)}
    command = os.environ.get("QUANTUNE_COMMAND", "snakemake")
    html = page.render(gathered, figures, command)
    (folder / "report.html").write_text(html)
    table_files.write(html, folder / "tables")
    (folder / "recommendation.json").write_text(json.dumps(recommended(gathered), indent=1) + "\n")
    print(f"{len(gathered.variants)} variants, {len(figures)} figures: open {order['path']}/report.html")


job.run(snakemake, write, imports=False)
