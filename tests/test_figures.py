"""Files of figures: ink, captions, formats, and what is missing is named with the command that makes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import matplotlib.image
import pytest

from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import figures, printing
from bsnn_cli.figures.figure import COLOURS, Axis, Figure, Panel
from bsnn_cli.report.export import WITHOUT_RESULTS, export
from bsnn_cli.results import captions
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import FIGURES, FORMATS
from bsnn_cli.settings.config import VERBS, FiguresConfig
from bsnn_cli.settings.validation import check
from tests.conftest import run_bsnn
from tests.drawing import measured, settings, theorised, trained
from tests.test_bench_figures import benched


def test_no_picture_is_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(printing.SETTINGS, "savefig.dpi", 60)  # for speed
    for name in ("tanh", "tanh_gpn", "relu"):
        measured(tmp_path, name)
    measured(tmp_path, "tanh_gpn", repeats=2)
    measured(tmp_path, "tanh_gpn", approach="bsnn")
    measured(tmp_path, "gelu_gpn", root_of_b="upper")
    measured(tmp_path, "tanh_gpn", run="one")
    trained(tmp_path, "selu_gpn", 0, [50.0, 70.0])
    measured(tmp_path, "tanh_gpn_d")
    trained(tmp_path, "selu_gpn_d", 0, [60.0, 80.0])
    theorised(tmp_path)
    benched(tmp_path)
    drawn = figures.draw(settings(tmp_path, formats=["png"]))
    elsewhere = {
        "constraint",
        "roots",
        "networks",
        "tuning",
    }  # tests/test_comparisons.py, tests/test_network_file.py and tests/test_tuning.py draw them
    names = {"curves_digits" if name == "curves" else name for name in FIGURES if name not in elsewhere}
    names |= {"bench_growth", "depth_aware_accuracy_digits"}
    assert {path.name for path in drawn.files} == {f"{name}.png" for name in names}
    for path in drawn.files:
        ink = (matplotlib.image.imread(path)[..., :3] < 0.6).any(axis=2)
        assert 0.003 < ink.mean() < 0.5, path
    captions = (tmp_path / "figures" / "captions.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in captions for name in names)


def test_captions_of_other_figures_stay(tmp_path: Path) -> None:
    for name in ("curves_mnist", "width", "curves_mnist"):
        printing.save([Figure(name, [Panel(Axis(), Axis())], f"Of {name}, f(h)² = 1.")], tmp_path, ["svg"])
    text = (tmp_path / "captions.md").read_text(encoding="utf-8")
    assert text == "# Captions\n" + "".join(
        f"\n## {name}\n\nOf {name}, f(h)² = 1.\n" for name in ("curves_mnist", "width")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"curves_mnist.svg", "width.svg", "captions.md"}


def test_all_figures_leave_nothing_of_those_that_are_gone(tmp_path: Path) -> None:
    for name in ("curves_mnist", "../outside"):
        printing.save([Figure(name, [Panel(Axis(), Axis())], "Of old runs.")], tmp_path / "figures", FORMATS)
    for name in ("figures/own.png", "outside.png"):
        (tmp_path / name).write_bytes(b"not ours")
    figures.draw(settings(tmp_path, only="activations", formats=["png"]))
    assert (tmp_path / "figures" / "curves_mnist.pdf").exists()
    figures.draw(settings(tmp_path, formats=["png"]))
    without_numbers = sorted(WITHOUT_RESULTS)
    drawn = {f"{name}.png" for name in without_numbers}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {*drawn, "own.png", "captions.md"}
    assert (tmp_path / "outside.png").exists()
    assert list(captions.captions(tmp_path / "figures")) == without_numbers


def test_an_export_has_the_figures_of_results_that_captions_name(tmp_path: Path) -> None:
    """Neither one of another day, nor one that is the same whatever has been run."""
    trained(tmp_path, "selu_gpn", 0, [50.0, 70.0])
    for name in ("activations", "curves"):
        figures.draw(settings(tmp_path, only=name, formats=["png"]))
    (tmp_path / "figures" / "stale.png").write_bytes(b"of another day")
    page = export(Results(tmp_path), tmp_path / "results", "bsnn reproduce")
    assert [path.name for path in page.parent.glob("*.png")] == ["curves_digits.png"]
    text = page.read_text(encoding="utf-8")
    assert "![curves_digits](curves_digits.png)\n\nTest accuracy on digits" in text
    assert "activations.png" not in text


def test_all_formats_are_written_and_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    measured(tmp_path, "tanh_gpn", repeats=2)
    first, second = (
        {path.suffix: path.read_bytes() for path in figures.draw(settings(tmp_path, only="width")).files}
        for _ in range(2)
    )
    assert first == second
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert {suffix: content[: len(starts[suffix])] for suffix, content in first.items()} == starts
    assert all(len(content) > 5000 for content in first.values())


def test_long_protocols_have_pictures_of_their_own() -> None:
    names = {printing.file_name("curves", "mnist", f"{'optim.lr=0.123, ' * 9}optim.epochs={n}") for n in (5, 10)}
    assert len(names) == 2
    assert {len(name) for name in names} == {printing.LONGEST}


def test_every_figure_and_activation_is_known() -> None:
    assert tuple(figures.BUILDERS) == FIGURES
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in WITHOUT_RESULTS])
def test_nothing_stored_names_a_command_that_the_program_takes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        figures.draw(settings(tmp_path, only=name))
    lines = str(caught.value).splitlines()
    assert len(lines) == (2 if name == "depth_aware" else 1)  # signals, and accuracies
    for line in lines:
        assert line.startswith(f"{name}: ")
        program, verb, *arguments = shlex.split(line.split("`")[1])
        assert program == "bsnn"
        assert verb in VERBS
        assert f"output_root={tmp_path}" in arguments


@pytest.mark.parametrize("value", [[], ["jpg"], ["png", "gif"]])
def test_unknown_formats_are_refused(value: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"formats=.*must be a list of png, svg, pdf"):
        check(FiguresConfig(formats=value))


def test_the_command(tmp_path: Path) -> None:
    measured(tmp_path / "outputs", "tanh", depth=200, width=500)
    result = run_bsnn("figures", "only=propagation", "formats=[png]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "run `bsnn propagate -m activation=tanh_gpn,selu,selu_gpn`" in result.stdout
    assert (tmp_path / "outputs" / "figures" / "propagation.png").stat().st_size > 10_000
