"""The settings of `bsnn reproduce` and `bsnn report`; a profile is a list of command lines. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.knobs import at_least, knob, some_of


@dataclass(kw_only=True)
class StepConfig:
    """One command line of a reproduction."""

    title: str = knob("", "what it is for")
    command: str = knob("", "without `bsnn`, output_root, device and the like")
    wanted: bool = knob(True, "false leaves it out")
    measure: bool = knob(False, "of train: afterwards measure the signals of the trained networks")


@dataclass(kw_only=True)
class ProfileConfig:
    """What is trained and measured; see `configs/profile`."""

    name: str = knob("", "as `bsnn reproduce profile=` takes it")
    title: str = knob("", "what it comes to")
    activations: str = knob(
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
    seeds: int = knob(1, "runs of each number of the accuracy tables: seed=0, 1, ...", at_least(1))
    batch_norm: bool = knob(False, "the accuracy tables with batch normalisation too, as in the paper")
    datasets: list[str] | None = knob(None, "of all trainings only those on these; null: all", some_of(*DATASETS))
    extras: bool = knob(True, "also exact orthogonality against unit rows, and upper against lower root b")
    dry_run: bool = knob(False, "print the plan with what it takes, and stop")
    export: str | None = knob(None, "folder for a copy of everything but weights; null: none", path=True)
    data_root: str = knob(
        "${oc.env:BSNN_DATA_DIR,data}", "folder with the datasets; BSNN_DATA_DIR sets the default", path=True
    )
    device: str = knob("auto", "where to train; auto: cuda if there is one")
    threads: int | None = knob(None, "CPU threads; null: torch's choice", at_least(1))
    output_root: str = knob("outputs", "folder for everything that is written", path=True)


@dataclass(kw_only=True)
class ReportConfig:
    """One HTML page of everything that is stored."""

    export: str | None = knob(
        None, "folder for a copy of all tables, figures and runs, without weights; null: none", path=True
    )
    output_root: str = knob("outputs", "folder with the results; the page goes to its folder `report`", path=True)
