"""Names and texts that the encoding of a terminal, or of a locale, does not have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bsnn_cli.common.files import read_text, write_json, write_text
from tests.conftest import run_bsnn, small

NO_TEXT = os.fsdecode(b"o\xff")
ASCII = {"LC_ALL": "nowhere", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
"""A locale that does not exist, in which Python has ASCII only."""


@pytest.mark.parametrize("text", ["é – ‖x‖²", NO_TEXT, os.fsdecode(b"\xe9t\xe9"), "a\nb\n"])
def test_what_is_written_is_read(text: str, tmp_path: Path) -> None:
    write_text(tmp_path / "text", text)
    assert os.fsencode(read_text(tmp_path / "text")) == os.fsencode(text)
    write_json(tmp_path / "json", {"text": text})
    assert json.loads(read_text(tmp_path / "json"))["text"] == text


def test_a_sweep_ends_where_the_locale_has_ascii_only(tmp_path: Path) -> None:
    sweep = ["train", "-m", *small("optim.epochs=1"), "output_root=é", "seed=0,1"]
    first = run_bsnn(*sweep, cwd=tmp_path, **ASCII)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["é"]
    assert "2 runs: 2 finished" in run_bsnn(*sweep, cwd=tmp_path).stdout  # in this locale too
    again = run_bsnn("rerun", *map(str, tmp_path.glob("é/runs/*/*/*-s1")), cwd=tmp_path, **ASCII)
    assert again.stdout.endswith("identical, metrics and weights\n"), again.stderr


def test_a_folder_whose_name_is_no_text_can_be_worked_in(tmp_path: Path) -> None:
    folder = tmp_path / NO_TEXT
    folder.mkdir()
    run = ["train", *small("optim.epochs=1"), f"output_root={NO_TEXT}"]
    assert run_bsnn(*run, cwd=folder).returncode == 0
    done = run_bsnn("table", f"output_root={NO_TEXT}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert r"o\udcff" in done.stdout
    assert sorted(path.name for path in (folder / NO_TEXT).iterdir()) == ["runs", "tables"]


def test_a_terminal_without_the_letters_gets_escapes(tmp_path: Path) -> None:
    printed = run_bsnn("gpn", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert printed.returncode == 0, printed.stderr
    assert r"E[\u03c6\xb2]" in printed.stdout
    assert "1.4674135916" in printed.stdout
    refused = run_bsnn("train", "activation=tänh", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
