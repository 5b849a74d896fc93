"""A table for people, and its writers: text for a terminal, Markdown, LaTeX and HTML; of a frame also CSV and JSON."""

from __future__ import annotations

import html
import re
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
        ends: whether a cell that is too long for a terminal keeps its end, as a path does, rather than its beginning.
    """

    heading: str
    group: str = ""
    words: bool = False
    style: str = ""
    ends: bool = False


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

    columns = [Column(name, words=not pd.api.types.is_numeric_dtype(frame[name])) for name in frame.columns]
    return Table(columns, [[text_of(value, digits) for value in row] for row in frame.itertuples(index=False)])


def text_of(value: object, digits: int = 2) -> str:
    """Return a value of a frame for people."""
    import pandas as pd

    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return DASH
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


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


NARROWEST = 6
"""Characters to which a heading or a word may be shortened."""


def to_terminal(shown: Table, width: int) -> tuple[str, list[str]]:
    """Return a table of plain cells that fits into a terminal, and the headings of the columns that had to go.

    Headings are broken at `_` first, then the widest cells are cut, never so far that two texts of a column look alike,
    and never numbers. If that is not enough, columns go from the right.

    Args:
        shown: whose cells are texts.
        width: of the terminal in characters.
    """
    columns, rows = list(shown.columns), [list(map(str, row)) for row in shown.rows]
    cells = [[row[place] for row in rows] for place in range(len(columns))]
    full = [max(map(len, [column.heading, *texts])) for column, texts in zip(columns, cells, strict=True)]
    body = [max(map(len, [*_pieces(column.heading), *texts])) for column, texts in zip(columns, cells, strict=True)]
    least = [_least(column, texts) for column, texts in zip(columns, cells, strict=True)]
    count = len(columns)
    while count > 1 and sum(least[:count]) + 2 * (count - 1) > width:
        count -= 1
    room = width - 2 * (count - 1)
    low, high = (body, full) if sum(body[:count]) <= room else (least, body)
    limit = max(high)
    while limit > 1 and sum(max(few, min(many, limit)) for few, many in zip(low[:count], high, strict=False)) > room:
        limit -= 1
    sizes = [max(few, min(many, limit)) for few, many in zip(low[:count], high, strict=False)]
    headings = [_broken(column.heading, size) for column, size in zip(columns, sizes, strict=False)]
    height = max(map(len, headings))
    lines = [[heading[place - height] if place >= height - len(heading) else "" for heading in headings]
             for place in range(height)]  # fmt: skip
    lines += [[_cut(cell, size, column.ends) for cell, size, column in zip(row, sizes, columns, strict=False)]
              for row in rows]  # fmt: skip
    text = [
        "  ".join(
            cell.ljust(size) if column.words else cell.rjust(size)
            for cell, size, column in zip(line, sizes, columns, strict=False)
        )
        for line in lines
    ]
    return "\n".join(map(str.rstrip, text)), [column.heading for column in columns[count:]]


def _least(column: Column, texts: Sequence[str]) -> int:
    """Return the least width of a column at which its texts can be told apart; of a path, its last part is shown."""
    longest = max(map(len, texts), default=0)
    heading = min(len(column.heading), NARROWEST)
    if not column.words:
        return max(longest, heading)
    if column.ends:
        return max(heading, *(len(text) - text.rfind("/") for text in texts))
    different = set(texts)
    sizes = range(min(NARROWEST, longest), longest + 1)
    return max(heading, next(size for size in sizes if len({_cut(text, size) for text in different}) == len(different)))


def _pieces(heading: str) -> list[str]:
    """Return the parts of a heading, of which all but the last end with `_`."""
    return re.findall(r"[^_]*_|[^_]+$", heading) or [heading]


def _broken(heading: str, size: int) -> list[str]:
    """Return the lines of a heading in a column of this width."""
    lines = [""]
    for piece in _pieces(heading):
        if lines[-1] and len(lines[-1]) + len(piece) > size:
            lines.append("")
        lines[-1] += piece
    return [_cut(line, size) for line in lines]


def _cut(text: str, size: int, ends: bool = False) -> str:
    if len(text) <= size:
        return text
    return f"…{text[len(text) - size + 1 :]}" if ends else f"{text[: size - 1]}…"


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
    special |= {"±": r"$\pm$", "–": "--", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
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
