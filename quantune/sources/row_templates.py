"""Texts put together from several columns of a table by a template: `"{quote} — {author}"`."""

import string
from collections.abc import Iterator
from pathlib import Path

from quantune.sources import tables


def parts(template: str) -> list[tuple[str, str | None]]:
    """Return the parts of a template: plain text, and the column whose text follows, or None at the end.

    Raises:
        ValueError: naming the problem, if a brace is not closed, or more than a column's name is in braces.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"'{template}': {error}; write {{column}} for a column, {{{{ and }}}} for braces") from None
    if not any(column is not None for _, column, _, _ in parts):
        raise ValueError(f"'{template}' names no column; write one in braces, such as '{{quote}} — {{author}}'")
    for _, column, spec, conversion in parts:
        if column == "" or spec or conversion:
            raise ValueError(f"'{template}': braces hold the name of a column and nothing else, such as '{{quote}}'")
    return [(text, column) for text, column, _, _ in parts]


def read(path: Path, kind: str, template: str) -> Iterator[str]:
    """Yield the text of each row of a table; "" for a row whose columns are all empty.

    Raises:
        QuantuneError: naming file, row and column, if a column is missing or not text.
    """
    pieces = parts(template)
    columns = list(dict.fromkeys(column for _, column in pieces if column is not None))
    for place, row in tables.rows(path, kind, columns, keys="'template'"):
        cells = {column: tables.text(row.get(column), path, place, column) for column in columns}
        filled = any(cell.strip() for cell in cells.values())
        yield "".join(text + cells.get(column, "") for text, column in pieces) if filled else ""
