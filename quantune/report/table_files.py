"""Every table of the page as CSV, JSON and LaTeX, read from the page itself: a table that has a name is written.

A cell of the page shows a rounded text. Its unrounded numbers are in its attributes: `data-value`, and `data-low` and
`data-high` for an interval. CSV and JSON hold these; LaTeX (booktabs) holds the texts.
"""

import csv
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}
SPECIAL |= {"−": "$-$", "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "\u00a0": "~", "×": r"$\times$"}
ENDS = ("low", "high")


@dataclass
class Cell:
    """A cell: its text, the small text below it, the letters of its groups, its unrounded numbers."""

    head: bool
    numeric: bool
    columns: int
    rows: int
    numbers: dict[str, str]
    text: str = ""
    note: str = ""
    letters: str = ""

    def value(self) -> Any:
        """Return the unrounded number, or the text."""
        return _number(self.numbers["value"]) if "value" in self.numbers else self.text


@dataclass
class Table:
    """A named table."""

    name: str
    heads: list[list[Cell]] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)

    def columns(self) -> list[str]:
        """Return the heads of the columns, each with that of its group: `home: Perplexity`."""
        names: dict[int, list[str]] = {}
        below: dict[int, int] = {}  # column -> row up to which a head above reaches
        for level, row in enumerate(self.heads):
            column = 0
            for cell in row:
                while below.get(column, 0) > level:
                    column += 1
                for _ in range(cell.columns):
                    names.setdefault(column, []).append(cell.text)
                    below[column] = level + cell.rows
                    column += 1
        return [": ".join(names[column]) for column in sorted(names)]

    def records(self) -> list[dict[str, dict[str, Any]]]:
        """Return, for each row, column -> value, text, and where it has them low, high and group."""
        return [{name: _record(cell) for name, cell in zip(self.columns(), row, strict=False)} for row in self.rows]


class _Tables(HTMLParser):
    """Collects the named tables of a page."""

    def __init__(self):
        super().__init__()
        self.tables: list[Table] = []
        self._table: Table | None = None
        self._row: list[Cell] | None = None
        self._cell: Cell | None = None
        self._inside: list[str] = []
        """What the open elements of a cell add to: text, note, letters, or nothing."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag == "table" and "data-name" in given:
            self._table = Table(given["data-name"])
            self.tables.append(self._table)
        elif self._table is None:
            return
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th") and self._row is not None:
            numbers = {name.removeprefix("data-"): value for name, value in given.items()}
            numbers = {name: numbers[name] for name in ("value", *ENDS) if name in numbers}
            if given.get("scope") == "row":
                numbers.pop("value", None)  # it is sorted by its text
            spans = (int(given.get(name, 1)) for name in ("colspan", "rowspan"))
            numeric = "text" not in given.get("class", "").split() and tag == "td"
            self._cell = Cell(tag == "th", numeric, *spans, numbers)
            self._row.append(self._cell)
        elif self._cell is not None and tag not in ("br", "wbr"):
            classes = given.get("class", "").split()
            part = "note" if tag == "small" else "letters" if "letters" in classes else "" if "tag" in classes else None
            self._inside.append(part if part is not None else (self._inside or ["text"])[-1])
        elif self._cell is not None and tag == "br":
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = None
        elif self._table is None:
            return
        elif tag in ("td", "th"):
            self._cell, self._inside = None, []
        elif tag == "tr" and self._row:
            rows = self._table.heads if all(cell.head for cell in self._row) else self._table.rows
            rows.append(self._row)
            self._row = None
        elif self._inside and tag not in ("br", "wbr"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        part = (self._inside or ["text"])[-1]
        if self._cell is not None and part:
            text = getattr(self._cell, part) + re.sub(r"[\n ]+", " ", data)
            setattr(self._cell, part, text.lstrip(" "))


def tables(page: str) -> list[Table]:
    """Return the named tables of a page."""
    parser = _Tables()
    parser.feed(page)
    for table in parser.tables:
        for cell in (cell for row in table.heads + table.rows for cell in row):
            cell.text, cell.note, cell.letters = (part.strip() for part in (cell.text, cell.note, cell.letters))
    return parser.tables


def write(page: str, folder: Path) -> list[str]:
    """Write each named table of a page as CSV, JSON and LaTeX; return the names."""
    folder.mkdir()
    named = tables(page)
    for table in named:
        with (folder / f"{table.name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(as_csv(table))
        content = {"name": table.name, "rows": table.records()}
        (folder / f"{table.name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        (folder / f"{table.name}.tex").write_text(as_latex(table))
    return [table.name for table in named]


def as_csv(table: Table) -> list[list[Any]]:
    """Return the rows of a table, heads first; intervals and groups have columns of their own."""
    records, columns = table.records(), table.columns()
    parts = {
        name: [part for part in (*ENDS, "group") if any(part in row.get(name, {}) for row in records)]
        for name in columns
    }
    heads = [head for name in columns for head in (name, *(f"{name}, {part}" for part in parts[name]))]
    rows = []
    for row in records:
        cells = [[row.get(name, {}).get(part, "") for part in ("value", *parts[name])] for name in columns]
        rows.append(["" if value is None else value for cell in cells for value in cell])
    return [heads, *rows]


def as_latex(table: Table) -> str:
    """Return a table as LaTeX: a `tabular` with the rules of booktabs."""
    first = table.rows[0] if table.rows else []
    kinds = "".join("r" if cell.numeric else "l" for cell in first) or "l" * len(table.columns())
    lines = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{kinds}}}", "\\toprule"]
    below: dict[int, int] = {}
    for level, row in enumerate(table.heads):
        cells, column = [], 0
        for cell in row:
            while below.get(column, 0) > level:
                cells.append("")
                column += 1
            text = _escaped(cell.text)
            cells.append(f"\\multicolumn{{{cell.columns}}}{{c}}{{{text}}}" if cell.columns > 1 else text)
            below |= dict.fromkeys(range(column, column + cell.columns), level + cell.rows)
            column += cell.columns
        lines.append(f"{' & '.join(cells)} \\\\")
    lines.append("\\midrule")
    lines += [f"{' & '.join(map(_latex, row))} \\\\" for row in table.rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex(cell: Cell) -> str:
    text = _escaped(cell.text) + (f"\\textsuperscript{{{cell.letters}}}" if cell.letters else "")
    text += f" ({_escaped(cell.note)})" if cell.note else ""
    return f"\\multicolumn{{{cell.columns}}}{{l}}{{{text}}}" if cell.columns > 1 else text


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


def _record(cell: Cell) -> dict[str, Any]:
    record = {"value": cell.value(), "text": f"{cell.text} ({cell.note})" if cell.note else cell.text}
    record |= {end: _number(cell.numbers[end]) for end in ENDS if end in cell.numbers}
    return record | ({"group": cell.letters} if cell.letters else {})


def _number(text: str) -> Any:
    """Return the number in an attribute; None if it is empty, the text if it is no number."""
    if text in ("", "nan", "inf", "-inf"):
        return None
    try:
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    except ValueError:
        return text
