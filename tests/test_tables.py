from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsnn_cli.common.table import latex_escape
from bsnn_cli.errors import ConfigError
from bsnn_cli.results import formats
from bsnn_cli.results.question import ask
from bsnn_cli.results.tables import write_tables
from bsnn_cli.runs.directory import RunResult
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, ModelConfig, OptimConfig, TableConfig, TrainConfig
from bsnn_cli.settings.validation import resolve
from tests.handmade import run, seeds, stored, unfinished


def blocks(markdown: str) -> dict[str, list[list[str]]]:
    """The cells of each table of a Markdown file, header first, by the title above it."""
    found: dict[str, list[list[str]]] = {}
    for line in markdown.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("|") and "---" not in line:
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def write(directory: Path, *rows: Any, **keys: str) -> str:
    """Write the files of these runs; returns what the terminal shows."""
    return str(ask(stored(*rows), directory, TableConfig(**keys)))


PAPER_RUNS = [
    run("tanh", "mnist", 96.57),
    run("tanh_gpn", "mnist", 95.54),
    run("tanh-bn", "mnist", 86.0),
    run("tanh_gpn-bn", "mnist", 87.114),
    run("relu", "mnist", None),
    run("relu_gpn", "mnist", 28.0),
    run("lrelu", "cifar10", 10.0),
    run("lrelu_gpn", "cifar10", 10.0),
    *seeds("elu_gpn", "cifar10", [43.0, 44.0, 45.0]),
    *seeds("elu", "cifar10", [45.0, None, 46.0]),
    *seeds("selu_gpn-bn", "cifar10", [None, None]),
    *seeds("gelu_gpn", "cifar10", [None, 36.0]),
    run("silu", "mnist", 50.0),
    unfinished("gelu", "failed"),
]

PAPER_CELLS = [
    ["Activation", "MNIST Non-GPN", "MNIST GPN", "CIFAR-10 Non-GPN", "CIFAR-10 GPN"],
    ["Tanh", "**96.57** (86.00)", "95.54 (**87.11**)", "– (–)", "– (–)"],
    ["ReLU", "diverged (–)", "**28.00** (–)", "– (–)", "– (–)"],
    ["LReLU", "– (–)", "– (–)", "10.00 (–)", "10.00 (–)"],
    ["ELU", "– (–)", "– (–)", "45.50 ± 0.71 [n=2, 1 diverged] (–)", "44.00 ± 1.00 [n=3, 95 %: ±2.48] (–)"],
    ["SELU", "– (–)", "– (–)", "– (–)", "– (2 diverged)"],
    ["GELU", "– (–)", "– (–)", "– (–)", "36.00 [n=1, 1 diverged] (–)"],
    ["SiLU", "50.00 (–)", "– (–)", "– (–)", "– (–)"],
]


def test_paper_block_holds_exactly_these_cells(tmp_path):
    text = write(tmp_path, PAPER_RUNS)
    ((title, cells),) = blocks((tmp_path / "test_accuracy.md").read_text()).items()
    assert title == (
        "Paper's protocol: 200 layers, 500 units, SGD with learning rate 0.0001, momentum 0.5, batches of 64, "
        "50 epochs on MNIST, 100 epochs on CIFAR-10"
    )
    assert cells == PAPER_CELLS
    assert "Warning" not in text


def test_training_accuracies_have_files_of_their_own(tmp_path):
    write(tmp_path, PAPER_RUNS)
    (cells,) = blocks((tmp_path / "train_accuracy.md").read_text()).values()
    assert cells[1] == ["Tanh", "**97.57** (87.00)", "96.54 (**88.11**)", "– (–)", "– (–)"]
    assert "97.57" in (tmp_path / "train_accuracy.tex").read_text()


