"""`bsnn runs`: which runs are shown, in which order, as what."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
from pathlib import Path

import pytest

from bsnn_cli import cli
from bsnn_cli.common.files import write_text
from bsnn_cli.common.table import Column, Table, to_terminal
from bsnn_cli.runs import listing, selection
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.settings.arguments import filters, spelled_out
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig, OptimConfig, RunsConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve
from tests.conftest import BSNN


def leave(root: Path, name: str, depth: int, seed: int, accuracy: float | None) -> None:
    """A run on disk, finished unless it has no accuracy; then it is in its second epoch."""
    config = resolve(
        TrainConfig(
            activation=ActivationConfig(name=name.removesuffix("_gpn"), gpn=name.endswith("_gpn")),
            dataset=DatasetConfig(kind="digits"),
            model=ModelConfig(depth=depth),
            optim=OptimConfig(epochs=2),
            seed=seed,
            output_root=str(root),
        )
    )
    directory = RunDirectory(run_directory(config))
    with directory.lock():
        directory.claim(config)
    write_text(directory.path / "epochs.csv", "epoch,train_loss,test_accuracy\n1,2.5,12.5\n")
    if accuracy is not None:
        write_text(directory.path / "epochs.csv", f"epoch,train_loss,test_accuracy\n1,2,3\n2,1.5,{accuracy}\n")
        result = RunResult(
            status="done",
            train_accuracy=accuracy + 1,
            test_accuracy=accuracy,
            train_loss=1.5,
            test_loss=1.5,
            epochs=2,
            steps=46,
            elapsed_s=1.0,
            activation=config.activation.name,
            gpn=config.activation.gpn,
            root=None,
            norm="none",
            batch_norm=False,
            dataset="digits",
            depth=depth,
            width=500,
            weights="unit_rows",
            seed=seed,
            parameters=1,
        )
        directory.finish(result, keep="none")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listing")
    for name, depth, seed, accuracy in [
        ("tanh", 9, 0, 50.0),
        ("tanh_gpn", 9, 0, 70.0),
        ("tanh_gpn", 9, 1, 60.0),
        ("tanh_gpn", 100, 0, None),
        ("relu", 100, 0, 80.0),
    ]:
        leave(root, name, depth, seed, accuracy)
    return root


def shown(root: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, float, int]]:
    assert cli.dispatch(["runs", f"output_root={root}", "format=json", *arguments]) == 0
    return [(row["activation"], row["test_accuracy"], row["seed"]) for row in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("arguments", "accuracies"),
    [
        ("activation=tanh_gpn", [12.5, 60, 70]),
        ("activation=tanh,relu dataset=digits", [50, 80]),
        ("model.depth=9 seed=0", [50, 70]),
        ("model.depth=9,100 activation.gpn=true status=done", [60, 70]),
        ("optim.lr=1e-4 status=interrupted", [12.5]),
        ("optim.lr=0.1", []),
        ("threads=null activation=relu", [80]),
        ("where=['seed=1']", [60]),
    ],
)
def test_settings_choose_runs(
    arguments: str, accuracies: list[float], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(accuracy for _, accuracy, _ in shown(root, *arguments.split(), capsys=capsys)) == accuracies


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("seed=7", "seed=7: no run; there are 0, 1"),
        ("activation=tanh_gpn seed=7,8 model.depth=9", "seed=7,8: no run with activation=tanh_gpn; there are 0, 1"),
        ("activation=tanh seed=1", "seed=1: no run with activation=tanh; there is only 0"),
        ("activation=tanh_gnp", "activation=tanh_gnp: no run; there are relu, tanh, tanh_gpn"),
        (
            "activation.gpn=true activation=relu",
            "activation=relu: no run with activation.gpn=true; there is only tanh_gpn",
        ),
        ("threads=2", "threads=2: no run; there is only null"),
        ("dataset=digits optim.lr=0.1", "optim.lr=0.1: no run with dataset=digits; there is only 0.0001"),
    ],
)
def test_what_matches_nothing_says_which_part_of_it(
    arguments: str, told: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("table", "figures"):
        assert cli.dispatch([verb, f"output_root={root}", *arguments.split()]) == 2
        assert capsys.readouterr().err == f"error: {told}\n"
    assert cli.dispatch(["runs", f"output_root={root}", *arguments.split()]) == 0
    assert capsys.readouterr() == ("nothing to show\n", f"{told}\n")
    assert cli.dispatch(["runs", f"output_root={root}", "sort=-test_accuracy", *arguments.split()]) == 0
    assert capsys.readouterr() == ("nothing to show\n", f"{told}\n")
    assert cli.dispatch(["runs", f"output_root={root}", "watch=true", *arguments.split()]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_key_that_no_run_has_is_answered_by_every_verb_that_filters(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("runs", "table", "figures"):
        for folder in (root, tmp_path):
            assert cli.dispatch([verb, f"output_root={folder}", "optim.ll=3"]) == (verb != "runs" or folder == root) * 2
            err = capsys.readouterr().err
            if err:
                assert err.startswith("error: optim.ll=3: there is no column optim.ll; near it: optim.lr")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("table row=model.depth", "row: no such key; did you mean rows=model.depth? `bsnn table --help` lists all"),
        ("figures onyl=curves", "onyl: no such key; did you mean only=curves? `bsnn figures --help` lists all"),
        ("runs fromat=csv", "fromat: no such key; did you mean format=csv? `bsnn runs --help` lists all"),
        ("figures only=lengths seed=0", "seed=0: chooses among runs, and only=lengths shows none; leave it out"),
    ],
)
def test_a_filter_is_not_taken_for_what_it_is_not(
    words: str, told: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch([*words.split(), f"output_root={root}"]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_sorted_by_what_is_shown_and_by_what_is_not(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_accuracy = [accuracy for _, accuracy, _ in shown(root, "sort=test_accuracy", capsys=capsys)]
    assert by_accuracy == [12.5, 50, 60, 70, 80]
    assert [a for _, a, _ in shown(root, "sort=-test_accuracy", capsys=capsys)] == by_accuracy[::-1]
    depths = listing.chosen(str(root), sort="model.depth")["model.depth"]
    assert depths.tolist() == [9, 9, 9, 100, 100]  # as numbers
    finished = listing.chosen(str(root), sort="-train_accuracy")["train_accuracy"]
    assert finished.iloc[:4].tolist() == [81, 71, 61, 51]
    assert finished.isna().iloc[4]  # what has no value comes last in either direction
    assert listing.chosen(str(root), sort="train_accuracy")["train_accuracy"].isna().iloc[4]


@pytest.mark.parametrize("argument", ["model.dept=3", "sort=-model.dept"])
def test_an_unknown_name_is_answered_with_the_nearest(
    argument: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.dispatch(["runs", f"output_root={root}", argument]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {argument}: there is no column model.dept; near it: model.depth")


def test_keys_of_the_verb_and_flags_are_left_to_hydra() -> None:
    own = ["status=done", "format=csv", "output_root=x", "hydra.verbose=true", "--cfg", "+a=1", "sort=seed"]
    assert filters("runs", own) == own
    assert filters("runs", ["--cfg", "job", "seed=0,1", "dataset=it's"]) == [
        "--cfg",
        "job",
        r"where=['seed=0,1','dataset=it\'s']",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**63 - 1, "9223372036854775807"),
        (1e-4, "0.0001"),
        (3.0, "3"),
        (True, "true"),
        (None, "null"),
        ("relu", "relu"),
    ],
)
def test_settings_are_shown_as_they_are_typed(value: object, text: str) -> None:
    assert selection.typed(value) == text
    assert selection.typed(math.nan) == "null"


def lines_of(root: Path, width: int | None, **keys: object) -> list[str]:
    return listing.listing(RunsConfig(output_root=str(root), **keys), width).splitlines()  # type: ignore[arg-type]


def test_a_terminal_shows_what_differs_and_says_the_rest_once(root: Path) -> None:
    common, header, *rows = lines_of(root, 200)
    assert common == "5 runs, all dataset=digits"
    names = ["activation", "depth", "seed", "status", "epochs", "test_accuracy", "train_loss", "train_accuracy"]
    assert header.split() == [*names, "directory"]
    assert rows[0].split()[:-1] == ["relu", "100", "0", "done", "2/2", "80.00", "1.50", "81.00"]
    assert rows[0].split()[-1].startswith("digits/relu/")
    [alone, header, row] = lines_of(root, 200, where=["activation=tanh"])
    assert alone == "1 run, dataset=digits activation=tanh model.depth=9 seed=0 status=done epochs=2/2"
    assert header.split() == ["test_accuracy", "train_loss", "train_accuracy", "directory"]
    assert row.split()[:-1] == ["50.00", "1.50", "51.00"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_is_never_too_narrow(width: int, root: Path) -> None:
    lines = lines_of(root, width)
    assert max(map(len, lines[:-1])) <= width
    seen = "\n".join(lines)
    for number in ("50.00", "60.00", "70.00", "80.00", "12.50"):  # numbers are never cut
        assert number in seen
    assert ("not shown, for want of width: " in seen) == (width < 80)
    directory = listing.chosen(str(root))["directory"].iloc[0]
    assert (Path(directory).name in seen) == (width >= 80)  # or not at all


def test_texts_that_differ_are_not_cut_so_far_that_they_look_alike() -> None:
    names = ["tanh_gpn", "tanh_gpn_d", "tanh", "softplus_gpn"]
    shown = Table([Column("activation", words=True), Column("test_accuracy")], [[name, "9.5"] for name in names])
    for width in range(16, 40):
        text, gone = to_terminal(shown, width)
        *_, first, second, third, fourth = text.splitlines()
        assert gone == []
        assert max(map(len, text.splitlines())) <= width
        assert len({line.split()[0] for line in (first, second, third, fourth)}) == 4
    assert to_terminal(shown, 15)[1] == ["test_accuracy"]
    assert to_terminal(shown, 22)[0].splitlines()[:2] == ["                 test_", "activation    accuracy"]


def test_elsewhere_nothing_is_left_out_or_shortened(root: Path) -> None:
    header, *rows = lines_of(root, None)
    assert header.split() == [
        "dataset", "activation", "protocol", "seed", "status", "epochs", "train_loss", "test_accuracy",
        "train_accuracy", "directory",
    ]  # fmt: skip
    assert [row.split()[-1] for row in rows] == listing.chosen(str(root))["directory"].tolist()
    markdown = lines_of(root, 80, format="markdown")
    assert [line.split()[-2] for line in markdown[2:]] == listing.chosen(str(root))["directory"].tolist()


def test_columns_are_chosen_in_any_form(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = "columns=seed,optim.lr,epochs,test_accuracy"
    assert cli.dispatch(["runs", f"output_root={root}", "format=csv", chosen, "activation=tanh_gpn"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "seed,optim.lr,epochs,test_accuracy"
    assert sorted(rows) == ["0,0.0001,1/2,12.5", "0,0.0001,2/2,70.0", "1,0.0001,2/2,60.0"]
    header, *rows = lines_of(root, 80, columns=["optim.lr", "approach"], where=["activation=tanh,tanh_gpn"])
    assert header.split() == ["lr", "approach"]
    assert [row.split() for row in rows] == [["0.0001", "null"], *[["0.0001", "bsnn"]] * 3]
    assert cli.dispatch(["runs", f"output_root={root}", "columns=seed,test_acuracy"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: columns=test_acuracy: there is no column test_acuracy; near it: test_accuracy")


def test_an_approach_is_recognised_by_its_settings(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row[0] for row in shown(root, "approach=bsnn", capsys=capsys)} == {"tanh_gpn"}
    assert {row[0] for row in shown(root, "approach=null", capsys=capsys)} == {"tanh", "relu"}


@pytest.mark.parametrize("width", [80, 120])
def test_the_installed_command_fits_the_terminal_it_runs_in(width: int, root: Path) -> None:
    command = [str(BSNN), "runs", f"output_root={root}", "sort=-test_accuracy"]
    text = on_terminal(command, width)
    lines = text.splitlines()
    assert lines[0] == "5 runs, all dataset=digits"
    assert max(map(len, lines)) <= width
    assert [line.split()[0][:6] for line in lines[-5:]] == ["relu", "tanh_g", "tanh_g", "tanh", "tanh_g"]
    piped = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": str(width)}
    )
    assert piped.stdout.splitlines()[0].startswith("dataset  activation  protocol")


def on_terminal(command: list[str], width: int) -> str:
    """Run a command on a terminal of this width, and return the text that it prints."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=os.environ | {"COLUMNS": str(width)}
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        text += part
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def test_a_list_needs_no_brackets() -> None:
    assert spelled_out("figures", "formats=png") == "formats=[png]"
    assert spelled_out("reproduce", "datasets=mnist,digits") == "datasets=[mnist,digits]"
    for word in ("formats=[png]", "formats=null", "depth=3"):
        assert spelled_out("figures", word) == word


def test_nothing_to_show_is_no_error(tmp_path: Path) -> None:
    assert listing.chosen(str(tmp_path), "failed", ["seed=0"], "seed").empty
