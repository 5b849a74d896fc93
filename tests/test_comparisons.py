"""Exact orthogonality against unit rows, upper against lower root: what is compared, and with which numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from bsnn_cli import cli
from bsnn_cli.figures import figures
from bsnn_cli.measuring import propagation_store
from bsnn_cli.measuring.records import LayerRecord, Measurement
from bsnn_cli.results import comparison_tables, formats
from bsnn_cli.results.store import Results
from bsnn_cli.settings.config import FiguresConfig, PropagateConfig
from tests.drawing import built
from tests.storage import store


def signals(
    folder: Path,
    lengths: list[float],
    run: str | None = None,
    digest: str | None = None,
    width: int = 10,
    **choice: str,
) -> None:
    """A measurement of one layer with these lengths at its end, one a repeat."""
    import torch

    config = PropagateConfig(output_root=str(folder), run=run, weights_digest=digest)
    config.activation = dataclasses.replace(config.activation, **choice)
    config.model.depth, config.model.width, config.propagate.repeats = 1, width, len(lengths)
    first = LayerRecord(layer=1, forward_norm=1.0, one_minus_cosine=0.9, backward_norm=1.0, gradient_norm=2.0,
                        derivative_std=0.1)  # fmt: skip
    made = [
        Measurement([first, LayerRecord(layer=2, forward_norm=length, one_minus_cosine=length / 10)],
                    {1: torch.tensor([0.5, 1.0])})
        for length in lengths
    ]  # fmt: skip
    propagation_store.write(propagation_store.directory(config), config, made, {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, (free, exact) in enumerate([(80.0, 85.0), (82.0, 84.0)]):
        for weights, accuracy, error in (("unit_rows", free, 0.1 + seed), ("orthogonal", exact, 1e-6)):
            run = store(tmp_path, "selu_gpn", [accuracy], error, seed=seed, model__weights=weights, optim__epochs=1)
            if seed == 0:
                signals(tmp_path, [0.5], run=str(run.path), digest=f"{weights}")
    store(tmp_path, "tanh_gpn", [70.0], optim__epochs=1)  # no partner
    for name, upper, lower in (("silu", [], [60.0]), ("gelu", [20.0], [61.0])):
        for choice, accuracies in (("upper", upper), ("lower", lower)):
            store(tmp_path, f"{name}_gpn", accuracies, activation__root=choice, optim__epochs=1)
            signals(tmp_path, [3.0, 1e9] if choice == "upper" else [0.9, 1.1], name=name, root=choice)
    rows = [
        {"what": "length", "activation": "silu", "root": choice, "chi": chi, "start": 1.0, "layer": 1, "width": width,
         "band_low": 0.8, "band_high": high}
        for choice, chi, high in (("upper", 1.147, math.inf), ("lower", 0.4, 1.2))
        for width in (10,)
    ]  # fmt: skip
    (tmp_path / "theory").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "theory" / "theory.csv", index=False)
    return tmp_path


def test_constraint_compares_what_differs_in_nothing_else(root: Path) -> None:
    table = Results(root).constraint
    assert list(table["activation"]) == ["selu", "selu"]
    assert list(table["weights"]) == ["unit_rows", "orthogonal"]
    assert [str(setting) for setting in table["setting"]] == ["optim.epochs=1"] * 2
    assert list(table["test"]) == [81.0, 84.5]
    assert list(table["n"]) == [2, 2]
    assert list(table["orthogonality_error"]) == [1.1, 1e-6]
    assert table["step_ms"].isna().all()
    assert list(table["measured"]) == [1, 1]
    assert list(table["forward_norm_last"]) == [0.5, 0.5]


def test_the_cost_of_a_step_is_what_the_benchmark_has_timed_in_turns(root: Path) -> None:
    size = {"depth": 200, "width": 500, "batch_size": 64, "norm": "none", "implementation": "bsnn"}
    size |= {"activation": "selu_gpn"}
    rows = [
        {"comparison": "weights=orthogonal", "weights": "unit_rows", "step_ms": 250.0, **size},
        {"comparison": "weights=orthogonal", "weights": "orthogonal", "step_ms": 320.0, **size},
        {"comparison": "main", "weights": "unit_rows", "step_ms": 1.0, **size},
        {"comparison": "weights=orthogonal", "weights": "orthogonal", "step_ms": 2.0, **size, "width": 100},
        {"comparison": "weights=orthogonal", "weights": "unit_rows", "step_ms": 3.0, **size, "implementation": "plain"},
        {"comparison": "weights=orthogonal", "weights": "unit_rows", "step_ms": 4.0, **size, "activation": "selu"},
    ]
    (root / "bench").mkdir()
    pd.DataFrame(rows).to_csv(root / "bench" / "bench.csv", index=False)
    table = Results(root).constraint
    assert list(table["step_ms"]) == [250.0, 320.0]
    assert comparison_tables.constraint_table(table).rows[1][5] == "320 ms"


def test_auto_and_the_root_it_comes_to_count_once(tmp_path: Path) -> None:
    for choice, accuracy in (("auto", 80.0), ("upper", 80.0), ("lower", 70.0)):
        store(tmp_path, "tanh_gpn", [accuracy], activation__root=choice, activation__separation=0.3)
    for choice in ("upper", "lower"):
        signals(tmp_path, [1.0], name="tanh", root=choice)
    table = Results(tmp_path).roots
    assert list(table["test"]) == [80.0, 70.0]
    assert list(table["n"]) == [1, 1]
    [picture], _ = built(tmp_path, "roots")
    assert "accuracy" not in picture.caption  # signals are those of φ as it is


def test_both_roots_are_of_one_size(root: Path) -> None:
    signals(root, [7.0], name="gelu", root="upper", width=20)
    table = Results(root).root_signals.set_index(["activation", "root"])
    assert set(table["width"]) == {10}
    signals(root, [0.8], name="gelu", root="lower", width=20)
    table = Results(root).root_signals.set_index(["activation", "root"])
    assert list(table.loc["gelu", "width"]) == [20, 20]
    assert list(table.loc["gelu", "forward_norm_last_low"]) == [7.0, 0.8]


def test_roots_stand_beside_prediction_and_measurement(root: Path) -> None:
    stored = Results(root)
    accuracies = stored.roots.set_index(["activation", "root"])
    assert accuracies.loc[("gelu", "upper"), "test"] == 20.0
    assert accuracies.loc[("gelu", "lower"), "test"] == 61.0  # by the name of `auto`, as the paper chooses it
    assert accuracies.loc[("silu", "upper"), "diverged"] == 1
    table = stored.root_signals.set_index(["activation", "root"])
    assert list(table.index) == [(name, choice) for name in ("gelu", "silu") for choice in ("upper", "lower")]
    assert list(table["published"]) == [False, True, False, True]
    assert table.loc[("silu", "upper"), "chi"] == 1.147
    assert table.loc[("silu", "upper"), "predicted_high"] == math.inf
    assert math.isnan(table.loc[("gelu", "upper"), "chi"])  # not in theory.csv
    assert table.loc[("silu", "upper"), "forward_norm_last_low"] == 3.0
    assert table.loc[("silu", "upper"), "forward_norm_last_high"] == 1e9


def test_tables_and_figures_say_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["table", "kind=constraint", f"output_root={root}"]) == 0
    text = capsys.readouterr().out
    text = " ".join(text.split())
    assert "| SELU-GPN, MNIST, optim.epochs=1 | unit_rows | 81.00 ± 1.41 [n=2] |" in text
    assert "| orthogonal | 84.50 ± 0.71 [n=2] |" in text
    assert cli.dispatch(["table", "kind=roots", f"output_root={root}"]) == 0
    text = capsys.readouterr().out
    assert "| SiLU | upper | 1.15 | 0.8 … ∞ | 3 … 1e9 [n=2] |" in " ".join(text.split())
    assert "| SiLU-GPN, MNIST, optim.epochs=1 | upper | diverged | diverged |" in " ".join(text.split())
    for name in ("constraint", "roots"):
        drawn = figures.draw(FiguresConfig(output_root=str(root), only=name, formats=["png"]))
        assert [path.name for path in drawn.files] == [f"{name}.png"]
        assert drawn.missing == []


def test_captions_speak_of_bars_where_there_are_some(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    words = "test accuracy, mean ± sample standard deviation over the seeds;"
    assert words in built(root, "constraint")[0][0].caption
    assert "; test accuracy. Accuracy: MNIST, optim.epochs=1; n = 1 seed" in built(root, "roots")[0][0].caption
    alone = tmp_path_factory.mktemp("alone")
    for weights in ("unit_rows", "orthogonal"):
        store(alone, "selu_gpn", [80.0], model__weights=weights, optim__epochs=1)
    assert "unit length (open): test accuracy; largest" in built(alone, "constraint")[0][0].caption


@pytest.mark.parametrize(
    ("value", "text"),
    [(1133.0, "1130"), (0.000493, "0.000493"), (5.734e16, "5.73e16"), (4.6e-6, "4.6e−6"), (0.0, "0"), (1e-10, "1e−10"),
     (math.nan, "–"), (math.inf, "∞"), (2.0, "2")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert formats.number(value) == text


def test_without_a_pair_there_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path, "selu_gpn", [70.0])
    for kind in ("constraint", "roots"):
        assert cli.dispatch(["table", f"kind={kind}", f"output_root={tmp_path}"]) == 2
        assert "run `bsnn " in capsys.readouterr().err
        drawn, missing = built(tmp_path, kind)
        assert (len(drawn), len(missing)) == (0, 1)
