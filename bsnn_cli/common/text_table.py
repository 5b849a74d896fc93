"""A table of results as text for a terminal, Markdown, CSV or JSON."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

import pandas as pd


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> str:
    """Return a Markdown table whose columns also line up in a terminal; those in `left` are aligned to the left."""
    first, *lines = _aligned(header, rows, left)
    rule = ["-" * len(cell) if column in left else "-" * (len(cell) - 1) + ":" for column, cell in enumerate(first)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (first, rule, *lines))


def _aligned(header: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int]) -> list[list[str]]:
    """Pad all cells of a column to equal width; columns in `left` are aligned to the left, others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    return [
        [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]


def render(table: pd.DataFrame, form: str, digits: int = 2) -> str:
    """Return a table in one of the forms `text`, `markdown`, `csv`, `json`.

    Text and Markdown are for people: numbers are rounded to `digits` decimals and what is missing is a dash. CSV and
    JSON keep every digit, with an empty field or null for what is missing.
    """
    if form == "csv":
        return table.to_csv(index=False).rstrip("\n")
    if form == "json":
        return table.to_json(orient="records", indent=2, force_ascii=False, double_precision=15)
    cells = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    words = {column for column, name in enumerate(table.columns) if not pd.api.types.is_numeric_dtype(table[name])}
    if form == "markdown":
        return markdown_table(list(table.columns), cells, words)
    if not cells:
        return "nothing to show"
    return "\n".join("  ".join(line).rstrip() for line in _aligned(list(table.columns), cells, words))


def _cell(value: object, digits: int) -> str:
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
