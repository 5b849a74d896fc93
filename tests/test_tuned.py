"""`bsnn table tune=…`: the settings that validation chooses, and how a table says what they are."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsnn_cli.errors import ConfigError
from bsnn_cli.results import statistics
from bsnn_cli.results.question import Answer, ask
from bsnn_cli.results.tuned import VALIDATION, Tuned, choose
from bsnn_cli.settings.config import TableConfig
from tests.conftest import SMALL, small
from tests.conftest import Answer as Printed
from tests.handmade import frame, run, stored


def tried(activation: str, validation: float | None, test: float | None = None, **values: Any) -> dict[str, Any]:
    """A run with a validation share: its accuracy on that at the end, None = diverged; the test accuracy is 50 else."""
    test = None if validation is None else 50.0 if test is None else test
    return run(activation, "mnist", test, dataset__validation=0.1, validation_accuracy=validation, **values)


def rates(activation: str, by_rate: dict[float, list[float | None]], **values: Any) -> list[dict[str, Any]]:
    """Runs at these learning rates, with these validation accuracies of seeds 0, 1, …"""
    return [
        tried(activation, accuracy, optim__lr=rate, seed=seed, **values)
        for rate, accuracies in by_rate.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def chosen(*rows: Any, keys: list[str] | None = None) -> Tuned:
    return choose(statistics.finished(frame(*rows)), keys or ["optim.lr"])


def values(tuned: Tuned, key: str = "optim.lr") -> list[Any]:
    return list(tuned.of(key)["value"])


def answer(*rows: Any, tune: list[str] | None = None, **keys: Any) -> Answer:
    return ask(stored(*rows), None, TableConfig(tune=tune or ["optim.lr"], **keys))


def table(text: str, number: int = 0) -> list[list[str]]:
    """The cells of a table of Markdown, header first."""
    part = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)[number]
    header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
    return [header, *lines]


@pytest.mark.parametrize(
    ("by_rate", "expected"),
    [
        ({0.1: [60.0], 0.01: [90.0], 1e-3: [70.0]}, 0.01),
        ({0.1: [90.0], 0.01: [90.0], 1e-3: [70.0]}, 0.01),  # of equal ones the smaller, in whatever order they come
        ({0.01: [80.1, 80.3, 80.2], 0.1: [80.1, 80.2, 80.3]}, 0.01),  # equal but for the last digit of a sum
        ({0.01: [80.0, 80.0], 0.1: [99.0, None]}, 0.01),  # more of its runs diverged
        ({0.01: [80.0, None], 0.1: [99.0, None]}, 0.1),
        ({0.01: [None], 0.1: [99.0, None, None]}, 0.1),  # at the other one no run is left
        ({0.01: [None, None], 0.1: [None]}, None),
        ({0.01: [90.0], 0.1: [95.0, 80.0, 80.0]}, 0.01),  # seeds at one value only: the mean of those that there are
        ({0.01: [90.0], 0.1: [95.0, 92.0, 93.0]}, 0.1),
        ({9.0: [80.0], 10.0: [80.0]}, 9.0),  # the smaller number, not the first word
    ],
)
def test_the_highest_mean_is_chosen(by_rate: dict[float, list[float | None]], expected: float | None) -> None:
    for rows in (rates("tanh", by_rate), rates("tanh", by_rate)[::-1]):
        tuned = chosen(rows)
        assert values(tuned) == [expected]
        if expected is None:
            assert set(tuned.runs["status"]) == {"diverged"}
        else:
            assert set(tuned.runs["optim.lr"]) == {expected}
            assert len(tuned.runs) == len(by_rate[expected])


def test_the_test_split_has_no_part_in_the_choice() -> None:
    rows = [tried("tanh", 90.0, test=10.0, optim__lr=0.1), tried("tanh", 80.0, test=99.0, optim__lr=0.01)]
    assert values(chosen(rows)) == [0.1]
    assert table(answer(rows, split="test", format="markdown").text)[1] == ["Tanh", "0.1 ↑", "10.00"]


def test_groups_are_equal_in_everything_else() -> None:
    rows = [
        *rates("tanh", {0.1: [70.0], 0.01: [60.0]}),
        *rates("tanh_gpn", {0.1: [60.0], 0.01: [70.0]}),
        *rates("tanh-bn", {0.1: [70.0], 0.01: [60.0]}),
        *rates("tanh_gpn", {0.1: [70.0], 0.01: [60.0]}, activation__separation=0.3),
        *rates("tanh", {0.1: [60.0], 0.01: [70.0]}, model__depth=50),
        *rates("tanh", {0.1: [70.0], 0.01: [60.0]}, model__norm="layer"),
        *rates("tanh", {0.1: [60.0], 0.01: [70.0]}, optim__kind="adamw"),
    ]
    rows += [run("tanh", "digits", 50.0, dataset__validation=0.1, validation_accuracy=9.0, optim__lr=7.0)]
    rows += [run("tanh", "mnist", 50.0, dataset__validation=0.2, validation_accuracy=9.0, optim__lr=8.0)]
    assert values(chosen(rows)) == [0.1, 0.01, 0.1, 0.1, 0.01, 0.1, 0.01, 7.0, 8.0]


def test_two_keys_are_chosen_together_and_a_choice_at_the_edge_says_so() -> None:
    accuracies = {(0.1, 0.0): 70, (0.1, 0.5): 71, (0.01, 0.0): 60, (0.01, 0.5): 80, (0.001, 0.0): 79}
    rows = [
        tried("tanh", accuracy, optim__lr=rate, optim__weight_decay=decay)
        for (rate, decay), accuracy in accuracies.items()
    ]
    tuned = chosen(rows, keys=["optim.lr", "optim.weight_decay", "optim.lr"])
    assert (tuned.keys, len(tuned.runs)) == (["optim.lr", "optim.weight_decay"], 1)
    assert values(tuned) == [0.01]
    assert values(tuned, "optim.weight_decay") == [0.5]
    # along a key, the other one is at its chosen value: there 0.001 was not tried
    assert tuned.choices[["tried", "edge"]].to_numpy().tolist() == [[2, "lowest"], [2, "highest"]]
    text = answer(rows, tune=["optim.lr", "optim.weight_decay"], split="test", format="markdown").text
    assert table(text) == [
        ["Activation", "optim.lr", "optim.weight_decay", "Non-GPN"],
        ["Tanh", "0.01 ↓", "0.5 ↑", "50.00"],
    ]


@pytest.mark.parametrize(
    ("key", "accuracies", "expected"),
    [
        ("optim.lr", {0.1: 1.0, 0.2: 3.0, 0.3: 2.0}, (0.2, 3, "")),
        ("optim.lr", {0.1: 1.0, 0.2: 3.0, 0.3: None}, (0.2, 3, "")),  # beyond it runs diverge
        ("optim.lr", {0.1: 1.0, 0.2: 3.0}, (0.2, 2, "highest")),
        ("optim.lr", {0.2: 3.0}, (0.2, 1, "")),
        ("optim.weight_decay", {0.0: 3.0, 0.1: 2.0}, (0.0, 2, "")),  # it cannot be negative
        ("model.width", {1: 3.0, 2: 2.0}, (1, 2, "")),
        ("model.width", {1: 2.0, 2: 3.0}, (2, 2, "highest")),
        ("optim.clip", {None: 3.0, 1.0: 3.0}, (1.0, 2, "")),
        ("optim.schedule", {"cosine": 2.0, "constant": 3.0}, ("constant", 2, "")),
        ("optim.nesterov", {True: 3.0, False: 3.0}, (False, 2, "")),
        ("model.norm", {"batch": 3.0, "none": 2.0}, ("batch", 2, "")),
    ],
)
def test_an_edge_is_that_of_what_could_be_tried(key: str, accuracies: Any, expected: tuple[Any, ...]) -> None:
    rows = [tried("tanh", accuracy, **{key.replace(".", "__"): value}) for value, accuracy in accuracies.items()]
    tuned = chosen(rows, keys=[key])
    assert tuned.of(key)[["value", "tried", "edge"]].to_numpy().tolist() == [list(expected)]


def test_forms_and_tailorings_of_an_activation_can_be_tuned() -> None:
    rows = [
        tried("tanh", 70.0),
        tried("tanh_gpn", 80.0),
        tried("tanh_gpn", 85.0, activation__separation=0.1),
        tried("tanh_gpn", 90.0, activation__separation=0.3),
        tried("tanh_gpn", 95.0, activation__separation=0.3, activation__tailored_depth=50),
        tried("relu", 75.0),
    ]
    separation = chosen(rows[:4], keys=["activation.separation"])
    assert values(separation, "activation.separation") == ["none", 0.3]
    assert values(chosen(rows, keys=["activation"]), "activation") == ["tanh_gpn_d 0.3 over 50 layers"]
    assert len(chosen(rows, keys=["activation.tailored_depth"]).runs) == 5
    deep = [tried("tanh", 60.0, model__depth=9), tried("relu", 65.0, model__depth=9)]
    text = answer(
        rows[:2], rows[5], deep, tune=["activation"], rows="model.depth", columns="dataset", format="markdown"
    )
    assert table(text.text) == [
        ["model.depth / dataset", "activation", "mnist"],
        ["9", "relu [of 2]", "50.00"],
        ["200", "tanh_gpn [of 3]", "50.00"],
    ]


def test_normalisation_can_be_tuned_and_a_choice_of_it_needs_no_parentheses() -> None:
    rows = [tried("tanh", 70.0, test=1.0), tried("tanh-bn", 90.0, test=2.0), tried("tanh", 80.0, model__norm="layer")]
    text = answer(rows, tune=["model.norm"], rows="activation", columns="dataset", split="test", format="markdown").text
    assert table(text) == [["activation / dataset", "model.norm", "mnist"], ["tanh", "batch", "2.00"]]


TWO = [
    *rates("tanh", {1e-3: [60.0, 61.0, 62.0], 0.01: [80.0, 81.0, 82.0], 0.1: [None, None, None]}),
    *rates("tanh", {1e-3: [85.0], 0.01: [80.0]}, optim__kind="adamw"),
    *rates("tanh_gpn", {1e-3: [70.0], 0.01: [75.0], 0.1: [90.0]}),
    *rates("tanh_gpn", {1e-3: [None], 0.01: [None]}, optim__kind="adamw"),
]


def test_choices_that_differ_from_cell_to_cell_stand_in_a_table_of_their_own() -> None:
    made = answer(
        TWO, run("relu", "mnist", 90.0), rows="activation", columns="optim.kind", split="test", format="markdown"
    )
    assert made.text.startswith("All runs: dataset=mnist model.depth=200 model.width=500 optim.momentum=0.5")
    assert "optim.lr=" not in made.text
    assert table(made.text) == [
        ["activation / optim.kind", "adamw", "sgd"],
        ["tanh", "**50.00** [n=1]", "50.00 [n=3, all equal]"],
        ["tanh_gpn", "diverged", "50.00 [n=1]"],
    ]
    assert "; optim.lr chosen by validation accuracy (see its table)\n" in made.text
    assert table(made.text, 1) == [
        ["activation / optim.kind", "adamw", "sgd"],
        ["tanh", "0.001 ↓ [of 2]", "0.01 [of 3]"],
        ["tanh_gpn", "– [of 2]", "0.1 ↑ [of 3]"],
    ]
    _, _, _, note, _ = made.text.split("\n\n")
    assert note == (
        "optim.lr chosen by validation accuracy [of the number of values tried]; "
        "↓ ↑ at the edge of these: the best may lie beyond; – all runs diverged"
    )
    [remark] = made.remarks
    assert remark == f"Left out: 1 run without a validation accuracy to choose by; {VALIDATION}."
    latex = answer(TWO, rows="activation", columns="optim.kind", split="test", format="latex").text
    assert latex.isascii()
    assert r"tanh\_gpn & -- [of 2] & 0.1 $\uparrow$ [of 3] \\" in latex


def test_choices_that_agree_in_each_row_stand_in_a_column() -> None:
    sgd = [row for row in TWO if row["optim.kind"] == "sgd"]
    text = answer(sgd, rows="activation", columns="dataset", split="test", format="markdown").text
    assert table(text) == [
        ["activation / dataset", "optim.lr", "mnist"],
        ["tanh", "0.01", "50.00 [n=3, all equal]"],
        ["tanh_gpn", "0.1 ↑", "50.00 [n=1]"],
    ]
    assert "optim.lr chosen by validation accuracy, of 3 values tried; ↑ at the edge of these" in text
    assert text.count("|\n\n") == 0  # there is no other table


def test_approaches_stand_side_by_side_each_at_its_best() -> None:
    free = {"model__weights": "free", "model__init": "he_normal"}
    rows = [
        *rates("tanh_gpn", {1e-3: [90.0], 0.01: [80.0], 0.1: [70.0]}, test=95.0),
        *rates("relu-bn", {1e-3: [70.0], 0.01: [90.0], 0.1: [80.0]}, test=96.0, **free),
        *rates("relu-bn", {1e-3: [70.0], 0.01: [80.0], 0.1: [90.0]}, test=94.0, model__residual=True, **free),
        *rates("relu", {1e-3: [70.0], 0.01: [60.0], 0.1: [None]}, test=11.0, model__norm="layer", **free),
    ]
    text = answer(rows, rows="approach", columns="dataset", split="test", format="markdown").text
    assert table(text) == [
        ["approach / dataset", "optim.lr", "mnist"],
        ["bsnn (tanh_gpn)", "0.001 ↓", "95.00"],
        ["batch_norm (relu)", "0.01", "**96.00**"],
        ["layer_norm (relu)", "0.001 ↓", "11.00"],
        ["residual (relu)", "0.1 ↑", "94.00"],
    ]


def test_a_single_value_is_no_choice() -> None:
    text = answer(rates("tanh", {0.1: [50.0]}), split="test").text
    assert "; optim.lr chosen by validation accuracy, the only value tried\n" in text


def test_the_layout_of_the_paper_has_the_chosen_runs_and_their_differences_by_seed() -> None:
    rows = [
        *rates("tanh", {0.01: [60.0, 60.0], 0.1: [70.0, 70.0]}, test=40.0),
        *rates("tanh_gpn", {0.01: [90.0, 90.0], 0.1: [70.0, 70.0]}, test=45.0),
        *rates("tanh_gpn-bn", {0.01: [90.0, 90.0], 0.1: [95.0, 95.0]}, test=45.0),
    ]
    made = answer(rows, split="test", format="markdown").text
    assert table(made) == [
        ["Activation", "Non-GPN", "GPN"],
        ["Tanh", "40.00 [all equal] (–)", "**45.00** [all equal] (45.00 [all equal])"],
    ]
    assert table(made, 1) == [["Activation", "Non-GPN", "GPN"], ["Tanh", "0.1 ↑ (–)", "0.01 ↓ (0.1 ↑)"]]
    assert table(made, 2)[1][:3] == ["Tanh", "test", "+5.00"]


def test_csv_has_the_choice_and_what_it_rests_on() -> None:
    made = answer(TWO, rows="activation", columns="optim.kind", split="test", format="csv")
    rows = list(csv.DictReader(io.StringIO(made.text)))
    names = ["activation", "optim.kind", "optim.lr", "optim.lr_tried", "optim.lr_edge", "validation_accuracy", "n"]
    assert [[row[name] for name in names] for row in rows] == [
        ["tanh", "adamw", "0.001", "2", "lowest", "85.0", "1"],
        ["tanh", "sgd", "0.01", "3", "", "81.0", "3"],
        ["tanh_gpn", "adamw", "", "2", "", "", "0"],
        ["tanh_gpn", "sgd", "0.1", "3", "highest", "90.0", "1"],
    ]
    assert "validation_accuracy" not in ask(stored(TWO), None, TableConfig(format="csv")).text.splitlines()[0]


def test_values_that_train_are_counted_beside_several_metrics() -> None:
    """A value trains if its mean validation accuracy is at least twice chance: 20 % of ten classes, 50 % of four."""
    rows = rates("tanh", {0.001: [19.9, 20.1], 0.01: [90.0, 92.0], 0.1: [19.8, 20.1], 1.0: [None, None]})
    rows += rates("relu", {0.001: [11.0], 0.01: [12.0], 0.1: [19.99], 1.0: [None]})
    rows += rates("selu", {0.001: [49.0], 0.01: [50.0], 0.1: [51.0]}, classes=4)
    result = answer(rows, rows="activation", metric=["validation_accuracy", "test_accuracy"], format="markdown").text
    assert [line[:3] for line in table(result)] == [
        ["activation", "optim.lr", "optim.lr that train"],
        ["tanh", "0.01 [of 4]", "2 of 4"],
        ["relu", "0.1 [of 4]", "0 of 4"],
        ["selu", "0.1 ↑ [of 3]", "2 of 3"],
    ]
    assert "that train: validation accuracy of at least 2 times chance" in result


def test_other_metrics_are_of_the_runs_that_validation_accuracy_chooses() -> None:
    rows = [
        tried("tanh", 90.0, optim__lr=0.1, test_loss=5.0, validation_loss=7.0),
        tried("tanh", 80.0, optim__lr=0.01, test_loss=1.0, validation_loss=1.0),
    ]
    assert table(answer(rows, metric=["test_loss"], format="markdown").text)[1] == ["Tanh", "0.1 ↑", "5.00"]
    assert table(answer(rows, metric=["validation_loss"], format="markdown").text)[1] == ["Tanh", "0.1 ↑", "7.00"]
    assert table(answer(rows, split="validation", format="markdown").text)[1] == ["Tanh", "0.1 ↑", "90.00"]


def test_a_tuned_question_writes_no_file(tmp_path: Path) -> None:
    made = ask(stored(TWO), tmp_path, TableConfig(tune=["optim.lr"]))
    assert list(tmp_path.iterdir()) == []
    assert "Written" not in str(made)


def test_there_must_be_something_to_choose_by() -> None:
    unmeasured = run("tanh", "mnist", 90.0, dataset__validation=0.1)  # its epochs.csv is gone
    for row in (run("tanh", "mnist", 90.0), run("tanh", "mnist", None), unmeasured):
        with pytest.raises(
            ConfigError, match=r"tune=optim.lr: no run has a validation accuracy .*dataset\.validation=0\.1"
        ):
            chosen(row)
    assert chosen(unmeasured, tried("tanh", 80.0)).left_out == 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs: two activations, three learning rates, two seeds, and one without a validation share."""
    from bsnn_cli import cli

    folder = tmp_path_factory.mktemp("tuned")
    sweep = ["activation=tanh,tanh_gpn", "optim.lr=1e-4,1e-2,1e-1", "seed=0,1", "dataset.validation=0.2"]
    words = [*small(*sweep, "optim.epochs=1"), f"output_root={folder}", "threads=1", "progress=false"]
    assert cli.dispatch(["train", "-m", *words, "hydra/launcher=fleet"]) == 0
    assert cli.dispatch(["train", *SMALL, f"output_root={folder}", "threads=1", "progress=false"]) == 0
    return folder


