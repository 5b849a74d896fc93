"""A table of results as text for a terminal, Markdown, CSV or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a monospaced terminal; all but the first are right-aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(lines[0]), f"| {' | '.join(rule)} |", *map(line, lines[1:])])


def render(table: pd.DataFrame, form: str, digits: int = 2) -> str:
    """A table in one of the forms `text`, `markdown`, `csv`, `json`.

    Text and Markdown are for people: numbers are rounded to `digits` decimals and what is missing is a dash. CSV and
    JSON keep every digit, with an empty field or null for what is missing.
    """
    if form == "csv":
        return table.to_csv(index=False).rstrip("\n")
    if form == "json":
        return table.to_json(orient="records", indent=2, force_ascii=False, double_precision=15)
    cells = [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    if form == "markdown":
        return markdown_table(list(table.columns), cells)
    if not cells:
        return "nothing to show"
    return pd.DataFrame(cells, columns=table.columns).to_string(index=False)


def _cell(value: object, digits: int) -> str:
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
