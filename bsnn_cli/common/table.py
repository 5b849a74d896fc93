"""A table for people, and its writers: text for a terminal, Markdown, LaTeX and HTML; of a frame also CSV and JSON."""

from __future__ import annotations

import html
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"
"""Stands for a number that is missing."""


class Bold(str):
    """A text that stands out from the rest of its cell."""


@dataclass(frozen=True)
class Cell:
    """A cell that is more than plain text.

    Attributes:
        pieces: texts that follow each other; those that are `Bold` stand out.
        link: address that the cell leads to on a page.
        style: CSS classes of the cell on a page.
    """

    pieces: Sequence[str]
    link: str = ""
    style: str = ""


@dataclass(frozen=True)
class Column:
    """The heading of a column and how its cells are shown.

    Attributes:
        heading: of this column.
        group: heading above this and neighbouring columns.
        words: whether cells begin at the left, as words do; numbers end at the right.
        style: CSS classes of the cells on a page.
    """

    heading: str
    group: str = ""
    words: bool = False
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells, with a title above them and perhaps a warning below them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    warning: str | None = None

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups of columns behind the first one, as (heading, number of columns); empty if there are none."""
        if not any(column.group for column in self.columns):
            return []
        return [(name, len(list(columns))) for name, columns in groupby(self.columns[1:], lambda column: column.group)]


def table(header: Iterable[str], rows: Iterable[Sequence[str | Cell]], words: Container[int] = (0,)) -> Table:
    """Return a table of columns without groups; those with a number in `words` hold words."""
    return Table([Column(heading, words=place in words) for place, heading in enumerate(header)], list(rows))


def of_frame(frame: pd.DataFrame, digits: int = 2) -> Table:
    """Return a frame as a table, with numbers rounded to `digits` decimals and a dash for what is missing."""
    import pandas as pd

    def cell(value: object) -> str:
        if value is None or pd.isna(value):  # type: ignore[call-overload]
            return DASH
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    columns = [Column(name, words=not pd.api.types.is_numeric_dtype(frame[name])) for name in frame.columns]
    return Table(columns, [[cell(value) for value in row] for row in frame.itertuples(index=False)])


def render(frame: pd.DataFrame, form: str, digits: int = 2) -> str:
    """Return a frame in one of the forms `text`, `markdown`, `csv`, `json`.

    Text and Markdown are for people, as `of_frame` says. CSV and JSON keep every digit, with an empty field or null for
    what is missing.
    """
    if form == "csv":
        return frame.to_csv(index=False).rstrip("\n")
    if form == "json":
        return frame.to_json(orient="records", indent=2, force_ascii=False, double_precision=15)
    shown = of_frame(frame, digits)
    if form == "markdown":
        return to_markdown(shown)
    return to_text(shown) if shown.rows else "nothing to show"


def to_text(shown: Table) -> str:
    """Return a table for a terminal."""
    return "\n".join("  ".join(line).rstrip() for line in _aligned(shown))


def to_markdown(shown: Table) -> str:
    """Return a Markdown table, without title and warning, whose columns also line up in a monospaced terminal."""
    first, *lines = _aligned(shown)
    rule = [
        "-" * len(cell) if column.words else "-" * (len(cell) - 1) + ":"
        for column, cell in zip(shown.columns, first, strict=True)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (first, rule, *lines))


def document(*parts: str | Table) -> str:
    """Return a Markdown document of paragraphs and tables, each table with its title and its warning."""
    paragraphs: list[str] = []
    for part in parts:
        if isinstance(part, Table):
            paragraphs += [f"## {part.title}"] if part.title else []
            paragraphs += [to_markdown(part)] + ([f"Warning: {part.warning}."] if part.warning else [])
        elif part:
            paragraphs.append(part)
    return "\n\n".join(paragraphs) + "\n"


def _aligned(shown: Table) -> list[list[str]]:
    """Return the header and the rows in Markdown, with all cells of a column at equal width."""
    lines = [[f"{column.group} {column.heading}".strip() for column in shown.columns]]
    lines += [[_cell(cell, str, "**{}**") for cell in row] for row in shown.rows]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [
            cell.ljust(width) if column.words else cell.rjust(width)
            for column, cell, width in zip(shown.columns, line, widths, strict=True)
        ]
        for line in lines
    ]


def _cell(cell: str | Cell, escape: Callable[[str], str], bold: str) -> str:
    pieces = [cell] if isinstance(cell, str) else cell.pieces
    return "".join(bold.format(escape(piece)) if isinstance(piece, Bold) else escape(piece) for piece in pieces)


def latex_escape(text: str) -> str:
    """Return plain text as LaTeX shows it."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "–": "--", "−": "$-$"}
    return "".join(special.get(character, character) for character in text)


def to_latex(shown: Table, caption: str) -> str:
    """Return a `table` environment, to be included in a document that loads booktabs.

    pandas' Styler would need as many lines: it has no rules under groups of columns, and its bold is of whole cells.
    """
    spans, rules, first = [], [], 2
    for name, width in shown.groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(name)}}}")
        rules += [rf"\cmidrule(lr){{{first}-{first + width - 1}}}"] if name else []
        first += width
    lines = [
        *([f"% Warning: {shown.warning}."] if shown.warning else []),
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex_escape(caption)}}}",
        rf"  \begin{{tabular}}{{l{'c' * (len(shown.columns) - 1)}}}",
        r"    \toprule",
        *([f"    & {' & '.join(spans)} \\\\", f"    {' '.join(rules)}"] if spans else []),
        f"    {' & '.join(latex_escape(column.heading) for column in shown.columns)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(_cell(cell, latex_escape, BOLD_LATEX) for cell in row)} \\\\" for row in shown.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


BOLD_LATEX = r"\textbf{{{}}}"


def to_html(cell: str | Cell) -> str:
    """Return a cell in HTML; the template of the report puts cells into a `table` element."""
    return _cell(cell, html.escape, "<strong>{}</strong>")
