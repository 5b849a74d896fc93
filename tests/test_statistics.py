from __future__ import annotations

import math
from typing import Any

import pytest

from bsnn_cli.errors import ConfigError, RunDirectoryError
from bsnn_cli.results import pivot, statistics
from bsnn_cli.settings import identity
from bsnn_cli.settings.config import TrainConfig
from tests.handmade import frame, run, seeds, unfinished

T_2 = 4.302652729749464
"""97.5 % point of Student's t with 2 degrees of freedom, from a printed table; 4 degrees: T_4."""
T_4 = 2.776445105197793


def cells_of(*rows: Any) -> Any:
    """Statistics of the test split, a record per number."""
    cells = statistics.over_seeds(statistics.finished(frame(*rows)))
    return cells[cells["split"] == "test"].to_dict("records")


def pairs_of(*rows: Any) -> Any:
    pairs = statistics.paired(statistics.finished(frame(*rows)))
    return pairs[pairs["split"] == "test"].to_dict("records")


@pytest.mark.parametrize(
    ("values", "mean", "std", "interval"),
    [
        ([1.0, 2.0, 3.0], 2.0, 1.0, T_2 / math.sqrt(3)),
        ([95.0, 96.0, 97.0, 98.0, 99.0], 97.0, math.sqrt(2.5), T_4 * math.sqrt(2.5 / 5)),
    ],
)
def test_mean_std_and_interval_match_hand_numbers(values, mean, std, interval):
    (cell,) = cells_of(seeds("tanh", "mnist", values))
    assert (cell["mean"], cell["n"], cell["diverged"]) == (mean, len(values), 0)
    assert cell["std"] == pytest.approx(std, rel=1e-12)
    assert cell["interval"] == pytest.approx(interval, rel=1e-12)


def test_one_seed_has_neither_std_nor_interval():
    (cell,) = cells_of(run("tanh", "mnist", 96.5, seed=7))
    assert (cell["mean"], cell["n"]) == (96.5, 1)
    assert math.isnan(cell["std"])
    assert math.isnan(cell["interval"])


def test_both_splits_are_summarised():
    cells = statistics.over_seeds(statistics.finished(frame(seeds("tanh", "mnist", [90.0, 92.0]))))
    assert cells.set_index("split")["mean"].to_dict() == {"test": 91.0, "train": 92.0}


def test_diverged_runs_are_counted_and_not_averaged():
    mixed, lost = cells_of(seeds("tanh", "mnist", [1.0, None, 3.0]), seeds("relu", "mnist", [None, None]))
    assert (mixed["mean"], mixed["n"], mixed["diverged"]) == (2.0, 2, 1)
    assert mixed["std"] == pytest.approx(math.sqrt(2))
    assert (math.isnan(lost["mean"]), lost["n"], lost["diverged"]) == (True, 0, 2)


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_unfinished_runs_do_not_count(status):
    rows = [run("tanh", "mnist", 96.0), unfinished("tanh", status, seed=1), unfinished("elu", status)]
    (cell,) = cells_of(rows)
    assert (cell["mean"], cell["n"], cell["diverged"]) == (96.0, 1, 0)
    assert statistics.unfinished(frame(rows)) == f"2 {status}"


@pytest.mark.parametrize(
    ("rows", "words"), [([], "no run directory at all"), ([unfinished("elu", "failed")], "1 failed")]
)
def test_without_a_finished_run_the_message_says_what_to_run(rows, words):
    with pytest.raises(ConfigError, match=f"{words}.*bsnn train dataset=digits"):
        statistics.finished(frame(rows))


def test_a_copied_run_is_refused_by_name():
    with pytest.raises(RunDirectoryError, match=r"runs/a, runs/b"):
        cells_of(run("tanh", "mnist", 96.0, directory="runs/a"), run("tanh", "mnist", 96.0, directory="runs/b"))


def test_two_identities_are_never_averaged():
    old = run("tanh", "mnist", 96.0, seed=1, directory="runs/old", identity="of an older schema")
    rows = [run("tanh", "mnist", 96.0, directory="runs/new"), old]
    with pytest.raises(RunDirectoryError, match=r"runs/new, runs/old"):
        cells_of(rows)
    with pytest.raises(RunDirectoryError, match=r"runs/new, runs/old"):
        pairs_of(rows)


