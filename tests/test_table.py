"""One table in each of its forms."""

from __future__ import annotations

import pandas as pd
import pytest

from bsnn_cli.common.table import Bold, Cell, Column, Table, document, render, table, to_html, to_latex, to_markdown

COLUMNS = [Column("name", words=True), Column("GPN", group="A & B"), Column("plain", group="A & B"), Column("n")]
SHOWN = Table(COLUMNS, [["<x_1>", Cell([Bold("9.5 ± 1"), " [n=2]"]), "–", "3"]], "Title", "some mix")


def test_markdown_lines_up_and_joins_groups_with_headings() -> None:
    assert to_markdown(SHOWN).splitlines() == [
        "| name  |         A & B GPN | A & B plain |   n |",
        "| ----- | ----------------: | ----------: | --: |",
        "| <x_1> | **9.5 ± 1** [n=2] |           – |   3 |",
    ]
    assert document("# Head", SHOWN, "", "end").split("\n\n") == [
        "# Head", "## Title", to_markdown(SHOWN), "Warning: some mix.", "end\n",
    ]  # fmt: skip


def test_latex_spans_groups_and_escapes() -> None:
    lines = [line.strip() for line in to_latex(SHOWN, "50 %").splitlines()]
    assert lines[0] == "% Warning: some mix."
    assert r"\caption{50 \%}" in lines
    assert r"& \multicolumn{2}{c}{A \& B} & \multicolumn{1}{c}{} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    assert r"<x\_1> & \textbf{9.5 $\pm$ 1} [n=2] & -- & 3 \\" in lines


def test_html_escapes_and_marks_what_stands_out() -> None:
    assert to_html("<x_1>") == "&lt;x_1&gt;"
    assert to_html(Cell([Bold("9 < 10"), " & more"], link="#a")) == "<strong>9 &lt; 10</strong> &amp; more"
    assert SHOWN.groups == [("A & B", 2), ("", 1)]
    assert table(["a", "b"], []).groups == []


FRAME = pd.DataFrame({"name": ["a", None], "value": [1.23456, float("nan")], "count": [1, 20]})


MARKDOWN = """\
| name | value | count |
| ---- | ----: | ----: |
| a    |  1.23 |     1 |
| –    |     – |    20 |"""
JSON = """[
  {
    "name":"a",
    "value":1.23456,
    "count":1
  },
  {
    "name":null,
    "value":null,
    "count":20
  }
]"""
TEXT = "name  value  count\na      1.23      1\n–         –     20"
CSV = "name,value,count\na,1.23456,1\n,,20"


@pytest.mark.parametrize(("form", "text"), [("text", TEXT), ("csv", CSV), ("markdown", MARKDOWN), ("json", JSON)])
def test_a_frame_is_rounded_for_people_only(form: str, text: str) -> None:
    assert render(FRAME, form) == text


def test_an_empty_frame_says_so_in_text_only() -> None:
    assert render(FRAME[:0], "text") == "nothing to show"
    assert render(FRAME[:0], "csv") == "name,value,count"
