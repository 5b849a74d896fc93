"""The list of faults in `tests/FAULTS.md` names tests that exist, and says which of them are torture."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS / "FAULTS.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| fault ")
]


def definition(name: str) -> ast.FunctionDef:
    """The test of a name such as `test_faults.py::test_hundreds_of_kills`."""
    file, _, function = name.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    [found] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return found


def test_the_matrix_is_there() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_fault_names_its_test(row: str) -> None:
    [name] = re.findall(r"`(test_\w+\.py::test_\w+)(?:\[.*\])?` \|$", row)
    marks = [ast.unparse(decorator) for decorator in definition(name).decorator_list]
    assert ("pytest.mark.torture" in marks) == ("*torture*" in row)