def test_image_folders_of_one_name_and_different_content_stay_apart():
    first = run("tanh", "my_images", 50.0, dataset__fingerprint="aaaaaaaaaa")
    second = run("tanh", "my_images", 60.0, dataset__fingerprint="bbbbbbbbbb", seed=1)
    assert [(cell["dataset"], cell["mean"]) for cell in cells_of(first)] == [("my_images", 50.0)]
    assert [(cell["dataset"], cell["mean"]) for cell in cells_of(first, second)] == [
        ("my_images@aaaaaa", 50.0),
        ("my_images@bbbbbb", 60.0),
    ]


def test_paired_difference_uses_common_seeds_only():
    # Differences 1, 2, 4: mean 7/3, squared deviations sum to 14/3. The plain run of seed 3 has no partner.
    (pair,) = pairs_of(seeds("selu_gpn", "mnist", [96.0, 97.0, 99.0]), seeds("selu", "mnist", [95.0, 95.0, 95.0, 10.0]))
    assert (pair["n"], pair["diverged"]) == (3, 0)
    assert pair["mean"] == pytest.approx(7 / 3)
    assert pair["std"] == pytest.approx(math.sqrt(7 / 3))
    assert pair["interval"] == pytest.approx(T_2 * math.sqrt(7 / 9))


def test_pairs_match_seeds_not_positions():
    (pair,) = pairs_of(
        [run("selu_gpn", "mnist", 90.0 + seed, seed=seed) for seed in (2, 0)],
        [run("selu", "mnist", 80.0 + seed, seed=seed) for seed in (0, 1, 2)],
    )
    assert (pair["mean"], pair["std"], pair["n"]) == (10.0, 0.0, 2)


def test_a_pair_that_diverged_is_counted_and_not_averaged():
    (pair,) = pairs_of(seeds("selu_gpn", "mnist", [96.0, 97.0, None]), seeds("selu", "mnist", [95.0, None, 95.0]))
    assert (pair["mean"], pair["n"], pair["diverged"]) == (1.0, 1, 2)
    assert math.isnan(pair["interval"])


def test_pairs_do_not_cross_protocol_dataset_or_batch_norm():
    assert (
        pairs_of(
            run("selu_gpn", "mnist", 96.0),
            run("selu-bn", "mnist", 95.0),
            run("selu", "cifar10", 40.0),
            run("selu", "mnist", 90.0, model__depth=50),
            run("tanh", "mnist", 90.0),
        )
        == []
    )


def test_every_root_is_paired_with_the_same_plain_runs():
    pairs = pairs_of(
        run("relu", "mnist", 10.0, model__depth=50),
        run("relu_gpn", "mnist", 30.0, model__depth=50),
        run("relu_gpn", "mnist", 25.0, model__depth=50, activation__root="lower"),
    )
    assert {str(pair["protocol"]): pair["mean"] for pair in pairs} == {
        "model.depth=50": 20.0,
        "activation.root=lower, model.depth=50": 15.0,
    }


@pytest.mark.parametrize(
    ("plain", "gpn", "better"),
    [
        ([95.0], [96.0], "gpn"),
        ([96.0], [95.0], "plain"),
        ([95.001], [95.002], None),
        ([None], [10.0], "gpn"),
        ([None], [None], None),
        ([97.0, None], [96.0, 96.0], None),
        ([97.0, 97.0], [96.0, None], "plain"),
        ([], [96.0], None),
    ],
)
def test_better_is_the_higher_mean_without_more_divergence(plain, gpn, better):
    cells = statistics.over_seeds(
        statistics.finished(frame(seeds("tanh", "mnist", plain), seeds("tanh_gpn", "mnist", gpn)))
    )
    (block,) = statistics.blocks(cells)
    marked = block.cells[(block.cells["split"] == "test") & block.cells["better"]]
    assert ["gpn" if gpn else "plain" for gpn in marked["gpn"]] == ([] if better is None else [better])


