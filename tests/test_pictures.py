"""Figures from tiny stored numbers: what is drawn is what is stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bsnn_cli.figures.figure import Axis, Figure, Missing, Panel
from bsnn_cli.figures.printing import render
from bsnn_cli.figures.signals import Line
from bsnn_cli.gpn import meanfield
from tests.drawing import DEPTH, built, lines, measured, theorised, trained
from tests.storage import store


def test_propagation_draws_the_stored_norms(tmp_path: Path) -> None:
    tables = {name: measured(tmp_path, name, 1.0 + place) for place, name in enumerate(("tanh", "tanh_gpn", "selu"))}
    [picture], [missing] = built(tmp_path, "propagation")
    for ax, quantity in zip(picture.figure.axes, ("forward_norm", "gradient_norm"), strict=True):
        assert ax.get_yscale() == "log"
        for name, table in tables.items():
            [line] = lines(ax, name)
            stored = table[table[quantity].notna()]
            np.testing.assert_array_equal(line.get_xdata(), stored["layer"])
            np.testing.assert_array_equal(line.get_ydata(), stored[quantity])
        assert not list(lines(ax, "selu_gpn"))
    words = "bsnn propagate activation=selu_gpn model.depth=4 model.width=10"
    assert missing == Missing("propagation", "signals of 1 of 4 networks", f"{words} output_root={tmp_path}")
    assert "L = 4 layers, n = 10 units, 8 standard Gaussian inputs" in picture.caption


def test_signals_are_of_the_paper_s_network_and_of_the_size_asked_for(tmp_path: Path) -> None:
    table = measured(tmp_path, "tanh")
    measured(tmp_path, "tanh", 9.0, width=20)
    measured(tmp_path, "tanh", 9.0, init="he_normal", weights="free")
    measured(tmp_path, "tanh", 9.0, approach="weight_norm")
    [picture], _ = built(tmp_path, "propagation")
    [line] = lines(picture.figure.axes[0], "tanh")
    np.testing.assert_array_equal(line.get_ydata(), table["forward_norm"])


def test_measurements_of_equal_repeats_stand_side_by_side(tmp_path: Path) -> None:
    once = measured(tmp_path, "tanh_gpn", 1.0)
    measured(tmp_path, "tanh_gpn", 5.0, repeats=3)
    measured(tmp_path, "tanh")
    [picture], _ = built(tmp_path, "propagation")
    [line] = lines(picture.figure.axes[0], "tanh_gpn")
    np.testing.assert_array_equal(line.get_ydata(), once["forward_norm"])
    assert "repeats: 1" in picture.figure.texts[0].get_text()


def test_dead_networks_are_said_to_be_dead(tmp_path: Path) -> None:
    measured(tmp_path, "relu", 0.0)
    measured(tmp_path, "gelu", 1e-30)
    measured(tmp_path, "elu")
    [picture], _ = built(tmp_path, "propagation_all")
    said = {(row, column): [text.get_text() for text in picture.figure.axes[6 * row + column].texts]
            for row in (0, 1) for column in range(6)}  # fmt: skip
    assert said[0, 1] == said[1, 1] == ["non-GPN\nall exactly 0"]
    assert said[0, 5] == ["non-GPN\ndown to\n$10^{-32}$"]  # 1e-30·2⁻⁵ = 3e-32
    assert said[0, 3] == said[1, 3] == []


def test_histograms_are_those_of_the_last_layer(tmp_path: Path) -> None:
    measured(tmp_path, "elu")
    [picture], _ = built(tmp_path, "derivatives")
    [outline] = picture.figure.axes[3].get_lines()
    [stored] = (tmp_path / "propagation" / "elu").glob("*/histogram.csv")
    bins = pd.read_csv(stored)
    bins = bins[bins["layer"] == DEPTH]
    np.testing.assert_array_equal(outline.get_ydata(), [0, *np.repeat(bins["density"], 2), 0])
    np.testing.assert_array_equal(outline.get_xdata(), np.repeat([*bins["left"], bins["right"].iloc[-1]], 2))
    assert (bins["density"] * (bins["right"] - bins["left"])).sum() == pytest.approx(1)


def test_width_shows_mean_and_spread_over_repeats(tmp_path: Path) -> None:
    for width in (100, 250):
        measured(tmp_path, "tanh_gpn", repeats=2, width=width)
    measured(tmp_path, "tanh_gpn", repeats=1, width=500)  # one repeat has no spread
    [picture], [missing] = built(tmp_path, "width")
    [bars] = picture.figure.axes[0].containers
    # Gradients of the repeats are 1 2 3 4 and 2 3 4 5, so their ratios are 4 and 2.5.
    np.testing.assert_allclose(bars.lines[0].get_ydata(orig=False), [3.25, 3.25])
    np.testing.assert_allclose(bars.lines[0].get_xdata(orig=False), [100, 250], rtol=0.02)
    [low], [high] = ([cap.get_ydata(orig=False)[0]] for cap in bars.lines[1])
    np.testing.assert_allclose([low, high], [3.25 - 1.5 / math.sqrt(2), 3.25 + 1.5 / math.sqrt(2)])
    assert "model.width=100,250,500,1000,1500 activation=tanh_gpn,selu_gpn propagate.repeats=5" in missing.command


def test_both_roots_stand_beside_each_other(tmp_path: Path) -> None:
    upper = measured(tmp_path, "gelu_gpn", 3.0, root_of_b="upper")
    lower = measured(tmp_path, "gelu_gpn", 1.0)  # the published root of GELU
    measured(tmp_path, "silu_gpn", 7.0, width=20)
    [picture], [missing] = built(tmp_path, "root_signals")
    forward, gradient, _ = picture.figure.axes
    for ax, quantity in ((forward, "forward_norm"), (gradient, "gradient_norm")):
        drawn = {line.get_linestyle(): line.get_ydata() for line in ax.get_lines()}
        np.testing.assert_array_equal(drawn["-"], upper[quantity].dropna())
        np.testing.assert_array_equal(drawn[":"], lower[quantity].dropna())
    assert "activation=relu_gpn,lrelu_gpn,silu_gpn activation.root=upper,lower" in missing.command


def test_bands_stay_on_a_logarithmic_axis_and_captions_tell_of_them(tmp_path: Path) -> None:
    table = pd.DataFrame({"layer": [1, 2], "length": [2.0, 9.0], "length_std": [4.0, 0.0]})
    series = Line("Tanh", "tanh", []).series(table, "length")
    [ax] = render(Figure("one", [Panel(Axis(), Axis(log=True), [series])], "")).axes
    [band] = ax.collections
    corners = {(layer, round(value, 12)) for layer, value in band.get_paths()[0].vertices}
    assert corners == {(1, round(2 / 3, 12)), (1, 6.0), (2, 9.0)}

    measured(tmp_path, "gelu_gpn")
    measured(tmp_path, "gelu_gpn", root_of_b="upper")
    words = "Shaded: one sample standard deviation over the repeats, as a factor."
    for repeats in (1, 2):
        measured(tmp_path, "gelu_gpn", repeats=repeats)
        for name in ("root_signals", "propagation_all"):
            [picture], _ = built(tmp_path, name)
            assert (words in picture.caption) == any(ax.collections for ax in picture.figure.axes) == (repeats > 1)


def test_trained_networks_stand_beside_their_start(tmp_path: Path) -> None:
    stored = {
        "-": measured(tmp_path, "tanh_gpn", 2.0, run="one"),
        "--": measured(tmp_path, "tanh_gpn", 3.0, run="other", weights="orthogonal"),
        ":": measured(tmp_path, "tanh_gpn", 1.0),
    }
    measured(tmp_path, "tanh_gpn", 9.0, init="he_normal")
    measured(tmp_path, "tanh_gpn", 8.0, root_of_b="lower")
    measured(tmp_path, "tanh_gpn", 7.0, norm="layer")
    measured(tmp_path, "tanh_gpn", 6.0, run="third", weights="free")
    [picture], missing = built(tmp_path, "after_training")
    assert missing == []
    drawn = {line.get_linestyle(): list(line.get_ydata()) for line in picture.figure.axes[0].get_lines()}
    assert drawn == {style: list(table["forward_norm"]) for style, table in stored.items()}
    assert "after training, orthogonal weights (dashed, circles)" in picture.caption
    assert "Trained on" not in picture.caption  # their runs are gone


def test_trained_networks_that_differ_in_the_seed_alone_are_one_line(tmp_path: Path) -> None:
    measured(tmp_path, "tanh_gpn", repeats=5)
    longer = store(tmp_path, "tanh_gpn", [50.0, 60.0], optim__epochs=2)
    measured(tmp_path, "tanh_gpn", 5.0, run=str(longer.path))
    for weights, scales in (("unit_rows", (2.0, 8.0)), ("orthogonal", (3.0,))):
        for seed, scale in enumerate(scales):
            run = store(tmp_path, "tanh_gpn", [50.0], seed=seed, model__weights=weights, optim__epochs=1)
            measured(tmp_path, "tanh_gpn", scale, run=str(run.path), weights=weights)
    [picture], _ = built(tmp_path, "after_training")
    ax = picture.figure.axes[0]
    halved = 2.0 ** -np.arange(1, DEPTH + 2)
    drawn = {line.get_linestyle(): line.get_ydata() for line in ax.get_lines()}
    assert len(ax.get_lines()) == len(drawn) == 3
    for style, scale in (("-", 4.0), ("--", 3.0), (":", 1.0)):
        np.testing.assert_allclose(drawn[style], scale * halved)
    factor = math.exp(math.log(4) / math.sqrt(2))
    np.testing.assert_allclose(ax.collections[0].get_paths()[0].get_extents().ymax, 4 * factor * halved[0])
    for words in ("Trained on MNIST, 1 epoch.", "over the networks, as a factor", "networks: 1 to 2, fresh: 5"):
        assert words in picture.caption


def test_approaches_are_dots_or_words(tmp_path: Path) -> None:
    measured(tmp_path, "tanh_gpn", approach="bsnn")
    measured(tmp_path, "relu", 0.0, approach="spectral_norm", init="glorot_uniform", weights="spectral_norm")
    [picture], [missing] = built(tmp_path, "approaches")
    forward, ratio, *_ = picture.figure.axes
    assert forward.containers[0].lines[0].get_xdata()[0] == 2.0**-5
    assert ratio.containers[0].lines[0].get_xdata()[0] == 4.0
    assert [text.get_text() for text in forward.texts] == ["0"]
    assert [text.get_text() for text in ratio.texts] == ["not defined"]
    assert [tick.get_text() for tick in forward.get_yticklabels()] == ["BSNN (Tanh-GPN)", "Spectral norm (ReLU)"]
    assert "approach=dynamical_isometry,self_normalizing" in missing.command


def test_curves_are_means_over_seeds_and_name_what_diverged(tmp_path: Path) -> None:
    trained(tmp_path, "selu_gpn", 0, [50.0, 70.0])
    trained(tmp_path, "selu_gpn", 1, [60.0, 90.0])
    trained(tmp_path, "selu", 0, [10.0, 20.0])
    trained(tmp_path, "selu", 1, [30.0], diverged=True)
    [picture], [missing] = built(tmp_path, "curves")
    [ax] = picture.figure.axes
    [gpn], [plain] = lines(ax, "selu_gpn"), lines(ax, "selu")
    np.testing.assert_array_equal(gpn.get_xdata(), [1, 2])
    np.testing.assert_array_equal(gpn.get_ydata(), [55.0, 80.0])
    np.testing.assert_array_equal(plain.get_ydata(), [20.0, 20.0])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(55 - math.sqrt(50))
    assert band.max() == pytest.approx(80 + math.sqrt(200))
    assert [text.get_text() for text in ax.texts] == ["GPN: n = 2, non-GPN: n = 1 (1 diverged)"]
    assert picture.name == "curves_digits"
    assert "CIFAR-10" in missing.what
    assert missing.command.startswith("bsnn train -m activation=")


def test_curves_of_one_seed_speak_of_no_band(tmp_path: Path) -> None:
    """And their number of seeds stands outside of the panels, where no curve runs."""
    for activation in ("selu_gpn", "selu"):
        trained(tmp_path, activation, 0, [50.0, 70.0])
    [picture], _ = built(tmp_path, "curves")
    assert [text for ax in picture.figure.axes for text in ax.texts] == []
    assert any(text.get_text().endswith("; n = 1") for text in picture.figure.texts)
    assert "(dashed): one seed; " in picture.caption


def test_a_run_that_diverged_at_once_leaves_the_others_their_bands(tmp_path: Path) -> None:
    trained(tmp_path, "selu_gpn", 0, [50.0, 70.0])
    trained(tmp_path, "selu_gpn", 1, [60.0, 90.0])
    trained(tmp_path, "gelu_gpn", 0, [], diverged=True)
    [picture], _ = built(tmp_path, "curves")
    [band] = [band for ax in picture.figure.axes for band in ax.collections]
    assert band.get_paths()[0].get_extents().ymax == pytest.approx(80 + 2**0.5 * 10)


def test_one_epoch_makes_no_curve(tmp_path: Path) -> None:
    trained(tmp_path, "selu_gpn", 0, [50.0])
    pictures, [missing] = built(tmp_path, "curves")
    assert pictures == []
    assert "CIFAR-10" in missing.what


def test_theorems_draw_the_stored_probabilities(tmp_path: Path) -> None:
    table = theorised(tmp_path)
    [picture], missing = built(tmp_path, "theorems")
    assert missing == []
    for row, what in enumerate(("theorem_1", "theorem_2")):
        for column, case in enumerate(("none", "haar", "shell", "gpn")):
            [line] = lines(picture.figure.axes[4 * row + column], "gelu_gpn")
            own = table[(table["what"] == what) & (table["case"] == case) & (table["activation"] == "gelu")]
            np.testing.assert_array_equal(line.get_ydata(), own["estimate"])
            np.testing.assert_array_equal(line.get_xdata(), own["width"])


@pytest.mark.parametrize("name", ["lengths", "angles", "gradients"])
def test_depth_view_draws_predictions_as_lines_and_measurements_as_dots(name: str, tmp_path: Path) -> None:
    table = theorised(tmp_path)
    [picture], _ = built(tmp_path, name)
    ax = picture.figure.axes[1]
    assert ax.get_title() == "GELU"
    own = table[(table["what"] == name[:-1]) & (table["activation"] == "gelu")]
    for root, dashes in (("lower", "-"), ("upper", ":"), (None, "--")):  # GELU's published root is the lower one
        form = own[own["root"].isna() if root is None else own["root"] == root]
        drawn = [line.get_ydata() for line in ax.get_lines() if line.get_linestyle() == dashes]
        stored = [list(path["predicted"]) for _, path in form.groupby("start")]
        np.testing.assert_array_equal(drawn, stored)
    dots = sorted(tuple(line.get_ydata()) for line in ax.get_lines() if line.get_marker() == "o")
    assert dots == sorted(tuple(path["measured"]) for _, path in own.groupby(["root", "start"], dropna=False))


def test_figures_of_theory_name_the_weights_and_what_older_files_lack(tmp_path: Path) -> None:
    table = theorised(tmp_path)
    [picture], _ = built(tmp_path, "gradients")
    assert "n = 16 units with orthogonal weights" in picture.caption
    path = tmp_path / "theory" / "theory.csv"
    table.assign(weights="gaussian", sigma_w=1.5, sigma_b=0.1).to_csv(path, index=False)
    [picture], _ = built(tmp_path, "gradients")
    assert "n = 16 units with Gaussian weights (σ_w = 1.5, σ_b = 0.1)" in picture.caption
    table[table["what"] != "gradient"].to_csv(path, index=False)
    command = f"bsnn theory output_root={tmp_path}"
    assert built(tmp_path, "gradients") == (
        [],
        [Missing("gradients", "theory.csv has no gradients; they are", command)],
    )


def test_the_phase_diagram_needs_no_numbers_and_gpn_begins_at_one(tmp_path: Path) -> None:
    [picture], missing = built(tmp_path, "phase_diagram")
    assert missing == []
    plain, normalised = picture.figure.axes
    [tanh] = lines(plain, "tanh_gpn")
    assert (tanh.get_xdata()[0], tanh.get_ydata()[0]) == (pytest.approx(1, abs=3e-4), pytest.approx(0, abs=1e-7))
    for name in ("tanh", "elu", "selu", "gelu"):
        [line] = lines(normalised, f"{name}_gpn")
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (pytest.approx(1, abs=1e-9), 0)
    dots = [line for line in plain.get_lines() if line.get_marker() in ("o", "x")]
    assert [tuple(dot.get_xydata()[0]) for dot in dots] == [(pytest.approx(2), 0), (pytest.approx(2 / 1.0001), 0)]


def test_activations_need_no_numbers_and_show_the_published_constants(tmp_path: Path) -> None:
    [picture], missing = built(tmp_path, "activations")
    assert missing == []
    ax = picture.figure.axes[0]
    [f], [phi] = lines(ax, "tanh_gpn"), lines(ax, "tanh")
    np.testing.assert_allclose(phi.get_ydata(), np.tanh(phi.get_xdata()))
    np.testing.assert_allclose(f.get_ydata(), 1.4674135916 * np.tanh(f.get_xdata()) + 0.3885416701, atol=1e-9)


def test_depth_aware_gpn_is_drawn_beside_gpn(tmp_path: Path) -> None:
    tables = {name: measured(tmp_path, name, scale) for name, scale in (("tanh_gpn", 1.0), ("tanh_gpn_d", 3.0))}
    trained(tmp_path, "elu_gpn", 0, [40.0])
    for seed, accuracy in enumerate((90.0, 94.0)):
        trained(tmp_path, "elu_gpn_d", seed, [accuracy])
    for path in tmp_path.glob("runs/*/elu_gpn_d/*/config.yaml"):  # of before the parameter could be chosen
        lines = path.read_text().splitlines()
        assert "  parameter: auto" in lines
        path.write_text("\n".join(line for line in lines if line != "  parameter: auto"))
    (signals, accuracy), missing = built(tmp_path, "depth_aware")
    assert missing == []
    drawn = [line.get_ydata() for line in signals.figure.axes[0].get_lines()]
    np.testing.assert_allclose(drawn, [table["forward_norm"] for table in tables.values()])
    [axes] = accuracy.figure.axes
    curve = axes.get_lines()[0]
    np.testing.assert_allclose(curve.get_xdata(), [meanfield.separation("elu", 200), 0.3])
    np.testing.assert_allclose(curve.get_ydata(), [40.0, 92.0])
    assert accuracy.name == "depth_aware_accuracy_digits"


def test_what_diverged_is_said_in_words(tmp_path: Path) -> None:
    for name, upper, lower in (("gelu", [], [70.0]), ("silu", [12.0, 13.0], [90.0, 91.0, 92.0])):
        for choice, accuracies in (("upper", upper), ("lower", lower)):
            measured(tmp_path, f"{name}_gpn", root_of_b=choice)
            for seed in range(1 if name == "gelu" else 3):
                arrived = accuracies[seed : seed + 1]
                store(tmp_path, f"{name}_gpn", arrived, seed=seed, activation__root=choice, optim__epochs=1)
    [picture], missing = built(tmp_path, "roots")
    assert missing == []
    ax = picture.figure.axes[3]
    assert [(text.get_text(), text.xy[1] if hasattr(text, "xy") else text.get_position()[1]) for text in ax.texts] == [
        ("diverged", 0),
        ("1 of 3 diverged", 2),
    ]
    dots = [dot.lines[0].get_xdata()[0] for dot in ax.containers]
    assert dots == [70.0, 12.5, 91.0]
    panel = ax.get_window_extent()
    assert all(panel.x0 < text.get_window_extent().x0 and text.get_window_extent().x1 < panel.x1 for text in ax.texts)
    assert "filled: the one of the paper's rule (activation.root=auto)" in picture.caption
    assert "n = 1 to 3 seeds (those that diverged are in no mean)" in picture.caption


def test_lines_that_hide_under_others_are_named(tmp_path: Path) -> None:
    theorised(tmp_path)
    [picture], _ = built(tmp_path, "theorems")
    assert "Everywhere under another line: Tanh under GELU. " in picture.caption
    path = tmp_path / "theory" / "theory.csv"
    table = pd.read_csv(path)
    table.loc[(table["what"] == "theorem_2") & (table["activation"] == "gelu"), "estimate"] += 0.1
    table.to_csv(path, index=False)
    [picture], _ = built(tmp_path, "theorems")
    assert "under" not in picture.caption.split("spiky x")[1]
