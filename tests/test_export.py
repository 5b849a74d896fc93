"""The page of an export, of runs that try values of a setting and of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsnn_cli.figures import figures
from bsnn_cli.report.export import export
from bsnn_cli.results.kinds import KINDS
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import FiguresConfig
from tests.storage import store

RATES = (0.001, 0.01, 0.1)


def exported(root: Path) -> str:
    """The page of an export of what is stored in a folder, with its tables and its figures of runs."""
    results = Results(root)
    KINDS["accuracy"](results, root / "tables")
    figures.draw(FiguresConfig(output_root=str(root)))
    return export(results, root / "export", "bsnn report export=export").read_text()


def tuning(root: Path, activation: str, accuracies: list[list[float]], validation: float = 0.1) -> None:
    """Runs at three learning rates with these test accuracies after each epoch."""
    for rate, by_epoch in zip(RATES, accuracies, strict=True):
        store(root, activation, by_epoch, optim__lr=rate, dataset__validation=validation)


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FORMATS", ("png",))
    monkeypatch.setattr(figures, "FIGURES", ("curves", "tuning", "depth_aware"))


def test_runs_that_try_values_are_one_table_and_one_figure(tmp_path: Path) -> None:
    tuning(tmp_path, "tanh", [[50.0, 60.0], [91.0, 94.0], [10.0, 11.0]])
    tuning(tmp_path, "tanh_gpn", [[70.0, 96.0], [95.0, 95.5], [20.0, 95.0]])
    page = exported(tmp_path)
    assert "## Each at its best" in page
    [tanh, gpn] = [line for line in page.splitlines() if line.startswith("| tanh")]
    assert [cell.strip() for cell in tanh.split("|")[1:-1]] == ["tanh", "0.01", "2 of 3", "93.00", "94.00", "**1**"]
    cells = [cell.strip() for cell in gpn.split("|")[1:-1]]
    assert cells == ["tanh_gpn", "0.001 ↓", "3 of 3", "**95.00**", "**96.00**", "2"]
    assert "`bsnn table tune=optim.lr rows=activation" in page
    for other in ("## Test accuracy", "## Train accuracy", "paired by seed", "![curves"):
        assert other not in page
    assert [path.name[:6] for path in (tmp_path / "export").glob("*.png")] == ["tuning"]
    assert "0.01" in (tmp_path / "export" / "test_accuracy.csv").read_text()  # the files hold all runs


def test_depth_aware_runs_that_try_values_make_no_picture_for_each(tmp_path: Path) -> None:
    for rate in RATES:
        values = {"activation__separation": 0.3, "model__depth": 50, "dataset__validation": 0.1, "optim__lr": rate}
        store(tmp_path, "tanh_gpn", [50.0, 60.0], **values)
    exported(tmp_path)
    pictures = [path.name for path in (tmp_path / "export").glob("*.png")]
    assert [name for name in pictures if name.startswith(("curves", "depth_aware_accuracy"))] == []
    assert any(name.startswith("tuning") for name in pictures)


def test_a_study_of_depth_is_shown_at_every_depth(tmp_path: Path) -> None:
    for depth in (3, 10, 50):
        store(tmp_path, "tanh", [50.0, 60.0 + depth / 100], model__depth=depth, dataset__validation=0.1)
    page = exported(tmp_path)
    for accuracy in ("60.03", "60.10", "60.50"):
        assert accuracy in page
    assert "Each at its best" not in page
    assert len(list((tmp_path / "export").glob("curves*.png"))) == 3


def test_other_runs_stay_in_tables_of_their_own(tmp_path: Path) -> None:
    tuning(tmp_path, "tanh", [[50.0, 60.0], [91.0, 94.0], [10.0, 11.0]])
    store(tmp_path, "selu", [40.0, 41.5], dataset__validation=0.1)  # at one rate
    tuning(tmp_path, "elu", [[31.0, 32.5], [33.0, 34.5], [35.0, 36.5]], validation=0.0)  # nothing to choose by
    page = exported(tmp_path)
    accuracies = page.partition("## Test accuracy")[2].partition("## GPN minus")[0]
    for shown in ("41.50", "32.50", "34.50", "36.50"):
        assert shown in accuracies
    assert "94.00" not in accuracies
    assert "94.00" in page.partition("## Test accuracy")[0]
    assert len(list((tmp_path / "export").glob("curves*.png"))) == 4  # one of SELU, three of ELU


def test_without_such_runs_the_page_has_the_tables_of_the_folder(tmp_path: Path) -> None:
    tuning(tmp_path, "elu", [[31.0, 32.5], [33.0, 34.5], [35.0, 36.5]], validation=0.0)
    page = exported(tmp_path)
    table = (tmp_path / "tables" / "test_accuracy.md").read_text().replace("# Test", "## Test", 1)
    assert table.partition("\n\n")[0] in page
    assert "Each at its best" not in page
