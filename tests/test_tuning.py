"""Accuracy against a setting that was varied: what is drawn is stored, and what validation chooses is filled."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bsnn_cli import cli
from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import overlays, printing, tuning
from bsnn_cli.figures.figure import COLOURS, DOUBLE, Figure, Missing, Series
from bsnn_cli.report import report_plots
from bsnn_cli.results import statistics
from bsnn_cli.results.tuned import choose
from bsnn_cli.settings.approaches import preset
from bsnn_cli.settings.config import FiguresConfig
from tests.conftest import Answer
from tests.handmade import frame, run, stored
from tests.storage import store
from tests.test_tuned import rates, tried

RATES = (0.001, 0.01, 0.1)
ALL_THREE = {0.001: [80.0], 0.01: [90.0], 0.1: [70.0]}


def parts(*rows: Any, **keys: Any) -> list[Figure | Missing]:
    return list(tuning.tuning(stored(*rows), FiguresConfig(only="tuning", **keys)))


def figures(*rows: Any, **keys: Any) -> list[Figure]:
    drawn = [part for part in parts(*rows, **keys) if isinstance(part, Figure)]
    assert drawn
    return drawn


def refused(*rows: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parts(*rows, **keys)
    return str(caught.value)


def points(figure: Figure, kind: str = "line") -> dict[str, dict[float, float]]:
    """The points of each network: all (`line`), the chosen one (`filled`), or where all runs diverged (`cross`)."""

    def is_kind(series: Series) -> bool:
        return kind == ("cross" if series.marker == "x" else "line" if series.dash else "filled")

    return {
        series.name: dict(zip(series.x, series.y, strict=True))
        for panel in figure.panels
        for series in panel.series
        if is_kind(series)
    }


def follower(approach: str, activation: str, by_rate: dict[float, list[float | None]]) -> list[dict[str, Any]]:
    """Runs of an approach at these learning rates."""
    model = {f"model__{key}": value for key, value in preset(approach).items()}
    return rates(activation, by_rate, approach=approach, **model)


def everything() -> list[list[dict[str, Any]]]:
    """All kinds of networks: six with GPN, five depth-aware, a linear one and ten other approaches."""
    names = ("tanh", "lrelu", "elu", "selu", "gelu")
    rows = [rates(f"{name}_gpn", ALL_THREE) for name in (*names, "relu")]
    rows += [rates(f"{name}_gpn", ALL_THREE, activation__separation=0.3) for name in names]
    rows += [follower("bsnn", "identity", ALL_THREE)]
    others = ("batch_norm", "layer_norm", "group_norm", "residual", "lsuv", "weight_norm", "spectral_norm", "glorot")
    return rows + [follower(name, "relu", ALL_THREE) for name in (*others, "dynamical_isometry", "self_normalizing")]


def test_points_are_means_over_seeds_and_the_chosen_value_is_filled() -> None:
    gpn = rates("tanh_gpn", {0.001: [80.0, 90.0], 0.01: [95.0], 0.1: [20.0]})
    [figure] = figures(gpn, rates("selu", {0.001: [30.0], 0.01: [40.0], 0.1: [50.0]}))
    assert points(figure) == {
        "Tanh-GPN": {0.001: 85.0, 0.01: 95.0, 0.1: 20.0},
        "SELU": {0.001: 30.0, 0.01: 40.0, 0.1: 50.0},
    }
    assert points(figure, "filled") == {"Tanh-GPN": {0.01: 95.0}, "SELU": {0.1: 50.0}}
    assert points(figure, "cross") == {}
    line = figure.panels[0].series[0]
    assert line.low is not None
    bars = [mean - low for mean, low in zip(line.y, line.low, strict=True)]
    assert bars[0] == pytest.approx(math.sqrt(50))
    assert all(math.isnan(bar) for bar in bars[1:])  # one seed
    assert figure.panels[0].x.log
    assert figure.caption == (
        "Validation accuracy at the end of training against optim.lr, a line for each network: L = 200 layers, n = 500 "
        "units, 50 epochs on MNIST, else the paper's protocol except dataset.validation=0.1; mean over n = 1 to 2 "
        "seeds, bars ± one sample standard deviation; filled: the value with the highest mean validation accuracy, as "
        "bsnn table tune=optim.lr chooses it; networks are set apart a little."
    )


def test_networks_look_as_in_every_figure() -> None:
    rows = [rates("tanh", ALL_THREE), rates("tanh_gpn", ALL_THREE), follower("glorot", "tanh", ALL_THREE)]
    [figure] = figures(*rows, rates("tanh_gpn", ALL_THREE, activation__separation=0.3))
    looks = {entry.name: (entry.ink, entry.dash) for entry in figure.panels[0].legend}
    blue = COLOURS["tanh"]
    others = {name: look for name, look in looks.items() if name != "glorot (Tanh)"}
    assert others == {"Tanh": (blue, "--"), "Tanh-GPN": (blue, "-"), "Tanh-GPN-d": (blue, "-.")}
    assert looks["glorot (Tanh)"][0] != blue


def test_what_is_filled_is_what_the_table_chooses() -> None:
    """Neither the test split nor the shown metric has a part in it, and a value with fewer diverged runs wins."""
    rows = [
        tried("tanh", 90.0, 10.0, optim__lr=0.001),
        tried("tanh", 80.0, 99.0, optim__lr=0.01),
        tried("tanh", 85.0, 98.0, optim__lr=0.1),
        *rates("selu_gpn", {0.001: [50.0, 50.0], 0.01: [99.0, None], 0.1: [None, None]}),
    ]
    chosen = set(choose(statistics.finished(frame(*rows)), ["optim.lr"]).choices["value"])
    for metric in (None, ["test_accuracy"]):
        [figure] = figures(*rows, metric=metric)
        filled = {value for by_value in points(figure, "filled").values() for value in by_value}
        assert filled == chosen == {0.001}
    assert points(figure)["Tanh"] == {0.001: 10.0, 0.01: 99.0, 0.1: 98.0}


def test_values_at_which_runs_diverged() -> None:
    rows = rates("tanh_gpn", {0.001: [80.0, 90.0], 0.01: [60.0, None], 0.1: [None, None]})
    [figure] = figures(rows)
    assert points(figure) == {"Tanh-GPN": {0.001: 85.0, 0.01: 60.0}}
    [(rate, height)] = points(figure, "cross")["Tanh-GPN"].items()
    low, high = figure.panels[0].y.limits or (0, 0)
    assert rate == 0.1
    assert low < height < 60 - 0.05 * (90 - 60)
    assert (height - low) < 0.1 * (high - low)
    assert "n = 1 to 2 seeds (of those that did not diverge), bars" in figure.caption
    assert "crosses at the bottom: all runs diverged" in figure.caption
    assert [entry.name for entry in figure.legend] == ["chosen by validation", "tried", "all diverged"]


def test_crosses_stand_at_the_bad_end_of_a_loss() -> None:
    rows = [
        run("tanh", test=50.0 if lr < 0.1 else None, optim__lr=lr, test_loss=loss)
        for lr, loss in zip(RATES, (0.1, 2.0, 7.0), strict=True)
    ]
    [figure] = figures(rows, metric=["test_loss"])
    [height] = points(figure, "cross")["Tanh"].values()
    axis = figure.panels[0].y
    assert points(figure) == {"Tanh": {0.001: 0.1, 0.01: 2.0}}  # 7.0 is of a run that diverged
    assert axis.log
    assert 2.0 < height < (axis.limits or (0, 0))[1]
    assert "crosses at the top: all runs diverged" in figure.caption
    assert figure.panels[0].y.mark is None


def test_networks_that_never_got_anywhere_have_crosses_alone() -> None:
    [figure] = figures(rates("tanh", {rate: [None] for rate in RATES}), metric=["test_accuracy"])
    assert points(figure) == {}
    assert list(points(figure, "cross")["Tanh"]) == list(RATES)
    assert figure.caption.endswith("dataset.validation=0.1; crosses at the bottom: all runs diverged.")


def test_runs_that_differ_in_more_are_in_other_figures() -> None:
    rows = [rates("tanh", ALL_THREE, optim__kind=kind) for kind in ("sgd", "adamw")]
    rows += [[run("tanh", test=60.0, optim__lr=lr) for lr in RATES]]  # nothing set aside
    rows += [[run("tanh", "digits", 60.0, optim__lr=lr) for lr in RATES]]
    made = figures(*rows)
    assert [figure.panels[0].y.label for figure in made].count("validation accuracy (%)") == 2
    assert [figure.panels[0].y.label for figure in made].count("test accuracy (%)") == 2
    assert len({figure.name for figure in made}) == len({figure.panels[0].facet for figure in made}) == 4
    for figure in made:
        validated = "optim.kind=adamw" in figure.caption or "dataset.validation" in figure.caption
        assert ("filled" in figure.caption) == validated == bool(points(figure, "filled"))
        assert all(series.hollow for panel in figure.panels for series in panel.series if series.dash)
    assert sum("digits, else the paper's" in figure.caption for figure in made) == 1


def test_metrics_are_never_mixed() -> None:
    """One figure for each metric that is asked for, of the runs that have it."""
    rows = [rates("tanh", ALL_THREE), [run("selu", test=60.0, optim__lr=lr) for lr in RATES]]
    made = figures(*rows, metric=["validation_accuracy", "train_accuracy"])
    assert [(figure.panels[0].y.label, list(points(figure))) for figure in made] == [
        ("validation accuracy (%)", ["Tanh"]),
        ("training accuracy (%)", ["SELU"]),
        ("training accuracy (%)", ["Tanh"]),
    ]


def test_the_learning_rate_is_chosen_first_then_a_number_then_a_whole_one() -> None:
    def by(*rows: Any) -> str:
        [figure] = figures(*rows)
        return figure.panels[0].x.label

    depths = [tried("tanh", 50.0 + depth, model__depth=depth) for depth in (10, 20, 40)]
    momenta = [tried("tanh", 50.0, optim__momentum=momentum) for momentum in (0.1, 0.3, 0.9)]
    tapers = [tried("tanh", 50.0, model__taper=taper) for taper in (0.5, 0.7, 0.9)]
    assert by(rates("tanh", ALL_THREE), tapers, depths, momenta) == "optim.lr (learning rate)"
    assert by(depths, momenta) == "optim.momentum"
    assert by(depths) == "model.depth (layers)"
    assert by(depths, rates("tanh", {0.01: [1.0], 0.1: [2.0]})) == "model.depth (layers)"  # two rates are too few
    [figure] = figures(depths)
    assert "L = 10 to 40 layers" in figure.caption
    assert not figure.panels[0].x.log
    assert "set apart" not in figure.caption


def test_networks_that_were_not_varied_are_left_out() -> None:
    [figure] = figures(rates("tanh", ALL_THREE), rates("selu", {0.01: [99.0]}))
    assert list(points(figure)) == ["Tanh"]


@pytest.mark.parametrize("rows", [[], rates("tanh", {0.01: [1.0], 0.1: [2.0]})])
def test_too_few_values_name_the_command(rows: list[dict[str, Any]]) -> None:
    [missing] = parts(*rows) if rows else parts(run("tanh", test=1.0))
    assert isinstance(missing, Missing)
    assert missing.command == "bsnn train experiment=approaches 'approach=glob(*)'"
    if rows:
        assert list(points(figures(rows, by="optim.lr")[0])["Tanh"]) == [0.01, 0.1]  # asked for, two are enough


def test_panels_hold_six_lines_at_most_each_told_apart() -> None:
    [figure] = figures(*everything())
    assert [panel.title for panel in figure.panels] == [
        "GPN", "Depth-aware GPN and linear", "Other approaches, 1 of 2", "Other approaches, 2 of 2"
    ]  # fmt: skip
    assert [len(panel.legend) for panel in figure.panels] == [6, 6, 5, 5]
    for panel in figure.panels:
        assert len({entry.ink for entry in panel.legend}) == len({entry.marker for entry in panel.legend})
        assert len({entry.marker for entry in panel.legend}) == len(panel.legend) <= overlays.MOST
    assert len({(panel.x, panel.y) for panel in figure.panels}) == 1
    names = [entry.name for panel in figure.panels for entry in panel.legend]
    assert names[:6] == ["Tanh-GPN", "ReLU-GPN", "LReLU-GPN", "ELU-GPN", "SELU-GPN", "GELU-GPN"]
    assert names[6:12] == ["Tanh-GPN-d", "LReLU-GPN-d", "ELU-GPN-d", "SELU-GPN-d", "GELU-GPN-d", "Identity"]
    assert "batch_norm (ReLU)" in names
    assert figure.size[0] <= DOUBLE


def test_legends_lie_above_their_panels_and_within_the_picture() -> None:
    [figure] = figures(*everything())
    drawn = printing.render(figure)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    boxes = [ax.get_legend().get_window_extent() for ax in drawn.axes]  # type: ignore[union-attr]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= drawn.bbox.width
        assert 0 <= box.y0 < box.y1 <= drawn.bbox.height
        assert not any(box.overlaps(ax.get_window_extent().shrunk(0.99, 0.99)) for ax in drawn.axes)
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[:place])


def test_filled_points_are_not_hidden_in_print() -> None:
    """The lines of all networks come first, and nothing of equal height is drawn over what comes later."""
    by_rate: dict[float, list[float | None]] = {0.001: [80.0, 82.0], 0.01: [90.0], 0.1: [70.0]}
    [figure] = figures(rates("tanh", by_rate), rates("tanh_gpn", by_rate))
    axes = printing.render(figure).axes[0]
    assert [container.has_yerr for container in axes.containers] == [True, True, False, False]  # type: ignore[attr-defined]
    lines = axes.get_lines()
    order = sorted((line for line in lines if line.get_marker() in ("o", "s")), key=lambda line: line.get_zorder())
    assert [line.get_markerfacecolor() == "white" for line in order] == [True, True, False, False]


@pytest.mark.parametrize(("classes", "mark"), [([10, None, 10], 10.0), ([None] * 3, None), ([4, 4, 4], 25.0)])
def test_chance_is_marked_where_runs_say_how_many_classes(classes: list[int | None], mark: float | None) -> None:
    [figure] = figures([tried("tanh", 5.0 + 40 * rate, optim__lr=rate, classes=count)
                        for rate, count in zip(RATES, classes, strict=True)])  # fmt: skip
    assert figure.panels[0].y.mark == mark
    [high] = figures([tried("tanh", 95.0 + rate, optim__lr=rate, classes=10) for rate in RATES])
    assert "chance" not in high.caption  # far below what is shown


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("by=optim.lrr", "must be activation or a dotted key of a network or its training such as optim.lr; near it"),
        ("by=seed", "must be activation or a dotted key of a network or its training such as optim.lr; accuracies"),
        ("by=optim.kind", "no run has a number there, and tuning draws against one such as optim.lr"),
        ("by=model.depth", "all 3 finished runs have 200; they differ in optim.lr"),
        ("metric=learning_rate", "is not in the result of a run, which tuning draws; choose among train_loss"),
        ("metric=validation_loss", "no run that differs in optim.lr has it at its end (dataset.validation=0.1 sets sa"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(word: str, told: str) -> None:
    key, value = word.split("=")
    answer = refused(rates("tanh", ALL_THREE), **{key: value if key == "by" else [value]})
    assert answer.startswith(f"{word}: {told}")
    assert "\n" not in answer


def test_runs_that_differ_in_several_keys_at_once_are_not_compared() -> None:
    rows = [run("tanh", test=50.0, optim__lr=rate, optim__momentum=rate) for rate in RATES]
    assert (
        refused(rows, by="optim.lr")
        == "by=optim.lr: no two runs differ in it alone; they also differ in optim.momentum"
    )
    [missing] = parts(rows)
    assert isinstance(missing, Missing)


def test_the_page_shows_a_panel_at_a_time_with_room_for_all() -> None:
    made = figures(rates("tanh", {0.001: [80.0], 0.01: [90.0], 0.1: [70.0]}),
                   rates("tanh", {0.001: [80.0], 0.01: [30.0], 0.1: [None]}, optim__kind="adamw"))  # fmt: skip
    plot = report_plots.plot(made)
    assert len(plot["panels"]) == 1
    assert len(plot["facets"]) == 2
    lows, highs = zip(*(figure.panels[0].y.limits or (0, 0) for figure in made), strict=True)
    assert plot["panels"][0]["range"] == [min(lows), max(highs)]
    assert {line["symbol"] for line in plot["series"]} == {"circle", "x-thin"}
    assert len(report_plots.plot(figures(*everything()))["facets"]) == 4


def test_the_command(bsnn: Callable[..., Answer]) -> None:
    for rate, accuracy in zip(RATES, (20.0, 90.0, 40.0), strict=True):
        store(Path("outputs"), "tanh_gpn", [accuracy], optim__lr=rate, optim__epochs=1)
        store(Path("outputs"), "selu", [accuracy], optim__lr=rate, optim__epochs=1)
    answer = bsnn(
        "figures", "only=tuning", "by=optim.lr", "metric=train_accuracy", "activation=tanh_gpn", "formats=png"
    )
    assert answer.returncode == 0, answer.stderr
    name = "tuning_by_optim.lr_train_accuracy_mnist_optim.epochs-1"
    assert answer.stdout == f"Written to outputs/figures as png, with captions.md: {name}\n"
    assert Path(f"outputs/figures/{name}.png").stat().st_size > 10_000
    captions = Path("outputs/figures/captions.md").read_text(encoding="utf-8")
    assert "Training accuracy at the end of training against optim.lr" in captions
    assert "1 epoch on MNIST, else the paper's protocol; one seed a point" in captions


@pytest.mark.parametrize("words", ["only=tuning by=optim.kind", "only=tuning metric=elapsed_s", "only=tuning by=seed"])
def test_the_shell_has_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for rate in RATES:
        store(Path("outputs"), "selu", [50.0], optim__lr=rate)
    assert cli.dispatch(["figures", *words.split()]) == 2
    answer = capsys.readouterr().err
    assert answer.startswith("error: ")
    assert answer.count("\n") == 1