def test_the_command_chooses_what_the_files_of_runs_say(root: Path, bsnn: Callable[..., Printed]) -> None:
    results = [
        json.loads(path.read_text())
        | {"lr": float(re.search(r"lr: (\S+)", path.with_name("config.yaml").read_text())[1])}
        for path in root.rglob("result.json")
    ]
    made = bsnn("table", f"output_root={root}", "tune=optim.lr", "split=test", "format=csv", "dataset.validation=0.2")
    assert (made.returncode, "All runs: dataset=digits" in made.stderr) == (0, True)
    rows = list(csv.DictReader(io.StringIO(made.stdout)))
    assert [row["gpn"] for row in rows] == ["False", "True"]
    for row in rows:
        means = {}
        for lr in {result["lr"] for result in results}:
            runs = [r for r in results if (str(r["gpn"]), r["lr"]) == (row["gpn"], lr) and r["validation_accuracy"]]
            if runs:
                means[lr] = [sum(r[f"{split}_accuracy"] for r in runs) / 2 for split in ("validation", "test")]
        best = max(means, key=lambda lr: (means[lr][0], -lr))
        assert (float(row["optim.lr"]), len(means), row["n"]) == (best, 3, "2")
        assert [float(row["validation_accuracy"]), float(row["mean"])] == pytest.approx(means[best])
    whole = bsnn("table", f"output_root={root}", "tune=optim.lr,optim.momentum", "rows=activation", "columns=dataset")
    assert whole.returncode == 0
    assert "Left out: 1 run without a validation accuracy" in whole.stdout
    assert not (root / "tables").exists()
    words = [*small("activation=tanh", "optim.lr=1e-2", "optim.epochs=1"), "dataset.validation=0.2", "threads=1"]
    finished = bsnn("train", *words, f"output_root={root}")
    [run] = [r for r in results if (r["gpn"], r["lr"], r["seed"]) == (False, 0.01, 0) and r["validation_accuracy"]]
    assert (
        f"train {run['train_accuracy']:.2f} %, validation {run['validation_accuracy']:.2f} %; 1 ep" in finished.stdout
    )


MUST = "must be activation or a dotted key of a network or its training such as optim.lr"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("seed", f"seed: {MUST}; accuracies are means over seeds"),
        ("learning_rate", f"learning_rate: {MUST}; near it: optim.lr"),
        ("optim.lr,optim.momentun", f"optim.momentun: {MUST}; near it: optim.momentum"),
        ("dataset", f"dataset: {MUST}"),
        ("threads", f"threads: {MUST}"),
        ("optim.lr rows=optim.lr", "optim.lr: is the key of the rows as well"),
        ("activation rows=model.depth", "activation: is the key of the columns as well"),
        ("optim.lr dataset.validation=0", f"optim.lr: no run has a validation accuracy to choose by; {VALIDATION}"),
    ],
)
def test_what_cannot_be_tuned_is_answered_in_one_line(
    arguments: str, told: str, root: Path, bsnn: Callable[..., Printed]
) -> None:
    code, out, err = bsnn("table", f"output_root={root}", *f"tune={arguments}".split())
    assert (code, out) == (2, "")
    assert err.startswith(f"error: tune={told}")
    assert len(err.splitlines()) == 1