def test_better_is_decided_for_plain_and_batch_norm_apart():
    rows = [run("tanh", "mnist", 90.0), run("tanh_gpn", "mnist", 95.0)]
    rows += [run("tanh-bn", "mnist", 99.0), run("tanh_gpn-bn", "mnist", 98.0)]
    (block,) = statistics.blocks(statistics.over_seeds(statistics.finished(frame(rows))))
    marked = block.cells[(block.cells["split"] == "test") & block.cells["better"]]
    assert sorted(zip(marked["gpn"], marked["batch_norm"], strict=True)) == [(False, True), (True, False)]


def test_blocks_come_with_the_paper_first_then_by_number():
    rows = [run("tanh", "mnist", 9.0, model__depth=depth) for depth in (1000, 50, 100)]
    rows += [run("tanh", "mnist", 9.0, optim__lr=lr) for lr in (1e-5, 0.01, 0.1)]
    blocks = statistics.blocks(statistics.over_seeds(statistics.finished(frame(rows))))
    assert [block.name for block in blocks] == [
        "paper",
        "model.depth=50",
        "model.depth=100",
        "model.depth=1000",
        "optim.lr=1e-05",
        "optim.lr=0.01",
        "optim.lr=0.1",
    ]


def test_a_protocol_is_the_settings_that_set_it_apart():
    config = TrainConfig()
    config.model.depth, config.optim.lr, config.dataset.scaling = 50, 1e-5, "thin_shell"
    protocol = identity.protocol(config)
    assert protocol.settings == {"dataset.scaling": "thin_shell", "model.depth": 50, "optim.lr": 1e-5}
    assert str(protocol) == "dataset.scaling=thin_shell, model.depth=50, optim.lr=1e-05"
    assert statistics.without(protocol, "model.depth").settings == {"dataset.scaling": "thin_shell", "optim.lr": 1e-5}
    assert not identity.protocol(TrainConfig())
    assert str(identity.protocol(TrainConfig())) == ""


def test_compare_holds_the_96_numbers_in_published_order():
    cells = statistics.over_seeds(statistics.finished(frame(seeds("selu", "mnist", [97.0, 98.0, None]))))
    table = statistics.compare(cells)
    expected = "dataset split activation gpn batch_norm ours ours_std ours_interval n diverged published difference"
    assert " ".join(table.columns) == expected
    keys = ["dataset", "split", "activation", "gpn", "batch_norm", "published"]
    assert table[keys].equals(statistics.published()[keys])
    assert len(table) == 96
    assert len(table.drop_duplicates(keys[:5])) == 96
    (ours,) = table[(table["split"] == "test") & (table["n"] > 0)].to_dict("records")
    assert (ours["ours"], ours["n"], ours["diverged"], ours["published"]) == (97.5, 2, 1, 97.33)
    assert ours["difference"] == pytest.approx(0.17)
    assert table["ours"].isna().sum() == 94


@pytest.mark.parametrize(
    "row",
    [
        run("selu", "mnist", 97.0, model__depth=50),
        run("selu", "mnist", 97.0, optim__epochs=1),
        run("selu", "cifar10", 50.0, precision="tf32"),
        run("selu", "cifar10_jpeg", 50.0),
        run("selu", "digits", 97.0),
        run("mish", "mnist", 97.0),
    ],
)
def test_runs_off_the_papers_table_never_enter_it(row):
    table = statistics.compare(statistics.over_seeds(statistics.finished(frame(row))))
    assert len(table) == 96
    assert table["n"].sum() == 0


def pivot_of(rows: str, columns: str, *runs: Any) -> Any:
    cells = pivot.along(statistics.finished(frame(*runs)), rows, columns)
    shown = cells[cells["split"] == "test"].to_dict("records")
    return [(cell["block"], cell["row"], cell["column"], cell["mean"]) for cell in shown]


def test_pivot_averages_seeds_and_sorts_numbers_as_numbers():
    cells = pivot_of(
        "model.depth",
        "activation",
        seeds("tanh_gpn", "mnist", [90.0, 92.0], model__depth=1000),
        seeds("tanh_gpn", "mnist", [80.0, 82.0], model__depth=50),
        run("tanh", "mnist", 70.0, model__depth=50),
    )
    assert cells == [
        ("dataset=mnist", 50, "tanh", 70.0),
        ("dataset=mnist", 50, "tanh_gpn", 81.0),
        ("dataset=mnist", 1000, "tanh_gpn", 91.0),
    ]