def test_latex_holds_the_same_cells_and_balances(tmp_path):
    write(tmp_path, PAPER_RUNS)
    text = (tmp_path / "test_accuracy.tex").read_text()
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    cells = [
        [cell.strip() for cell in line.strip().removesuffix(r"\\").split("&")] for line in body.strip().split("\n")
    ]
    bold = [[re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", cell) for cell in row] for row in PAPER_CELLS[1:]]
    special = {"±": r"$\pm$", "–": "--", "%": r"\%"}
    assert cells == [["".join(special.get(character, character) for character in cell) for cell in row] for row in bold]
    assert r"\multicolumn{2}{c}{MNIST} & \multicolumn{2}{c}{CIFAR-10} \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text
    assert r"\begin{tabular}{lcccc}" in text


def test_latex_is_plain_ascii_with_everything_escaped_and_closed(tmp_path):
    write(
        tmp_path,
        run("gelu_exact_gpn", "my_images", 50.0, model__depth=50),
        run("silu", "cifar10_jpeg", 50.0, model__weights="free"),
    )
    write(tmp_path, run("tanh", "my_images", 50.0, model__depth=50), rows="dataset.name", columns="model.depth")
    for path in tmp_path.glob("*.tex"):
        text = path.read_text()
        code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert text.isascii(), path
        assert re.search(r"(?<!\\)[_%#]", code) is None, path
        for environment in ("table", "tabular"):
            assert code.count(rf"\begin{{{environment}}}") == code.count(rf"\end{{{environment}}}") > 0
        assert len(re.findall(r"(?<!\\)\{", code)) == len(re.findall(r"(?<!\\)\}", code))
        assert code.count("$") % 2 == 0
    assert r"my\_images" in (tmp_path / "test_accuracy.tex").read_text()
    assert r"model.weights=free" in (tmp_path / "test_accuracy.tex").read_text()


def test_latex_escape_knows_every_special_character():
    assert latex_escape(r"a_b & 5 % # $ {x} ~ ^ \ ± –") == (
        r"a\_b \& 5 \% \# \$ \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} $\pm$ --"
    )


def test_runs_off_the_protocol_get_blocks_of_their_own(tmp_path):
    write(
        tmp_path,
        run("selu_gpn", "mnist", 80.0, optim__epochs=1),
        run("selu_gpn", "mnist", 70.0, model__depth=1000),
        run("selu_gpn", "cifar10", 40.0, model__depth=50),
        run("selu_gpn", "mnist", 75.0, model__depth=50, optim__epochs=1),
        run("selu_gpn", "cifar10_jpeg", 41.0),
        run("selu-bn", "digits", 97.0),
    )
    found = blocks((tmp_path / "test_accuracy.md").read_text())
    paper, *others = found
    assert others == [
        "Paper's protocol except model.depth=50",
        "Paper's protocol except model.depth=1000",
        "Paper's protocol except optim.epochs=1",
        "Paper's protocol except model.depth=50, optim.epochs=1",  # after all that differ in less
    ]
    header, *rows = found[paper]
    assert header[1::2] == [f"{name} Non-GPN" for name in ("MNIST", "CIFAR-10", "digits", "cifar10_jpeg")]
    assert rows[4] == ["SELU", "– (–)", "– (–)", "– (–)", "– (–)", "– (97.00)", "– (–)", "– (–)", "41.00 (–)"]
    assert {cell for row in [*rows[:4], rows[5]] for cell in row[1:]} == {"– (–)"}
    # Only the dataset and the activations that have runs, and no parentheses where nothing was batch-normalised.
    assert found[others[0]][0] == ["Activation", "CIFAR-10 Non-GPN", "CIFAR-10 GPN"]
    assert found[others[1]][1:] == [["SELU", "–", "70.00"]]


def test_another_root_stands_beside_the_plain_run_it_shares(tmp_path):
    write(
        tmp_path,
        run("relu", "mnist", 11.0),
        run("selu", "mnist", 97.0),
        run("relu_gpn", "mnist", 10.5),
        run("relu_gpn", "mnist", 30.0, activation__root="lower"),
    )
    paper, lower = blocks((tmp_path / "test_accuracy.md").read_text()).values()
    assert paper[2] == ["ReLU", "**11.00** (–)", "10.50 (–)", "– (–)", "– (–)"]
    assert lower[1:] == [["ReLU", "11.00", "**30.00**"]]
    table = pd.read_csv(tmp_path / "test_accuracy.csv")
    assert list(table["protocol"]) == ["paper", "paper", "paper", "activation.root=lower"]


def test_csv_is_tidy_with_every_digit(tmp_path):
    write(tmp_path, seeds("elu_gpn", "mnist", [1.0, 2.0, 3.0]), run("elu-bn", "my_images", None, model__depth=50))
    table = pd.read_csv(tmp_path / "test_accuracy.csv")
    expected = "protocol dataset activation gpn separation batch_norm split mean std n interval diverged numerics"
    assert " ".join(table.columns) == expected
    first, second = table.to_dict("records")
    assert [first[key] for key in ("protocol", "dataset", "activation", "gpn", "batch_norm", "split")] == [
        "paper", "mnist", "elu", True, False, "test",
    ]  # fmt: skip
    assert [first[key] for key in ("mean", "std", "n", "diverged")] == [2.0, 1.0, 3, 0]
    assert first["interval"] == pytest.approx(4.302652729749464 / 3**0.5)
    assert [second[key] for key in ("protocol", "dataset", "gpn", "batch_norm", "n", "diverged")] == [
        "model.depth=50", "my_images", False, True, 0, 1,
    ]  # fmt: skip
    assert pd.isna(second["mean"])
    assert set(pd.read_csv(tmp_path / "train_accuracy.csv")["split"]) == {"train"}


def test_comparison_sets_ours_beside_each_of_the_96_numbers(tmp_path):
    write(tmp_path, PAPER_RUNS)
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert len(table) == 96
    markdown = (tmp_path / "comparison.md").read_text()
    found = blocks(markdown)
    assert list(found) == ["Test accuracy", "Train accuracy"]
    test, train = found.values()
    assert test[1] == ["Tanh", "96.57 / 96.57 / +0.00", "95.54 / 95.54 / +0.00", "– / 42.71 / –", "– / 40.95 / –"]
    assert test[2][:3] == ["Tanh + batch norm", "86.00 / 89.32 / −3.32", "87.11 / 87.11 / +0.00"]
    assert test[3][1:3] == ["diverged / 11.35 / –", "28.00 / 28.13 / −0.13"]
    assert test[7][3:] == [
        "45.50 ± 0.71 [n=2, 1 diverged] / 45.76 / −0.26",
        "44.00 ± 1.00 [n=3, 95 %: ±2.48] / 43.12 / +0.88",
    ]
    assert train[1][1] == "97.57 / 99.05 / −1.48"
    shown = [cell.split(" / ")[1] for rows in (test, train) for row in rows[1:] for cell in row[1:]]
    assert sorted(shown) == sorted(f"{value:.2f}" for value in table["published"])


def test_paired_differences_are_written_with_n_and_interval(tmp_path):
    text = write(tmp_path, seeds("selu_gpn", "mnist", [95.0, 96.0, 98.0, None]), seeds("selu", "mnist", [96.0] * 4))
    assert "GPN minus Non-GPN of the same seed" in text
    [shown] = re.findall(r"^SELU +test +(.*)$", text, flags=re.MULTILINE)
    assert shown.split("  ")[0] == "+0.33"
    assert "± 3.79" in shown
    (record,) = pd.read_csv(tmp_path / "paired.csv").query("split == 'test'").to_dict("records")
    assert (record["n"], record["diverged"]) == (3, 1)
    lines = (tmp_path / "paired.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| the")]
    assert rows[0] == ["the paper's", "MNIST", "SELU", "test", "+0.33", "± 3.79", "1.53", "3", "1"]


def test_without_pairs_the_file_says_so(tmp_path):
    text = write(tmp_path, run("selu_gpn", "mnist", 95.0))
    assert "same seed" not in text
    assert "No seed has both yet." in (tmp_path / "paired.md").read_text()
    assert pd.read_csv(tmp_path / "paired.csv").empty


def test_mixed_numerics_are_warned_about_where_they_mix(tmp_path):
    text = write(
        tmp_path,
        run("tanh", "mnist", 96.0),
        run("relu", "mnist", 11.0, numerics=2),
        run("elu", "mnist", 95.0, model__depth=50),
    )
    [warning] = set(re.findall(r"^Warning: (.*)\.$", text, flags=re.MULTILINE))
    assert "versions 1, 2 mix" in warning
    markdown = (tmp_path / "test_accuracy.md").read_text()
    paper, other = markdown.split("## ")[1:]
    assert f"Warning: {warning}." in paper
    assert "Warning" not in other
    assert warning in (tmp_path / "test_accuracy.tex").read_text()


def test_terminal_text_shows_both_splits_aligned_and_names_the_files(tmp_path):
    text = write(tmp_path, PAPER_RUNS, run("selu", "digits", 5.0, model__depth=50))
    assert text.index("Test accuracy (%)") < text.index("Training accuracy (%)")
    for table in text.split("\n\n")[2:5:2]:
        header, *lines = table.splitlines()
        assert header.split()[:2] == ["model.depth", "Activation"]
        assert {line[: header.index("Activation")].strip() for line in lines} == {"200", "50"}
    [names] = re.findall(f"^Written to {re.escape(str(tmp_path))}: (.*)$", text, flags=re.MULTILINE)
    assert sorted(names.split(", ")) == sorted(path.name for path in tmp_path.iterdir())
    assert "Not in the tables: 1 failed" in text


def test_the_published_protocol_is_left_out_where_nothing_was_trained_by_it(tmp_path):
    shown = write(tmp_path, run("selu_gpn", "digits", 97.0, optim__epochs=9))
    for text in (shown, *((tmp_path / f"test_accuracy.{form}").read_text() for form in ("md", "tex"))):
        assert "200 layers" not in text
        assert "97.00" in text


def test_pivot_table_over_a_swept_key(tmp_path):
    write(
        tmp_path,
        [run("selu_gpn", "digits", 90.0 + seed, seed=seed, model__depth=depth) for seed in (0, 2) for depth in (10, 9)],
        run("selu", "digits", 80.0, model__depth=10),
        run("selu-bn", "digits", 81.0, model__depth=10),
        run("selu", "digits", None, model__depth=9, optim__lr=0.5),
        rows="model.depth",
    )
    stem = "pivot_model.depth_by_activation"
    found = blocks((tmp_path / f"{stem}_test.md").read_text())
    assert found == {
        "dataset=digits, otherwise the paper's protocol": [
            ["model.depth / activation", "selu", "selu_gpn"],
            ["9", "– (–)", "91.00 ± 1.41 [n=2] (–)"],
            ["10", "80.00 (81.00)", "**91.00 ± 1.41** [n=2] (–)"],
        ],
        "dataset=digits, optim.lr=0.5, otherwise the paper's protocol": [
            ["model.depth / activation", "selu"],
            ["9", "diverged"],
        ],
    }
    names = sorted(f"{stem}_{split}.{kind}" for split in ("test", "train") for kind in ("csv", "md", "tex"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    table = pd.read_csv(tmp_path / f"{stem}_test.csv")
    assert list(table["row"]) == [9, 10, 10, 10, 9]
    assert list(table["n"]) == [2, 1, 1, 2, 0]


@pytest.mark.parametrize(
    ("keys", "corner", "row", "header"),
    [
        ({"columns": "optim.lr"}, "activation / optim.lr", "tanh", ["1e-05", "0.0001", "0.5"]),
        ({"rows": "optim.lr", "columns": "model.norm"}, "optim.lr / model.norm", "1e-05", ["none"]),
        ({"rows": "activation.gpn", "columns": "seed"}, "activation.gpn / seed", "false", ["0"]),
    ],
)
def test_pivot_labels_are_values_as_a_command_line_writes_them(tmp_path, keys, corner, row, header):
    write(tmp_path, [run("tanh", "mnist", 9.0, optim__lr=lr) for lr in (0.5, 1e-4, 1e-5)], **keys)
    (path,) = tmp_path.glob("*_test.md")
    table = next(iter(blocks(path.read_text()).values()))
    assert (table[0][0], table[1][0]) == (corner, row)
    assert table[0][1:] == header


def test_unknown_key_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"columns=model.dept: .*model.depth"):
        write(tmp_path / "tables", PAPER_RUNS, columns="model.dept")
    assert not (tmp_path / "tables").exists()


def test_no_run_at_all_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="bsnn train"):
        write(tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_what_cannot_be_written_is_shown_all_the_same(tmp_path, capsys):
    """The results may be a colleague's."""
    whole = write(tmp_path / "elsewhere", PAPER_RUNS)
    (tmp_path / "tables").write_text("in the way")
    shown = write(tmp_path / "tables", PAPER_RUNS)
    assert whole.startswith(shown)
    assert "SELU" in shown
    assert "Written" not in shown
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: output_root: cannot write {tmp_path}/tables: ")
    assert (tmp_path / "tables").read_text() == "in the way"


def test_tables_import_no_torch():
    code = "import bsnn_cli.results.tables, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_run_directories_fill_the_table(tmp_path):
    from bsnn_cli.runs.directory import RunDirectory
    from bsnn_cli.runs.loading import load_all
    from bsnn_cli.settings.identity import run_directory

    for seed, accuracy in [(0, 90.0), (1, 92.0), (2, None)]:
        config = resolve(
            TrainConfig(
                activation=ActivationConfig(name="gelu", gpn=True, root="lower"),
                dataset=DatasetConfig(kind="digits"),
                model=ModelConfig(depth=10),
                optim=OptimConfig(epochs=50),
                seed=seed,
                output_root=str(tmp_path),
            )
        )
        directory = RunDirectory(run_directory(config))
        directory.path.mkdir(parents=True)
        directory.claim(config)
        directory.finish(
            RunResult(
                status="diverged" if accuracy is None else "done", train_accuracy=accuracy, test_accuracy=accuracy,
                train_loss=None, test_loss=None, epochs=50, steps=9, elapsed_s=1.0, activation="gelu", gpn=True,
                root="lower", norm="none", batch_norm=False, dataset="digits", depth=10, width=500,
                weights="unit_rows", seed=seed, parameters=9,
            ),
            keep="none",
        )  # fmt: skip
    write_tables(load_all(tmp_path), tmp_path / "tables")
    found = blocks((tmp_path / "tables" / "test_accuracy.md").read_text())
    assert found["Paper's protocol except model.depth=10"][1:] == [["GELU", "–", "91.00 ± 1.41 [n=2, 1 diverged]"]]


@pytest.mark.parametrize(
    ("n", "diverged", "std", "interval", "text"),
    [
        (1, 0, math.nan, math.nan, "11.35"),
        (2, 0, 1.5, math.nan, "11.35 ± 1.50 [n=2]"),
        (2, 0, 0.0, math.nan, "11.35 [n=2, all equal]"),
        (3, 0, 0.0, 0.0, "11.35 [n=3, all equal]"),
        (3, 0, 0.003, 0.0075, "11.35 ± 0.003 [n=3, 95 %: ±0.01]"),
        (1, 2, math.nan, math.nan, "11.35 [n=1, 2 diverged]"),
        (0, 2, math.nan, math.nan, "2 diverged"),
    ],
)
def test_a_number_claims_no_more_than_its_runs_tell(n, diverged, std, interval, text):
    row = {"n": n, "diverged": diverged, "mean": 11.35, "std": std, "interval": interval}
    assert "".join(formats.entry(row)) == text
