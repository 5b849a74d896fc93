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


def _groups(shown: Table) -> list[tuple[str, int]]:
    """Return (heading, number of columns) of each group after the first column; empty if there are no groups."""
    if not any(column.group for column in shown.columns):
        return []
    return [(name, len(list(columns))) for name, columns in groupby(shown.columns[1:], lambda column: column.group)]


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
    for name, width in _groups(shown):
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
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


def to_html(shown: Table, style: str = "", **attributes: str) -> str:
    """Return a `table` element with these CSS classes and attributes; the first cell of a row is its heading."""

    def opened(name: str, css: str, **others: str) -> str:
        given = {"class": css, **others}
        return f"<{name}" + "".join(f' {key}="{html.escape(text)}"' for key, text in given.items() if text) + ">"

    def classes(column: Column, style: str = "") -> str:
        return " ".join(word for word in ("" if column.words else "number", column.style, style) if word)

    def data(column: Column, cell: str | Cell) -> str:
        text, style, link = _cell(cell, html.escape, "<strong>{}</strong>"), "", ""
        if isinstance(cell, Cell):
            style, link = cell.style, cell.link
        text = f'<a href="{html.escape(link)}">{text}</a>' if link else text
        return f"{opened('td', classes(column, style))}{text}</td>"

    lines = [opened("table", style, **attributes)]
    lines += [f"<caption>{html.escape(shown.title)}</caption>"] if shown.title else []
    groups = [
        f"{opened('th', 'span', colspan=str(width), scope='colgroup')}{html.escape(name)}</th>"
        for name, width in _groups(shown)
    ]
    lines += ["<thead>", *([f"<tr><td></td>{''.join(groups)}</tr>"] if groups else [])]
    heads = [
        f"{opened('th', '' if column.words else 'number', scope='col')}{html.escape(column.heading)}</th>"
        for column in shown.columns
    ]
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for label, *cells in shown.rows:
        rest = "".join(data(column, cell) for column, cell in zip(shown.columns[1:], cells, strict=True))
        lines.append(f'<tr><th scope="row">{_cell(label, html.escape, "<strong>{}</strong>")}</th>{rest}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>"])
