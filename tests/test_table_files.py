"""Exports of the report: tables as CSV, JSON and LaTeX, and the recommendation."""

import csv
import json
import math
import shutil
import subprocess

import pytest

from quantune.report import gather, page, table_files
from quantune.report.recommended import recommended


@pytest.fixture
def written(work, tmp_path):
    order = work.order()
    order["recipe"]["ship"] = {"memory": 500, "loss": 0.01, "latency": None, "batch": None, "evaluations": None}
    gathered = gather.gather(order)
    names = table_files.write(page.render(gathered, {}, "snakemake"), tmp_path / "tables")
    return gathered, tmp_path / "tables", names


def test_every_table_is_written_unrounded(written):
    gathered, folder, names = written
    assert names == ["variants-m", "fine-tuning", "merged", "memory", "artefacts"] or set(names) >= {"variants-m"}
    assert {path.name for path in folder.iterdir()} == {f"{n}.{kind}" for n in names for kind in ("csv", "json", "tex")}
    rows = {row["Variant"]: row for row in csv.DictReader((folder / "variants-m.csv").open())}
    assert list(rows) == list(gathered.variants)
    change = gathered.variants["m+rough"].scores["home"].from_root
    heads = [f"home: vs full precision{end}" for end in ("", ", low", ", high")]
    assert [float(rows["m+rough"][head]) for head in heads] == [change.change, change.low, change.high]
    assert float(rows["m"]["home: Perplexity"]) == pytest.approx(math.exp(5), rel=1e-14)
    assert rows["m"]["home: vs full precision"] == "" and rows["m"]["home: Perplexity, group"]
    content = json.loads((folder / "variants-m.json").read_text())
    cell = content["rows"][0]["Size"]
    assert cell == {"value": 1000, "text": "1.00 kB"}


def test_latex_has_as_many_cells_in_each_row(written):
    _, folder, names = written
    for name in names:
        lines = (folder / f"{name}.tex").read_text().split("\n")
        columns = len(lines[1].partition("tabular}{")[2].rstrip("}"))
        for line in (line.removesuffix(" \\\\") for line in lines if line.endswith("\\\\")):
            cells = line.split(" & ")
            spans = [int(cell.split("{")[1].rstrip("}")) if cell.startswith("\\multicolumn") else 1 for cell in cells]
            assert sum(spans) == columns, (name, line)
    text = (folder / "variants-m.tex").read_text()
    assert "+22.14 \\% (+21.71 to +22.57 \\%)" in text and "$-$39.35 \\%" in text
    assert table_files._escaped("a_b & 5 % #1 {x} ~ ^ \\") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_compiles(written, tmp_path):
    _, folder, names = written
    inputs = "\n".join(f"\\input{{{folder / name}.tex}}\\newpage" for name in names)
    head = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "all.tex").write_text(f"{head}{inputs}\\end{{document}}")
    subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_other_programs_read_the_recommendation(written):
    gathered, _, _ = written
    assert recommended(gathered) == {"m": {"variant": "m+fine", "standing": "shown", "runner_up": "m+rough"}}
