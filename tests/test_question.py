"""Questions to `bsnn table`: metric, split, format, axes, filters, and how the answer is laid out."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics as stdlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from bsnn_cli.errors import ConfigError
from bsnn_cli.results.question import Answer, ask
from bsnn_cli.runs.selection import select
from bsnn_cli.settings.config import TableConfig
from tests.conftest import SMALL, run_bsnn
from tests.conftest import Answer as Printed
from tests.handmade import run, seeds, stored, unfinished


def answer(*rows: Any, epochs: pd.DataFrame | None = None, **keys: Any) -> Answer:
    return ask(stored(*rows, epochs=epochs), None, TableConfig(**keys))


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table of Markdown, header first."""
    parts = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    cells = [[[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()] for part in parts]
    return [[header, *rows] for header, _, *rows in cells]


def curves(runs: list[dict[str, Any]], accuracies: list[list[float]], column: str = "test_accuracy") -> pd.DataFrame:
    """`epochs.csv` of runs with these accuracies from epoch to epoch, and one validation loss."""
    return pd.DataFrame(
        [
            {"directory": row["directory"], "epoch": epoch, column: value, "validation_loss": 1 / epoch}
            for row, values in zip(runs, accuracies, strict=True)
            for epoch, value in enumerate(values, 1)
        ]
    )


RUNS = [
    *seeds("tanh", "mnist", [90.0, 92.0, 97.0], model__depth=50),
    *seeds("tanh_gpn", "mnist", [95.0, None, 96.0], model__depth=50),
    *seeds("relu_gpn", "mnist", [None, None], model__depth=50),
    run("tanh", "mnist", 80.0, optim__lr=0.5),
]


def test_what_varies_is_in_columns_and_what_is_constant_is_said_once() -> None:
    text = answer(RUNS, split="test", format="markdown").text
    first, caption, *_ = text.split("\n\n")
    assert first == ("All runs: dataset=mnist model.width=500 optim.momentum=0.5 optim.batch_size=64 optim.epochs=50")
    assert caption == "Test accuracy (%); mean ± standard deviation over seeds [n, 95 % interval]"  # none is bold
    assert tables(text)[0] == [
        ["model.depth", "optim.lr", "Activation", "Non-GPN", "GPN"],
        ["50", "0.0001", "Tanh", "93.00 ± 3.61 [n=3, 95 %: ±8.96]", "95.50 ± 0.71 [n=2, 1 diverged]"],
        ["50", "0.0001", "ReLU", "–", "2 diverged"],
        ["200", "0.5", "Tanh", "80.00 [n=1]", "–"],
    ]
    for word in ("model.width", "dataset=mnist", "optim.momentum"):
        assert text.count(word) == 1


def test_a_caption_explains_only_what_stands_there() -> None:
    def caption(*rows: Any, **keys: Any) -> str:
        return answer(*rows, split="test", **keys).text.split("\n\n")[1]

    assert caption(run("tanh", "mnist", 90.0)) == "Test accuracy (%); one run each"
    assert caption(seeds("tanh", "mnist", [90.0, 91.0])) == (
        "Test accuracy (%); mean ± standard deviation over 2 seeds"
    )
    assert caption(seeds("tanh", "mnist", [90.0, 91.0, 92.0])) == (
        "Test accuracy (%); mean ± standard deviation over 3 seeds [95 % interval]"
    )
    assert caption(run("tanh", "mnist", None)) == "Test accuracy (%)"
    assert caption(run("tanh", "mnist", 90.0), run("relu", "mnist", None)) == "Test accuracy (%); one run each"
    assert caption(run("tanh_gpn", "mnist", 90.0), run("tanh_gpn", "mnist", 91.0, activation__separation=0.3)) == (
        "Test accuracy (%); one run each; bold: highest mean of Non-GPN, GPN and GPN-d"
    )
    assert caption(run("tanh", "mnist", 90.0), run("tanh-bn", "mnist", 91.0)) == (
        "Test accuracy (%); one run each; in parentheses with batch norm"
    )


@pytest.mark.parametrize(
    ("tests", "text"),
    [
        ([90.0], "90.00"),
        ([None], "diverged"),
        ([None, None, None], "3 diverged"),
        ([90.0, 92.0], "90.00 ± 1.41"),
        ([90.0, None], "90.00 [n=1, 1 diverged]"),
        ([90.0, 92.0, None], "91.00 ± 1.41 [n=2, 1 diverged]"),
        ([90.0, 90.0, 90.0], "90.00 [all equal]"),
    ],
)
def test_small_numbers_of_runs_are_right_in_every_form(tests: list[float | None], text: str) -> None:
    """No interval below n = 3; runs that diverged are counted and not averaged."""
    finite = [value for value in tests if value is not None]
    lost = len(tests) - len(finite)
    rows = seeds("tanh", "mnist", tests)
    if len(finite) == 2:
        text = text.replace("90.00 ±", "91.00 ±")
    for form in ("text", "markdown"):
        assert answer(rows, split="test", format=form).text.rstrip(" |").endswith(text)
    latex = answer(rows, split="test", format="latex").text
    assert f"Tanh & {text.replace('±', '$' + chr(92) + 'pm$')} " in latex
    [row] = csv.DictReader(io.StringIO(answer(rows, split="test", format="csv").text))
    assert (int(row["n"]), int(row["diverged"])) == (len(finite), lost)
    assert row["mean"] == (str(stdlib.fmean(finite)) if finite else "")
    assert (row["std"] != "") == (len(finite) > 1)
    assert (row["interval"] != "") == (len(finite) > 2)


def test_an_interval_is_that_of_student() -> None:
    values = [90.0, 92.5, 91.25, 97.0]
    [row] = csv.DictReader(io.StringIO(answer(seeds("tanh", "mnist", values), split="test", format="csv").text))
    low, high = stats.t.interval(0.95, 3, loc=stdlib.fmean(values), scale=stats.sem(values))
    assert float(row["interval"]) == pytest.approx((high - low) / 2, rel=1e-12)
    assert float(row["std"]) == pytest.approx(stdlib.stdev(values), rel=1e-12)


def test_the_lowest_loss_is_the_best_and_keeps_its_digits() -> None:
    losses = {"test_loss": 0.000123456, "train_loss": 2.302585}
    text = answer(
        run("tanh", "mnist", 90.0, test_loss=0.2, train_loss=2.3021),
        run("tanh_gpn", "mnist", 95.0, **losses),
        metric=["loss"],
        format="markdown",
    ).text
    test, train = tables(text)
    assert test[1] == ["Tanh", "0.200", "**0.000123**"]
    assert train[1] == ["Tanh", "2.30", "2.30"]  # equal at the digits shown
    assert "Test loss (nats); one run each; bold: lowest mean of Non-GPN and GPN" in text
    assert answer(run("tanh", "mnist", 90.0, test_loss=0.2), metric=["test_loss"]).text.endswith("0.200")


def test_epochs_to_an_accuracy_counts_runs_that_never_get_there() -> None:
    plain, gpn = seeds("tanh", "mnist", [90.0, 91.0, 92.0]), seeds("tanh_gpn", "mnist", [95.0, 96.0, None, 97.0])
    epochs = curves(plain + gpn, [[10, 90], [89, 91], [92, 20], [90, 95], [30, 40, 95.5], [99], [50, 89.9, 89]])
    text = answer(plain, gpn, epochs=epochs, metric=["epochs_to_90"], format="markdown").text
    [[_, row]] = tables(text)  # nothing of the training split, whose accuracy is not known after every epoch
    assert row == ["Tanh", "**1.7 ± 0.58** [n=3, 95 %: ±1.4]", "2 ± 1.4 [n=2, 1 diverged, 1 never]"]
    assert "Epochs to 90 % test accuracy; " in text
    assert "bold: lowest mean of Non-GPN and GPN, if no more of its runs are lost" in text
    assert answer(plain, epochs=epochs, metric=["epochs_to=99"]).text.endswith("3 never")
    [first, second] = csv.DictReader(
        io.StringIO(answer(plain, gpn, epochs=epochs, metric=["epochs_to_90"], format="csv").text)
    )
    assert [first[key] for key in ("metric", "split", "n", "unreached", "diverged")] == [
        "epochs_to_90",
        "test",
        "3",
        "0",
        "0",
    ]
    assert [second[key] for key in ("mean", "n", "unreached", "diverged")] == ["2.0", "2", "1", "1"]


def test_a_training_accuracy_that_is_known_at_the_end_only_gives_no_epochs() -> None:
    rows = [run("tanh", "mnist", 95.0)]
    epochs = curves(rows, [[math.nan, 95.0]], "train_accuracy")
    with pytest.raises(ConfigError, match=r"metric=epochs_to_90 split=train: no run has .*eval\.train_every=1"):
        answer(rows, epochs=epochs, metric=["epochs_to_90"], split="train")


def test_validation_is_of_runs_that_have_it() -> None:
    without = run("tanh", "mnist", 90.0)
    with_it = run("tanh_gpn", "mnist", 91.0, dataset__validation=0.1, validation_accuracy=88.5)
    for keys in ({"metric": ["validation_accuracy"]}, {"split": "validation"}):
        text = answer(without, with_it, format="markdown", **keys).text
        assert tables(text) == [[["Activation", "GPN"], ["Tanh", "88.50"]]]
        assert text.startswith("All runs: dataset=mnist model.depth=200")
        assert "dataset.validation=0.1" in text.split("\n")[0]
        assert "Validation accuracy (%); one run each" in text
    lost = run("relu", "mnist", None)  # without a validation split: not one that has diverged of those with one
    assert "diverged" not in answer(with_it, lost, split="validation").text
    with pytest.raises(ConfigError, match=r"split=validation: no run has such a number; dataset\.validation=0\.1 sets"):
        answer(without, split="validation")


def test_rows_may_be_the_approaches_whose_settings_runs_have() -> None:
    free = {"model__weights": "free", "model__init": "he_normal"}
    rows = [
        run("tanh_gpn", "mnist", 95.0),
        run("tanh", "mnist", 20.0),  # as bsnn, but without GPN
        run("relu-bn", "mnist", 94.0, approach="batch_norm", **free),
        run("relu-bn", "digits", 93.0, **free),
        run("relu-bn", "mnist", 96.0, model__residual=True, **free),
        run("relu", "mnist", 30.0, model__weights="orthogonal"),
    ]
    text = answer(rows, rows="approach", columns="dataset", split="test", format="markdown").text
    assert tables(text) == [
        [
            ["model.weights", "approach / dataset", "mnist", "digits"],
            ["orthogonal", "none (relu)", "30.00", "–"],
            ["–", "bsnn (tanh_gpn)", "95.00", "–"],
            ["–", "batch_norm (relu)", "94.00", "93.00"],
            ["–", "residual (relu)", "**96.00**", "–"],
            ["–", "none (tanh)", "20.00", "–"],
        ]
    ]
    assert "bold: highest mean of the approaches" in text
    [[header, *lines]] = tables(answer(rows[:3], rows="approach", split="test", format="markdown").text)
    assert header == ["approach / activation", "tanh", "tanh_gpn", "relu"]
    assert lines == [["bsnn", "–", "**95.00**", "–"], ["batch_norm", "–", "–", "94.00"], ["none", "20.00", "–", "–"]]


def test_a_pivot_has_the_settings_that_no_axis_says_in_columns() -> None:
    rows = [
        run("tanh_gpn", "mnist", 90.0 + depth, model__depth=depth, optim__lr=lr)
        for depth in (1, 2)
        for lr in (0.1, 1e-3)
    ]
    rows.append(run("tanh_gpn", "digits", 55.0, model__depth=1, optim__lr=0.1))
    text = answer(rows, rows="model.depth", columns="optim.lr", split="test", format="markdown").text
    assert tables(text) == [
        [
            ["dataset", "model.depth / optim.lr", "0.001", "0.1"],
            ["mnist", "1", "91.00", "91.00"],
            ["mnist", "2", "92.00", "92.00"],
            ["digits", "1", "–", "55.00"],
        ]
    ]
    assert "activation.name=tanh activation.gpn=true" in text
    found = list(csv.DictReader(io.StringIO(answer(rows, rows="model.depth", columns="optim.lr", format="csv").text)))
    assert list(found[0])[:5] == ["dataset", "model.depth", "optim.lr", "metric", "split"]
    assert [row["split"] for row in found] == ["test"] * 5 + ["train"] * 5


def test_another_root_stands_beside_the_plain_run_which_csv_has_once() -> None:
    rows = [
        run("relu", "mnist", 11.0),
        run("relu_gpn", "mnist", 10.5),
        run("relu_gpn", "mnist", 30.0, activation__root="lower"),
    ]
    assert tables(answer(rows, split="test", format="markdown").text) == [
        [
            ["activation.root", "Activation", "Non-GPN", "GPN"],
            ["auto", "ReLU", "**11.00**", "10.50"],
            ["lower", "ReLU", "11.00", "**30.00**"],
        ]
    ]
    found = csv.DictReader(io.StringIO(answer(rows, split="test", format="csv").text))
    assert [(row["activation.root"], row["gpn"], row["mean"]) for row in found] == [
        ("auto", "False", "11.0"),
        ("auto", "True", "10.5"),
        ("lower", "True", "30.0"),
    ]


def test_depth_aware_forms_stand_beside_the_others() -> None:
    tailored = run("tanh_gpn", "mnist", 97.0, activation__separation=0.3)
    text = answer(run("tanh", "mnist", 95.0), run("tanh_gpn", "mnist", 96.0), tailored, split="test", format="markdown")
    assert tables(text.text) == [
        [["Activation", "Non-GPN", "GPN", "GPN-d 0.3"], ["Tanh", "95.00", "96.00", "**97.00**"]]
    ]


def test_what_goes_into_a_file_is_the_table_alone() -> None:
    rows = [
        *seeds("tanh", "my_images", [1.0, 2.0]),
        *seeds("tanh_gpn", "my_images", [3.0, 4.0]),
        unfinished("gelu", "failed"),
    ]
    for form, start in (("latex", "% Needs"), ("csv", "dataset,activation"), ("markdown", "All runs")):
        made = answer(rows, format=form)
        assert made.text.startswith(start)
        assert "Not in the tables: 1 failed; see `bsnn runs`." in made.remarks
        assert "Not in" not in made.text
    assert answer(rows, format="csv").remarks[0].startswith("All runs: dataset=my_images ")
    latex = answer(rows, format="latex").text
    assert latex.isascii()
    assert len(latex.split(r"\end{table}")) == 3
    captions = re.findall(r"\\caption\{(.*)\}$", latex, flags=re.MULTILINE)  # on one line each
    assert captions[0].startswith(r"Test accuracy (\%); mean $\pm$ standard deviation over 2 seeds; bold")
    assert r"All runs: dataset=my\_images model.depth=200" in captions[0]
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(rule) == 2


def test_a_question_writes_no_file_but_that_of_all_accuracies(tmp_path: Path) -> None:
    results = stored(run("tanh", "mnist", 95.0, test_loss=0.1, train_loss=0.1))
    for metric in (["loss"], ["accuracy", "loss"]):
        ask(results, tmp_path, TableConfig(metric=metric))
    assert list(tmp_path.iterdir()) == []
    for name, question in (("a", TableConfig(split="train", format="csv")), ("b", TableConfig(metric=["accuracy"]))):
        assert "Written to" in str(ask(results, tmp_path / name, question))
        assert (tmp_path / name / "test_accuracy.csv").exists()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs of small networks: two activations, two seeds, one with a validation split."""
    folder = tmp_path_factory.mktemp("asked")
    sweep = ["activation=tanh,tanh_gpn", "seed=0,1", "hydra/launcher=fleet", "threads=1"]
    assert run_bsnn("train", "-m", *SMALL, *sweep, cwd=folder).returncode == 0
    more = ["activation=tanh_gpn", "dataset.validation=0.2", "threads=1"]
    assert run_bsnn("train", *SMALL, *more, cwd=folder).returncode == 0
    return folder


def test_the_installed_command_answers(root: Path) -> None:
    """Each number of the tables, recomputed from the files of the runs."""
    results = [
        (json.loads(path.read_text()), pd.read_csv(path.with_name("epochs.csv"))) for path in root.rglob("result.json")
    ]

    def rows(*arguments: str) -> list[dict[str, str]]:
        made = run_bsnn("table", "format=csv", *arguments, cwd=root)
        assert (made.returncode, "All runs: dataset=digits" in made.stderr) == (0, True)
        return list(csv.DictReader(io.StringIO(made.stdout)))

    [row] = rows("metric=test_loss", "activation=tanh_gpn", "dataset.validation=0")
    losses = [r["test_loss"] for r, epochs in results if r["gpn"] and epochs["validation_loss"].isna().all()]
    assert float(row["mean"]) == pytest.approx(stdlib.fmean(losses), rel=1e-12)
    [row] = rows("split=validation", "dataset=digits")
    [last] = [epochs["validation_accuracy"].iloc[-1] for _, epochs in results if epochs["validation_loss"].max() > 0]
    assert (float(row["mean"]), row["n"]) == (pytest.approx(last), "1")
    [row] = rows("metric=epochs_to_5", "activation=tanh", "seed=1")
    [epochs] = [epochs for r, epochs in results if not r["gpn"] and r["seed"] == 1]
    reached = epochs[epochs["test_accuracy"] >= 5]["epoch"]
    assert row["mean"] == (str(float(reached.iloc[0])) if len(reached) else "")
    assert not (root / "outputs" / "tables").exists()  # all of these were questions


def several(*rows: Any, epochs: pd.DataFrame | None = None, **keys: Any) -> list[list[str]]:
    """The one table of several metrics."""
    [table] = tables(answer(*rows, epochs=epochs, format="markdown", **keys).text)
    return table


def test_several_metrics_are_the_columns_of_one_table() -> None:
    plain = seeds("tanh", "mnist", [90.0, 92.0, 94.0], test_loss=0.5)
    gpn = seeds("tanh_gpn", "mnist", [96.0, 97.0, 98.0], test_loss=0.2)
    ends = [row["test_accuracy"] for row in [*plain, *gpn]]
    epochs = curves([*plain, *gpn], [[50.0, 80.0, end] for end in ends])
    keys = {"rows": "activation", "metric": ["test_accuracy", "test_loss", "epochs_to_93"], "split": "test"}
    assert several(plain, gpn, epochs=epochs, **keys) == [
        ["activation", "test accuracy (%)", "test loss (nats)", "epochs to 93 % test accuracy"],
        ["tanh", "92.00 ± 2.00 [95 %: ±4.97]", "0.500 [all equal]", "3 [2 never]"],
        ["tanh_gpn", "**97.00 ± 1.00** [95 %: ±2.48]", "**0.200** [all equal]", "3 [all equal]"],
    ]


def test_several_metrics_of_approaches_are_in_the_order_of_their_table() -> None:
    free = {"model__weights": "free", "model__init": "he_normal"}
    rows = [
        run("relu-bn", "mnist", 40.0, **free),
        run("relu", "mnist", 30.0, **free, model__norm="layer"),
        run("gelu_gpn", "mnist", 90.0),
        run("tanh_gpn", "mnist", 90.004, train_accuracy=92.0),
    ]
    assert several(rows, rows="approach", metric=["test_accuracy", "train_accuracy"]) == [
        ["approach", "test accuracy (%)", "training accuracy (%)"],
        ["bsnn (tanh_gpn)", "90.00", "**92.00**"],  # at the digits that are shown, two test accuracies are the best
        ["bsnn (gelu_gpn)", "90.00", "91.00"],
        ["batch_norm (relu)", "40.00", "41.00"],
        ["layer_norm (relu)", "30.00", "31.00"],
    ]


def test_batch_normalisation_has_a_row_of_its_own_among_several_metrics() -> None:
    rows = [run("tanh", "mnist", 90.0), run("tanh-bn", "mnist", 80.0), run("tanh", "mnist", 85.0, model__depth=50)]
    assert several(rows, rows="model.depth", metric=["accuracy"] * 2, split="test") == [
        ["model.norm", "model.depth", "test accuracy (%)"],
        ["batch", "200", "80.00"],
        ["none", "50", "85.00"],  # none is bold: depths are not compared
        ["none", "200", "90.00"],
    ]


def test_optim_and_network_are_short_for_their_kinds() -> None:
    rows = [run("tanh", "mnist", 90.0), run("tanh", "mnist", 80.0, optim__kind="adamw")]
    rows += [run("tanh", "mnist", 70.0, network__kind="cnn")]
    shown = tables(answer(rows, rows="network", columns="optim", split="test", format="markdown").text)
    assert shown == [[["network / optim", "adamw", "sgd"], ["cnn", "–", "70.00"], ["mlp", "80.00", "90.00"]]]
    frame = pd.DataFrame(rows).assign(label="tanh")
    assert list(select(frame, ["optim=adamw"])["test_accuracy"]) == [80.0]
    assert list(select(frame, ["network=mlp", "optim=sgd"])["test_accuracy"]) == [90.0]


def test_several_metrics_in_a_csv_file_are_rows_with_the_split_and_the_metric() -> None:
    text = answer(RUNS, metric=["test_accuracy", "train_accuracy"], format="csv").text
    records = list(csv.DictReader(io.StringIO(text)))
    assert [(row["metric"], row["split"]) for row in records[:2]] == [("accuracy", "test")] * 2
    assert {(row["metric"], row["split"]) for row in records} == {("accuracy", "test"), ("accuracy", "train")}
    assert float(records[0]["mean"]) == 93.0  # Tanh at 50 layers


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "metric=acuracy",
            (
                "metric=[acuracy]: must be one or more of accuracy, loss, test_accuracy, test_loss, train_accuracy, "
                "train_loss, validation_accuracy, validation_loss, or epochs_to_P, such as epochs_to_90, or null; did "
                "you mean accuracy?"
            ),
        ),
        ("metric=epochs_to_200", "metric=[epochs_to_200]: must be one or more of accuracy, loss,"),
        ("metric=loss,accuracy columns=seed", "columns=seed: several metrics are the columns of one table"),
        ("metric=test_loss split=train", "split=train: contradicts metric=test_loss, which is of split=test"),
        ("split=val", "split=val: must be one of test, train, validation, both"),
        ("format=html", "format=html: must be one of text, markdown, latex, csv"),
        ("kind=roots tune=optim.lr", "tune: goes with kind=accuracy, not with kind=roots"),
        ("kind=roots metric=loss", "metric: goes with kind=accuracy, not with kind=roots"),
        ("kind=approaches seed=0", "where: goes with kind=accuracy, not with kind=approaches"),
        (
            "rows=approch",
            "rows=approch: must be activation, approach, dataset, seed or a dotted key such as model.depth",
        ),
        ("seed=7", "seed=7: no run; there are 0, 1"),
        ("activation=tanh seed=1,2 optim.lr=3", "optim.lr=3: no run with activation=tanh seed=1,2; there is only 0.01"),
        ("status=failed", "status=failed: no run; there is only done"),
    ],
)
def test_a_bad_question_is_answered_in_one_line(
    arguments: str, told: str, root: Path, bsnn: Callable[..., Printed]
) -> None:
    code, out, err = bsnn("table", f"output_root={root / 'outputs'}", *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {told}")
    assert len(err.splitlines()) == 1


def test_a_filter_of_a_comparison_writes_no_file(root: Path, bsnn: Callable[..., Printed]) -> None:
    code, _, err = bsnn("table", f"output_root={root / 'outputs'}", "kind=constraint", "seed=0")
    assert (code, "nothing to compare yet" in err) == (2, True)
    assert not (root / "outputs" / "tables").exists()
