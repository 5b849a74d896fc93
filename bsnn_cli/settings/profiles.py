"""The settings of `bsnn reproduce` and `bsnn report`; a profile is a list of command lines. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.options import at_least, option, some_of


@dataclass(kw_only=True)
class StepConfig:
    """One command line of a reproduction."""

    title: str = option("", "what it is for")
    command: str = option("", "without `bsnn`, output_root, device and the like")
    wanted: bool = option(True, "false leaves it out")
    measure: bool = option(False, "of train: afterwards measure the signals of the trained networks")


@dataclass(kw_only=True)
class ProfileConfig:
    """What is trained and measured; see `configs/profile`."""

    name: str = option("", "as `bsnn reproduce profile=` takes it")
    title: str = option("", "what it comes to")
    activations: str = option(
        "tanh,tanh_gpn,relu,relu_gpn,lrelu,lrelu_gpn,elu,elu_gpn,selu,selu_gpn,gelu,gelu_gpn",
        "of the accuracy tables and of the signals, separated by commas",
    )
    steps: list[StepConfig] = field(
        default_factory=list,
        metadata={"meaning": "command lines, in their order", "rule": None, "unit": "", "result": False},
    )


@dataclass(kw_only=True)
class ReproduceConfig:
    """The paper's results from start to end: trainings, signals, theorems, tables, figures and the report."""

    profile: ProfileConfig = field(default_factory=ProfileConfig)
    seeds: int = option(1, "runs of each number of the accuracy tables: seed=0, 1, ...", at_least(1))
    batch_norm: bool = option(False, "the accuracy tables with batch normalisation too, as in the paper")
    datasets: list[str] | None = option(None, "of all trainings only those on these; null: all", some_of(*DATASETS))
    extras: bool = option(True, "also exact orthogonality against unit rows, and upper against lower root b")
    dry_run: bool = option(False, "print the plan with what it takes, and stop")
    export: str | None = option(None, "folder for a copy of everything but weights; null: none", path=True)
    data_root: str = option(
        "${oc.env:BSNN_DATA_DIR,data}", "folder with the datasets; BSNN_DATA_DIR sets the default", path=True
    )
    device: str = option("auto", "where to train; auto: cuda if there is one")
    threads: int | None = option(None, "CPU threads; null: torch's choice", at_least(1))
    output_root: str = option("outputs", "folder for everything that is written", path=True)


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of everything that is stored."""

    export: str | None = option(
        None, "folder for a copy of all tables, figures and runs, without weights; null: none", path=True
    )
    output_root: str = option("outputs", "folder with the results; the page goes to its folder `report`", path=True)
