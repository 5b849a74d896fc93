"""Curves of runs that differ in a key: what is drawn is what is stored, and what cannot be drawn is said."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bsnn_cli import cli
from bsnn_cli.errors import ConfigError
from bsnn_cli.figures import figures, metrics, overlays, printing
from bsnn_cli.figures.figure import Figure, Series
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import METRICS
from bsnn_cli.settings.config import FiguresConfig
from tests.conftest import Answer
from tests.drawing import Picture, built
from tests.storage import store

RATES = (0.001, 0.01)
MUST = f"must be a list of {', '.join(METRICS)}, or null"


def run(root: Path, accuracies: Sequence[float], losses: Sequence[float] | None = None, **values: object) -> None:
    """Store a run of Tanh-GPN with these accuracies and training losses after each epoch; of no accuracy, diverged."""
    epochs = values.pop("epochs", max(len(accuracies), 2))
    name = str(values.pop("activation", "tanh_gpn"))
    directory = store(root, name, list(accuracies), optim__epochs=epochs, **values)
    losses = [1.0] * len(accuracies) if losses is None else losses
    tests = [*accuracies, *[10.0] * (len(losses) - len(accuracies))]
    directory.write_epochs(
        [
            EpochRecord(epoch=epoch, step=epoch, train_loss=loss, test_loss=1, test_accuracy=test, train_accuracy=None,
                        learning_rate=1, orthogonality_error=0, elapsed_s=epoch)
            for epoch, (loss, test) in enumerate(zip(losses, tests, strict=True), 1)
        ]
    )  # fmt: skip


def pictures(root: Path, by: str = "optim.lr", metric: Sequence[str] = ("test_accuracy",)) -> list[Picture]:
    drawn, missing = built(root, "curves", only="curves", by=by, metric=list(metric))
    assert missing == []
    return drawn


def refused(root: Path, by: str | None = "optim.lr", metric: Sequence[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        built(root, "curves", only="curves", by=by, metric=metric)
    return str(caught.value)


def legend(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.figure.legends[0].get_texts()]


def curves(ax: Axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in ax.get_lines()]


def two_rates(root: Path) -> None:
    for seed, (slow, fast) in enumerate([(20.0, 60.0), (30.0, 90.0), (40.0, 90.0)]):
        run(root, [10.0, slow], [2.0, 1.0 + seed], seed=seed, optim__lr=RATES[0])
        run(root, [30.0, fast], [1.0, 0.01 * (1 + seed)], seed=seed, optim__lr=RATES[1])


def test_lines_are_means_and_bands_one_deviation(tmp_path: Path) -> None:
    two_rates(tmp_path)
    [picture] = pictures(tmp_path, metric=["test_accuracy", "train_loss"])
    accuracy, loss = picture.figure.axes
    assert [ax.get_ylabel() for ax in (accuracy, loss)] == ["test accuracy (%)", "training loss (nats)"]
    assert curves(accuracy) == [[10.0, 30.0], [30.0, 80.0]]
    assert [list(line.get_xdata()) for line in accuracy.get_lines()] == [[1, 2], [1, 2]]
    for band, mean, deviation in zip(accuracy.collections, (30.0, 80.0), (10.0, math.sqrt(300)), strict=True):
        ends = [y for x, y in band.get_paths()[0].vertices if x == 2]
        assert (min(ends), max(ends)) == (pytest.approx(mean - deviation), pytest.approx(mean + deviation))
    np.testing.assert_allclose(curves(loss), [[2.0, 2.0], [1.0, 0.02]])
    factor = 1 + 0.01 / 0.02
    last = [y for x, y in loss.collections[1].get_paths()[0].vertices if x == 2]
    assert (min(last), max(last)) == (pytest.approx(0.02 / factor), pytest.approx(0.02 * factor))
    assert legend(picture) == ["lr = 0.001", "lr = 0.01"]
    assert "Test accuracy and training loss against the epoch, by optim.lr: Tanh-GPN on MNIST, " in picture.caption
    assert "mean over n = 3 seeds, band ± one sample standard deviation, on logarithmic axes as a" in picture.caption
    assert picture.figure.texts[0].get_text().endswith("n = 3")


def test_a_loss_that_spans_decades_has_a_logarithmic_axis_and_others_have_not(tmp_path: Path) -> None:
    for place, losses in enumerate(([2.0, 0.3], [2.0, 0.19])):
        root = tmp_path / str(place)
        for lr in RATES:
            run(root, [10.0, 99.0], losses, optim__lr=lr)
        [picture] = pictures(root, metric=["train_loss", "test_accuracy", "elapsed_s"])
        assert [ax.get_yscale() for ax in picture.figure.axes] == ["log" if place else "linear", "linear", "linear"]
    assert [tick.get_text() for tick in picture.figure.axes[0].get_yticklabels()] == ["0.2", "0.5", "1", "2"]


def test_one_seed_has_no_band_and_the_caption_speaks_of_none(tmp_path: Path) -> None:
    for lr in RATES:
        run(tmp_path, [10.0, 20.0], optim__lr=lr)
    [picture] = pictures(tmp_path)
    assert not picture.figure.axes[0].collections
    assert picture.caption.endswith("; one seed.")


def test_what_diverged_and_uneven_seeds_stand_in_the_legend(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path, [10.0, 20.0, 30.0], seed=seed, optim__lr=0.001)
    run(tmp_path, [10.0, 20.0, 40.0], optim__lr=0.01)
    run(tmp_path, [], [1.0], optim__lr=0.01, seed=1, epochs=3)
    run(tmp_path, [], [], optim__lr=0.1, epochs=3)
    [picture] = pictures(tmp_path)
    assert legend(picture) == ["lr = 0.001 (n = 3)", "lr = 0.01 (n = 2, 1 diverged)", "lr = 0.1 (n = 1, diverged)"]
    assert curves(picture.figure.axes[0]) == [[10.0, 20.0, 30.0], [10.0, 20.0, 40.0], []]
    assert "mean over n = 1 to 3 seeds (runs that diverged as far as they came), band" in picture.caption


def test_runs_that_differ_in_more_are_in_other_pictures(tmp_path: Path) -> None:
    for lr, name in itertools.product(RATES, ("tanh", "tanh_gpn")):
        run(tmp_path, [10.0, 20.0], optim__lr=lr, activation=name, model__norm="batch")
    run(tmp_path, [10.0, 20.0], optim__lr=0.1, activation="selu")  # beside no other rate
    made = pictures(tmp_path)
    words = "the paper's protocol except optim.epochs=2; one seed"
    assert [picture.caption.partition("optim.lr: ")[2] for picture in made] == [
        f"{name} on MNIST with batch normalisation, {words}." for name in ("Tanh", "Tanh-GPN")
    ]
    assert [picture.name for picture in made] == [
        f"curves_by_optim.lr_test_accuracy_mnist_{name}-bn_optim.epochs-2" for name in ("tanh", "tanh_gpn")
    ]
    [by_activation, _] = pictures(tmp_path, by="activation")
    assert legend(by_activation) == ["Tanh", "Tanh-GPN"]
    assert [line.get_linestyle() for line in by_activation.figure.axes[0].get_lines()] == ["--", "-"]
    assert legend(pictures(tmp_path, by="activation.gpn")[0]) == ["gpn = false", "gpn = true"]


def test_approaches_stand_beside_each_other_each_with_its_activation(tmp_path: Path) -> None:
    run(tmp_path, [10.0, 20.0], approach="bsnn")
    run(tmp_path, [10.0, 30.0], activation="relu", approach="batch_norm", model__norm="batch", model__weights="free",
        model__init="he_normal")  # fmt: skip
    [picture] = pictures(tmp_path, by="approach")
    assert legend(picture) == ["bsnn (Tanh-GPN)", "batch_norm (ReLU)"]
    assert curves(picture.figure.axes[0]) == [[10.0, 20.0], [10.0, 30.0]]
    assert "by approach: MNIST, the paper's protocol except optim.epochs=2" in picture.caption


@pytest.mark.parametrize("kind", ["number", "word"])
def test_no_panel_has_more_lines_than_can_be_told_apart(tmp_path: Path, kind: str) -> None:
    for n in range(14):
        run(tmp_path, [float(n), 20.0], **({"optim__lr": 0.01 * (n + 1)} if kind == "number" else {"seed": n}))
    [picture] = pictures(tmp_path, by="optim.lr" if kind == "number" else "seed")
    lines = [ax.get_lines() for ax in picture.figure.axes]
    assert [len(part) for part in lines] == [5, 4, 5]
    assert [line.get_ydata()[0] for part in lines for line in part] == list(range(14))
    looks = {(line.get_color(), line.get_linestyle()) for part in lines for line in part}
    assert len(looks) == len(legend(picture)) == 14
    assert len({ax.get_ylim() for ax in picture.figure.axes}) == 1


def test_words_around_the_panels_stay_within_the_picture(tmp_path: Path) -> None:
    for n in range(12):
        run(tmp_path, [50.0, 60.0], optim__lr=0.00123 * (n + 1), model__width=100, dataset__validation=0.123)
    config = FiguresConfig(by="optim.lr", only="curves")
    [figure] = figures.build("curves", Results(tmp_path), config)
    assert isinstance(figure, Figure)
    for size in (figure.size, (3.4, 5.0)):
        drawn = printing.render(dataclasses.replace(figure, size=size))
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        for artist in (drawn.legends[0], drawn.texts[0]):
            box = artist.get_window_extent(canvas.get_renderer())
            assert 0 <= box.x0 < box.x1 <= drawn.bbox.width


def test_a_legend_has_as_many_columns_as_there_is_room_for() -> None:
    entries = [Series("a" * 10)] * 4
    assert printing.legend_columns(entries, 20.0) == 4
    assert printing.legend_columns(entries, 0.1) == 1
    assert printing.legend_rows(entries, 0.1) == 4
    assert printing.legend_rows([], 1.0) == 0


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    two_rates(tmp_path)
    assert refused(tmp_path, by="model.depth") == (
        "by=model.depth: all 6 finished runs have 200; they differ in optim.lr, seed"
    )
    assert refused(tmp_path, by="optim.lrr").startswith(
        "by=optim.lrr: must be activation, approach, dataset, seed or a dotted key"
    )
    assert refused(tmp_path, metric=["validation_loss"]) == (
        "metric=validation_loss: no run has measured it (dataset.validation=0.1 sets samples aside); there are "
        "train_loss, test_loss, test_accuracy, learning_rate, orthogonality_error, elapsed_s"
    )
    assert refused(tmp_path, by=None, metric=["train_accuracy"]).startswith("metric=train_accuracy: no run")


def test_runs_that_differ_in_several_keys_at_once_are_not_compared(tmp_path: Path) -> None:
    run(tmp_path, [10.0, 20.0], optim__lr=0.001, optim__momentum=0.1)
    run(tmp_path, [10.0, 20.0], optim__lr=0.01, optim__momentum=0.2)
    assert refused(tmp_path) == "by=optim.lr: no two runs differ in it alone; they also differ in optim.momentum"


def test_one_epoch_and_one_measurement_make_no_curve(tmp_path: Path) -> None:
    for lr in RATES:
        run(tmp_path / "short", [10.0], optim__lr=lr, epochs=1)
        directory = store(tmp_path / "end", "tanh", [10.0, 20.0], optim__lr=lr, optim__epochs=2)
        text = (directory.path / "epochs.csv").read_text().splitlines()
        assert text[2].split(",")[5] == ""
        text[2] = ",".join([*text[2].split(",")[:5], "33.0", *text[2].split(",")[6:]])
        (directory.path / "epochs.csv").write_text("\n".join(text) + "\n")
    assert refused(tmp_path / "short") == (
        "by=optim.lr: runs that differ in it have test_accuracy of one epoch at most, which makes no curve; `bsnn "
        "table rows=optim.lr` has what they came to"
    )
    assert "measured once in each run, which makes no curve (eval.train_every=1 " in refused(
        tmp_path / "end", metric=["train_accuracy"]
    )


def test_runs_without_the_metric_have_no_picture(tmp_path: Path) -> None:
    two_rates(tmp_path)
    run(tmp_path, [10.0, 20.0], [1.0, math.nan], activation="elu", optim__lr=0.1)
    for lr in RATES:
        run(tmp_path, [10.0, 20.0], [math.nan, math.nan], activation="relu", optim__lr=lr)
    [picture] = pictures(tmp_path, metric=["train_loss"])
    assert "Tanh-GPN" in picture.caption


def test_too_many_values_are_refused_with_a_choice(tmp_path: Path) -> None:
    for seed in range(25):
        run(tmp_path, [10.0, 20.0], seed=seed)
    assert refused(tmp_path, by="seed") == (
        "by=seed: has 25 values, and a picture shows at most 24; choose some, such as seed=0,1,2"
    )


def test_any_metric_is_drawn_without_a_key_too(tmp_path: Path) -> None:
    run(tmp_path, [10.0, 20.0], [2.0, 0.1])
    run(tmp_path, [10.0, 20.0], [2.0, 0.5], activation="tanh", model__norm="batch")
    made, missing = built(tmp_path, "curves", only="curves", metric=["train_loss"])
    assert missing == []
    assert [picture.name for picture in made] == [
        f"curves_train_loss_mnist{norm}_optim.epochs-2" for norm in ("", "_bn")
    ]
    assert [curves(picture.figure.axes[0]) for picture in made] == [[[2.0, 0.1]], [[2.0, 0.5]]]
    assert [picture.figure.axes[0].get_yscale() for picture in made] == ["log", "linear"]


def test_every_metric_of_an_epoch_has_a_name() -> None:
    columns = {field.name for field in dataclasses.fields(EpochRecord)} - {"epoch", "step"}
    assert set(METRICS) == set(metrics.NAMES) == columns
    assert len(METRICS) == len(columns)


def test_the_command(bsnn: Callable[..., Answer]) -> None:
    two_rates(Path("outputs"))
    run(Path("outputs"), [10.0, 20.0], optim__lr=0.1, activation="elu")
    words = ["figures", "only=curves", "by=optim.lr", "metric=train_loss,test_accuracy", "activation=tanh_gpn"]
    answer = bsnn(*words, "formats=png", "seed=0,1")
    assert answer.returncode == 0, answer.stderr
    name = "curves_by_optim.lr_train_loss-test_accuracy_mnist_tanh_gpn_optim.epochs-2"
    assert answer.stdout == f"Written to outputs/figures as png, with captions.md: {name}\n"
    assert "mean over n = 2 seeds" in Path("outputs/figures/captions.md").read_text(encoding="utf-8")
    ink = (matplotlib.image.imread(f"outputs/figures/{name}.png")[..., :3] < 0.6).any(axis=2)
    assert 0.003 < ink.mean() < 0.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("only=curves metric=train_los", f"metric=[train_los]: {MUST}; did you mean train_loss?"),
        ("only=curves metric=train_loss,x", f"metric=[train_loss,x]: {MUST}"),
        ("only=curves formats=pgn", "formats=[pgn]: must be a list of png, svg, pdf, or null; did you mean png?"),
        ("by=seed", "by: is for curves and tuning alone; add only=curves or only=tuning"),
        ("only=width metric=[test_loss]", "metric: is for curves and tuning alone; add only=curves or only=tuning"),
    ],
)  # fmt: skip
def test_bad_words_are_answered(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["figures", *words.split()]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_settings_in_common_are_told_in_words() -> None:
    protocol = overlays.Protocol
    for items, text, parts in (
        ((), "the paper's protocol", ["", "", ""]),
        ((("activation.gpn", "true"),), "GPN, the paper's protocol", ["", "GPN", ""]),
        (
            (("dataset", "mnist"), ("activation.name", "tanh"), ("activation.gpn", "true"),
             ("activation.separation", "0.3"), ("model.depth", 50)),
            "Tanh-GPN-d 0.3 on MNIST, the paper's protocol except model.depth=50",
            ["mnist", "tanh_gpn_d_0.3", "model.depth=50"],
        ),
    ):  # fmt: skip
        common = overlays.Common(protocol(items))
        assert (str(common), common.parts) == (text, parts)
