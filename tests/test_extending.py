"""Follow the steps of docs/extending.md for an activation in a copy of the program, and try the result."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import SMALL

CHECKOUT = Path(__file__).parents[1]
PAGE = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")
ENTRY, TEST = re.findall(r"^```py\n(.*?)^```$", PAGE, re.M | re.S)
COLOUR = re.findall(r'colour="(#.{6})"', ENTRY)[0]


def insert(path: Path, entry: str, table: str) -> None:
    """Put an entry at the end of a table, as a reader of the page would."""
    text = path.read_text(encoding="utf-8")
    start = text.index(f"\n{table} = {{\n")
    end = text.index("\n}\n", start) + 1
    path.write_text(text[:end] + textwrap.indent(entry, "    ") + text[end:], encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the program with the activation of the page."""
    root = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(CHECKOUT / "bsnn_cli", root / "bsnn_cli", ignore=ignored)
    shutil.copytree(CHECKOUT / "configs", root / "bsnn_cli" / "configs", ignore=ignored)
    shutil.copytree(CHECKOUT / "tests", root / "tests", ignore=ignored)
    shutil.copy(CHECKOUT / "pyproject.toml", root)
    insert(root / "bsnn_cli" / "settings" / "named_activations.py", ENTRY, "NAMED_ACTIVATIONS")
    insert(root / "tests" / "test_activations.py", TEST, "TORCH_FUNCTIONS")
    return root


def run(root: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run Python in the copy, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(root)} | environment
    answer = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def test_the_command_knows_the_activation_of_the_page(extended: Path) -> None:
    program = ["-m", "bsnn_cli"]
    assert {"arctan", "arctan_gpn", "arctan_gpn_d"} <= set(run(extended, *program, "train", "--help").split())
    asked = {"COMP_LINE": "bsnn train activation=arc", "COMP_POINT": "25"}
    completed = run(extended, *program, "-sc", "query=bash", **asked)
    assert completed.split() == ["activation=arctan", "activation=arctan_gpn", "activation=arctan_gpn_d"]
    assert "did you mean arctan_gpn?" in run(extended, *program, "train", "activation=arktan_gpn", code=2)
    constants = run(extended, *program, "gpn", "format=csv").splitlines()
    assert constants[-1].startswith("arctan,1.414213562")

    trained = run(extended, *program, "train", "-m", "activation=arctan,arctan_gpn", *SMALL, "hydra/launcher=fleet")
    assert "arctan_gpn" in trained
    assert "Arctan" in run(extended, *program, "table")
    run(extended, *program, "figures", "only=curves", "formats=[svg]")
    [curves] = (extended / "outputs" / "figures").glob("curves*.svg")
    assert COLOUR.lower() in curves.read_text(encoding="utf-8")


def test_the_tests_of_the_page_go_through_the_activation(extended: Path) -> None:
    files = [f"tests/test_{name}.py" for name in ("activations", "gpn", "tailored", "figures", "cli")]
    chosen = "arctan or colour or by_its_nature or (bad_input and activation)"
    told = run(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files)
    assert re.search(r"\d+ passed", told)