def test_pivot_gives_every_other_difference_its_own_block():
    cells = pivot_of(
        "model.depth",
        "activation",
        run("tanh", "mnist", 1.0, model__depth=50),
        run("tanh", "mnist", 2.0, model__depth=50, optim__lr=0.1),
        run("tanh", "digits", 3.0, model__depth=50),
        run("tanh-bn", "mnist", 4.0, model__depth=50),
    )
    assert sorted(cells) == [
        ("dataset=digits", 50, "tanh", 3.0),
        ("dataset=mnist", 50, "tanh", 1.0),
        ("dataset=mnist", 50, "tanh", 4.0),  # in parentheses
        ("dataset=mnist, optim.lr=0.1", 50, "tanh", 2.0),
    ]


def test_pivot_over_datasets_keeps_each_at_its_own_protocol():
    cells = pivot_of("dataset", "activation", run("tanh", "mnist", 96.0), run("tanh", "cifar10", 42.0))
    assert cells == [("", "mnist", "tanh", 96.0), ("", "cifar10", "tanh", 42.0)]


def test_pivot_over_seeds_shows_single_runs():
    assert pivot_of("seed", "activation", seeds("tanh", "mnist", [1.0, 2.0])) == [
        ("dataset=mnist", 0, "tanh", 1.0),
        ("dataset=mnist", 1, "tanh", 2.0),
    ]


def test_pivot_over_the_root_takes_the_one_that_was_used():
    cells = pivot_of(
        "activation.root",
        "activation",
        run("relu_gpn", "mnist", 30.0, root="upper"),
        run("relu_gpn", "mnist", 25.0, activation__root="lower", root="lower"),
        run("gelu_gpn", "mnist", 95.0, root="lower"),
        run("relu", "mnist", 11.0),
    )
    assert sorted((row, column, mean) for _, row, column, mean in cells) == [
        ("lower", "gelu_gpn", 95.0),
        ("lower", "relu_gpn", 25.0),
        ("none", "relu", 11.0),
        ("upper", "relu_gpn", 30.0),
    ]


@pytest.mark.parametrize(("columns", "in_parentheses"), [("activation", [False, True]), ("model.norm", [False, False])])
def test_pivot_puts_batch_norm_in_parentheses_unless_it_is_an_axis(columns, in_parentheses):
    runs = statistics.finished(frame(run("tanh", "mnist", 1.0), run("tanh-bn", "mnist", 2.0)))
    cells = pivot.along(runs, "model.depth", columns)
    assert list(cells[cells["split"] == "test"].sort_values("mean")["in_parentheses"]) == in_parentheses


@pytest.mark.parametrize(
    ("rows", "columns"),
    [("model.depth", "activation"), ("activation", "model.depth"), ("activation.name", "activation.gpn")],
)
def test_pivot_marks_the_better_of_gpn_and_plain(rows, columns):
    runs = statistics.finished(frame(run("tanh", "mnist", 90.0), run("tanh_gpn", "mnist", 95.0)))
    cells = pivot.along(runs, rows, columns)
    marked = cells[(cells["split"] == "test") & cells["better"]]
    assert list(marked["gpn"]) == [True]


@pytest.mark.parametrize(
    ("rows", "near"), [("model.dept", "model.depth"), ("lr", "optim.lr"), ("activatoin", "activation")]
)
def test_unknown_pivot_key_is_refused_with_the_nearest(rows, near):
    with pytest.raises(ConfigError, match=rf"^rows={rows}: must be .*near it: .*{near}"):
        pivot_of(rows, "dataset", run("tanh", "mnist", 1.0))


def test_pivot_keys_must_differ():
    with pytest.raises(ConfigError, match=r"^columns=dataset.name: must differ from rows=dataset$"):
        pivot_of("dataset", "dataset.name", run("tanh", "mnist", 1.0))


def test_mixed_numerics_warn_with_the_versions():
    rows = [run("tanh", "mnist", 1.0, numerics=numerics, seed=numerics) for numerics in (10, 2)]
    cells = statistics.over_seeds(statistics.finished(frame(rows)))
    assert "numerics versions 2, 10 mix" in str(statistics.mixed_numerics(cells))
    assert statistics.mixed_numerics(statistics.over_seeds(statistics.finished(frame(rows[0])))) is None
