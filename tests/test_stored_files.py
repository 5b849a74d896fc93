"""Every column and key that the program writes is explained, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from bsnn_cli import cli, load_runs
from bsnn_cli.report import stored_files
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.options import options
from tests.conftest import SMALL, Answer

PAGE = Path(__file__).parents[1] / "docs" / "files.md"

NETWORK = """\
import torch

def network():
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)), torch.randn(8, 6)
"""

TINY = ["model.depth=3", "model.width=10", "propagate.inputs=8"]

COMMANDS = [
    *(["train", *SMALL, f"activation={name}"] for name in ("tanh", "tanh_gpn", "gelu_gpn")),
    ["train", *SMALL, "activation=tanh_gpn", "model.weights=orthogonal"],
    ["train", *SMALL, "activation=gelu_gpn", "activation.root=upper"],
    ["propagate", *TINY, "activation=gelu_gpn", "propagate.repeats=2"],
    ["propagate", *TINY, "activation=gelu_gpn", "activation.root=upper"],
    ["propagate", "model.depth=2", "model.width=[10,8,6]", "propagate.inputs=8"],
    ["propagate", "network=net.py:network"],
    ["theory", "activation=tanh", "largest_width=64", "trials=20", "depth=2", "width=8", "networks=2"],
    ["bench", "quick=true", "dataset=digits", "model.depth=2", "model.width=12", "rounds=1"],
    *(["table", f"kind={kind}"] for kind in ("accuracy", "constraint", "roots")),
    ["table", "rows=model.depth"],
]
"""Each writes files of its own kind. The summary of approaches, of the full size, and an export are called for."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which these commands have been given, and a run has failed."""
    from bsnn_cli.report.export import export
    from bsnn_cli.results.approach_table import write_approaches
    from bsnn_cli.results.store import Results

    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("net.py").write_text(NETWORK)
        for words in COMMANDS:
            assert cli.dispatch(words) == 0, words
        [summary] = map(dict, measured_twice(folder))
        large = summary | {"approach": "bsnn", "depth": 200, "width": 500, "source": "gaussian"}
        write_approaches([large], Path("outputs/tables"))
        RunDirectory(Path("outputs/runs/digits/tanh/failed")).fail("error", "traceback")
        export(Results("outputs"), Path("copy"), "bsnn report")
        yield folder


def measured_twice(folder: Path) -> Iterator[dict[str, object]]:
    for path in folder.glob("outputs/propagation/gelu_gpn/*/summary.json"):
        summary = json.loads(path.read_text())
        if summary["repeats"] == 2:
            yield summary


def files_of(folder: Path) -> Iterator[tuple[Path, stored_files.File]]:
    """Each file of numbers with its description; an export holds copies, and one table of its own."""
    outputs = folder / "outputs"
    for path in sorted([*outputs.rglob("*.csv"), *outputs.rglob("*.json"), folder / "copy" / "runs.csv"]):
        kinds = [file for file in stored_files.FILES if path.match(file.path)]
        assert len(kinds) == 1, path
        yield path, kinds[0]


def names_in(path: Path) -> set[str]:
    if path.suffix == ".csv":
        return set(pd.read_csv(path, nrows=0).columns)
    return set(json.loads(path.read_text()))


def described(file: stored_files.File) -> list[str]:
    return [name for entry in file.entries for name in entry.names]


def test_every_column_that_is_written_is_described_and_no_other(written: Path) -> None:
    seen: dict[str, set[str]] = {}
    for path, file in files_of(written):
        seen[file.path] = seen.get(file.path, set()) | names_in(path)
    files = {file.path: set(described(file)) for file in stored_files.FILES if file.path.endswith((".csv", ".json"))}
    assert seen == files


def test_columns_stand_in_the_order_of_the_file(written: Path) -> None:
    """That of a CSV file; one that holds fewer columns leaves some out."""
    tables = [(path, file) for path, file in files_of(written) if path.suffix == ".csv"]
    assert len(tables) > 15
    for path, file in tables:
        columns = list(pd.read_csv(path, nrows=0).columns)
        assert columns == [name for name in described(file) if name in columns], path


def test_printed_and_returned_tables_are_described_too(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, returned = (file for file in stored_files.FILES if not file.path.endswith((".csv", ".json")))
    columns = set()
    for word in ("", "activation=tanh_gpn_d", "activation=gelu_gpn_d"):
        capsys.readouterr()
        assert cli.dispatch(["gpn", "format=csv", *([word] if word else [])]) == 0
        columns |= set(pd.read_csv(io.StringIO(capsys.readouterr().out)).columns)
    assert columns == set(described(printed))
    known = {key for key, _, _ in options(TrainConfig())} | {field.name for field in dataclasses.fields(RunResult)}
    frame = load_runs(written / "outputs")
    assert set(described(returned)) == set(frame.columns) - known | {"status"}


def test_a_name_is_explained_once_in_a_file() -> None:
    for file in stored_files.FILES:
        assert len(described(file)) == len(set(described(file))), file.path
        assert all(entry.meaning for entry in file.entries)


def test_the_page_is_what_the_program_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == stored_files.page(), (
        "bsnn runs help=columns format=markdown > docs/files.md"
    )
    assert cli.dispatch(["runs", "help=columns", "format=markdown"]) == 0
    assert capsys.readouterr().out == stored_files.page()


def test_the_command_explains_every_name_in_the_width_of_a_terminal(bsnn: object) -> None:
    answer: Answer = bsnn("runs", "help=columns")  # type: ignore[operator]
    assert answer.returncode == 0
    lines = answer.stdout.splitlines()
    assert max(map(len, lines)) <= stored_files.WIDTH
    assert "  forward_norm, forward_norm_std" in lines
    assert "      ‖x^l‖²/n: squared length of what enters the layer, per unit, mean over the batch" in lines
    table = pd.read_csv(io.StringIO(bsnn("runs", "help=columns", "format=csv").stdout))  # type: ignore[operator]
    assert list(table.columns) == ["file", "name", "unit", "meaning"]
    assert len(table) == sum(len(described(file)) for file in stored_files.FILES)
    assert bsnn("runs", "help=rows").returncode == 2  # type: ignore[operator]
