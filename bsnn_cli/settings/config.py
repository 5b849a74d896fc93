"""The typed, documented and validated settings of every verb. Imports no torch.

An option is declared once, with its default, meaning, unit and range; `bsnn VERB --help`, the checks and the identity
of a run are all read off that declaration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bsnn_cli.settings.choices import (
    AUTO_ROOT,
    CUSTOM,
    DATASETS,
    DEFAULT_SEPARATION,
    FIGURES,
    FORMATS,
    METRICS,
    NETWORKS,
    NORM_GROUPS,
    OPTIMISERS,
    QUANTITIES,
    SCHEDULES,
    SPLITS,
    WEIGHTS_KINDS,
    metric_parts,
)
from bsnn_cli.settings.options import Rule, above, at_least, between, half_open, one_of, option, some_of
from bsnn_cli.settings.profiles import ReportConfig, ReproduceConfig

NAME = Rule(
    "letters, digits, '_', '-' and '.', not starting with '.'",
    lambda text: re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", text) is not None,
)
SEED = Rule("from 0 to 2^63 - 1", lambda seed: 0 <= seed < 2**63)
DEVICE = Rule("auto, cpu, cuda or cuda:N", lambda text: re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is not None)


IN_FILE = Rule("FILE.py:FUNCTION", lambda text: re.fullmatch(r".*\.py:[^\W\d]\w*", text) is not None)
SHAPE = Rule(
    "a list of whole numbers from 1, such as [3,32,32]",
    lambda sizes: min(sizes, default=0) > 0,
)
WIDTHS = Rule("a list of whole numbers from 1, such as [500,400,300]", SHAPE.accepts)


@dataclass(kw_only=True)
class ActivationConfig:
    """The nonlinearity φ, and whether it is Gaussian-Poincaré normalised."""

    name: str = option(
        "selu", f"base activation φ; {CUSTOM}: the one of activation.path", one_of(*AUTO_ROOT, CUSTOM), result=True
    )
    gpn: bool = option(True, "use a·φ(h) + b with E[f²] = E[f'²] = 1 under h ~ N(0,1)", result=True)
    root: str = option(
        "auto",
        "which of the two solutions b; auto: upper unless it drives norms away (χ > 1), then lower",
        one_of("auto", "upper", "lower"),
        result=True,
    )
    separation: float | None = option(
        None,
        "depth-aware GPN: tailor φ so that inputs at right angles keep this 1 − c after all layers; null: φ as it is, "
        f"and {DEFAULT_SEPARATION} in activation=NAME_gpn_d",
        between(0, 1),
        result=True,
    )
    tailored_depth: int | None = option(
        None, "layers that separation counts; null: the network's", at_least(1), unit="layers", result=True
    )
    parameter: str | None = option(
        "auto",
        "what separation moves; gain: α of φ(αh); share: s of (1 − s)φ(h) + sh; auto: the gain where lengths are safe "
        "with it, else the share; null: as before there was this key, share where φ has a corner at 0, else gain",
        one_of("auto", "gain", "share"),
        result=True,
    )
    path: str | None = option(
        None,
        f"of activation={CUSTOM}: a Python file and an elementwise function of tensors in it; means nothing elsewhere",
        IN_FILE,
        path=True,
    )
    fingerprint: str | None = option(
        None, "of the file's content and the function's name; filled in by the program", result=True
    )


@dataclass(kw_only=True)
class NetworkConfig:
    """The kind of network; or any PyTorch module in place of activation and model, by network=FILE.py:FUNCTION."""

    kind: str = option(
        "mlp",
        "mlp: fully connected, as in the paper; cnn: model.depth convolutions of 3 × 3 with model.width channels",
        one_of(*NETWORKS),
        result=True,
    )
    path: str | None = option(
        None,
        "a Python file and a function in it that returns the module, or the module and its inputs; null: the kind of "
        "network above, as activation and model describe it",
        IN_FILE,
        path=True,
    )
    kwargs: dict[str, Any] = option(dict, "arguments of the function, such as network.kwargs.depth=20", result=True)
    defaults: dict[str, Any] = option(dict, "of the function, for tables; filled in by the program")
    shape: list[int] | None = option(
        None,
        "of one standard Gaussian input that is measured; null: what the function returns; of kind=cnn the signal that "
        "enters the hidden layers, 14 × 14 pixels",
        SHAPE,
        result=True,
    )
    fingerprint: str | None = option(
        None, "of the file's content and the function's name; filled in by the program", result=True
    )


@dataclass(kw_only=True)
class DatasetConfig:
    """What is classified."""

    kind: str = option("mnist", "how it is fetched and read", one_of(*DATASETS), result=True)
    name: str | None = option(None, "label in paths and tables; null: the kind", NAME, result=True)
    root: str = option(
        "${oc.env:BSNN_DATA_DIR,data}", "folder with the files; BSNN_DATA_DIR sets the default", path=True
    )
    scaling: str = option(
        "standardize",
        "standardize: per channel; thin_shell: then each input onto the sphere of radius √d",
        one_of("standardize", "thin_shell"),
        result=True,
    )
    validation: float = option(
        0.0, "share of the training split set aside for choosing things", half_open(0, 1), result=True
    )
    fingerprint: str | None = option(None, "of the content, for kind=folder; filled in by the program", result=True)


@dataclass(kw_only=True)
class ModelConfig:
    """The network: an input layer, `depth` hidden width × width layers, an output layer."""

    depth: int = option(200, "number L of hidden width × width matrices", at_least(1), unit="layers", result=True)
    width: int = option(
        500,
        "units n of each hidden layer, of the first one where they differ; model.width=[500,400,300] is short for "
        "model.widths=[500,400,300]",
        at_least(1),
        unit="units",
        result=True,
    )
    widths: list[int] | None = option(
        None,
        "units of what enters each of the L hidden matrices and, one more, of what leaves the last; null: model.width "
        "everywhere, or as model.taper says",
        WIDTHS,
        result=True,
    )
    taper: float | None = option(
        None,
        "the last width over the first, model.width: layer by layer they fall, or grow, by the same factor; null: they "
        "stay",
        between(0, 100),
        result=True,
    )
    norm: str = option(
        "none",
        f"normalisation before each activation, with gain and shift; group: {NORM_GROUPS} groups of units",
        one_of("none", "batch", "layer", "group"),
        result=True,
    )
    norm_init: str = option(
        "ones",
        "start of the gain of a normalisation; uniform: drawn from U(0, 1), PyTorch's default for batch normalisation "
        "before version 1.2",
        one_of("ones", "uniform"),
        result=True,
    )
    weights: str = option(
        "unit_rows",
        "unit_rows: each row v/‖v‖ as in the paper; orthogonal: WᵀW = I kept; free: no constraint; weight_norm: rows "
        "g·v/‖v‖ with g free; spectral_norm: W over its largest singular value",
        one_of("unit_rows", "orthogonal", "free", "weight_norm", "spectral_norm"),
        result=True,
    )
    init: str = option(
        "orthogonal",
        "start of the hidden matrices; orthogonal: Haar-uniform; lecun_normal, glorot_uniform, he_normal: variances "
        "1/n, 1/n, 2/n; lsuv: orthogonal, then scaled layer by layer to preactivations of unit variance on a batch",
        one_of("orthogonal", "lecun_normal", "glorot_uniform", "he_normal", "lsuv"),
        result=True,
    )
    residual: bool = option(False, "add what enters a hidden layer to what leaves it: x + φ(h)", result=True)
    input_init: str = option(
        "default",
        "start of the input layer; default: PyTorch's nn.Linear; norm_preserving: ‖x¹‖²/n = 1 on average",
        one_of("default", "norm_preserving"),
        result=True,
    )


@dataclass(kw_only=True)
class SgdConfig:
    """Stochastic gradient descent with momentum, constant learning rate."""

    lr: float = option(1e-4, "learning rate", above(0), result=True)
    momentum: float = option(0.5, "momentum μ of the gradient sum", half_open(0, 1), result=True)
    batch_size: int = option(
        64, "mini-batch; the last one of an epoch may be shorter", at_least(1), unit="samples", result=True
    )
    epochs: int | None = option(
        None,
        "passes over the training split; null: "
        + ", ".join(f"{spec.epochs} for {kind}" for kind, spec in DATASETS.items()),
        at_least(1),
        unit="epochs",
        result=True,
    )


@dataclass(kw_only=True)
class OptimConfig(SgdConfig):
    """The optimiser, and the schedule of its learning rate; `optim=adamw` is short for `optim.kind=adamw`."""

    kind: str = option(
        "sgd",
        "sgd: with optim.momentum; adamw: with optim.beta1 and optim.beta2, decoupled weight decay",
        one_of(*OPTIMISERS),
        result=True,
    )
    nesterov: bool = option(False, "Nesterov's momentum, of optim=sgd", result=True)
    beta1: float = option(0.9, "decay of the mean of gradients, of optim=adamw", half_open(0, 1), result=True)
    beta2: float = option(0.999, "decay of the mean of their squares, of optim=adamw", half_open(0, 1), result=True)
    weight_decay: float = option(
        0.0, "of all matrices that are not kept orthogonal; not of biases and normalisation", at_least(0), result=True
    )
    clip: float | None = option(
        None, "largest norm of the gradient of all parameters of a network; null: no limit", above(0), result=True
    )
    schedule: str = option(
        "constant",
        "of the learning rate, step by step; cosine: from optim.lr to 0 at the end of training; step: times "
        "optim.decay_rate after every optim.decay_epochs",
        one_of(*SCHEDULES),
        result=True,
    )
    warmup: float = option(
        0.0, "linear rise to optim.lr at the start, before the schedule", at_least(0), unit="epochs", result=True
    )
    decay_epochs: float | None = option(
        None, "of schedule=step; null: a third of optim.epochs", above(0), unit="epochs", result=True
    )
    decay_rate: float = option(0.1, "of schedule=step: factor of the learning rate", above(0), result=True)


@dataclass(kw_only=True)
class EvalConfig:
    """The test split is evaluated after every epoch, the training split at the end."""

    train_every: int | None = option(
        None,
        "evaluate the whole training split every so many epochs; null: at the end only",
        at_least(1),
        unit="epochs",
    )


@dataclass(kw_only=True)
class CheckpointConfig:
    """What is kept so that nothing is lost."""

    every_s: float = option(
        60.0, "time between saves; stretched where saving would take over 2 % of the run", at_least(0), unit="s"
    )
    keep: str = option("weights", "what stays of a finished run", one_of("weights", "all", "none"))


@dataclass(kw_only=True)
class TrainConfig:
    """One training run."""

    activation: ActivationConfig = field(default_factory=ActivationConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = option(0, "of initial weights and batch order", SEED)
    approach: str | None = option(None, "preset of model and activation, one of those above")
    precision: str = option("fp32", "of matrix products; tf32 needs a CUDA device", one_of("fp32", "tf32"), result=True)
    device: str = option("auto", "where to compute; auto: cuda if there is one", DEVICE)
    threads: int | None = option(None, "CPU threads; null: torch's choice", at_least(1))
    output_root: str = option("outputs", "folder for everything that is written", path=True)
    force: bool = option(False, "train again, replacing what this run has written")
    wait: bool = option(False, "wait for another process that holds this run")
    dry_run: bool = option(False, "print what would be done, the time and disk it takes, and stop")
    logger: str = option(
        "none", "what to write beside epochs.csv; tensorboard: an event file", one_of("none", "tensorboard")
    )
    progress: bool = option(True, "show how far it is: a bar on a terminal, lines in a log file")


@dataclass(kw_only=True)
class PropagateOptions:
    """What is sent through the network, and how often."""

    source: str = option(
        "gaussian",
        "gaussian: standard Gaussian x¹ and top gradient, as in the paper; dataset: the loss on real training data",
        one_of("gaussian", "dataset"),
        result=True,
    )
    inputs: int = option(500, "inputs in the batch", at_least(2), unit="samples", result=True)
    repeats: int = option(1, "measurements with seeds seed, seed+1, ..., for mean and spread", at_least(1), result=True)
    histogram: list[int] | None = option(
        None,
        "layers, counted from 1, whose φ'(h) get a histogram; null: first, middle and last; with network=, the rows of "
        "activations in layers.csv",
        result=True,
    )


@dataclass(kw_only=True)
class PropagateConfig:
    """Signals and gradients of every layer, at the start of training or of a trained network."""

    activation: ActivationConfig = field(default_factory=ActivationConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    propagate: PropagateOptions = field(default_factory=PropagateOptions)
    seed: int = option(0, "of weights, inputs and top gradient", SEED)
    approach: str | None = option(None, "preset of model and activation, one of those above")
    run: str | None = option(
        None, "directory of a finished run, whose trained network is measured; null: a fresh one", path=True
    )
    weights_digest: str | None = option(None, "of the trained weights; filled in by the program", result=True)
    device: str = option("cpu", "where to compute; auto: cuda if there is one", DEVICE)
    threads: int | None = option(None, "CPU threads; null: torch's choice", at_least(1))
    output_root: str = option("outputs", "folder for everything that is written", path=True)
    force: bool = option(False, "measure again, replacing what is there")
    progress: bool = option(True, "show a progress bar, on a terminal")


METRIC = Rule(
    f"one or more of {', '.join(QUANTITIES)}, or epochs_to_P, such as epochs_to_90",
    lambda names: len(names) > 0 and all(metric_parts(name) is not None for name in names),
    (*QUANTITIES, "epochs_to_90"),
)

WHERE = "only runs with these settings; entries can be given as such: model.depth=50 seed=0,1"


@dataclass(kw_only=True)
class TableConfig:
    """Accuracy tables from all finished runs, or the comparison of approaches from all measured signals."""

    kind: str = option(
        "accuracy",
        "accuracy: of training runs; approaches: the paper's summary with what `propagate` has measured; constraint: "
        "exact orthogonality against unit rows; roots: upper against lower root b",
        one_of("accuracy", "approaches", "constraint", "roots"),
    )
    rows: str | None = option(None, "key of the rows, such as model.depth or approach; null: the paper's layout")
    columns: str | None = option(None, "key of the columns; null: the paper's layout")
    tune: list[str] | None = option(
        None,
        "show only runs at the best value of this key (of several: the best combination), such as optim.lr: that with "
        "the highest mean validation accuracy, never by the test split; one with more diverged runs is not chosen over "
        "one with fewer; of equal ones the smallest; needs runs with dataset.validation",
    )
    where: list[str] | None = option(None, WHERE)
    metric: list[str] | None = option(
        None,
        "what is shown, at the end of training; epochs_to_P: the first epoch with an accuracy of P percent; several "
        "are the columns of one table; null: accuracy",
        METRIC,
    )
    split: str = option("both", "of which data; both: test and training", one_of(*SPLITS, "both"))
    format: str = option("text", "how to print", one_of("text", "markdown", "latex", "csv"))
    output_root: str = option("outputs", "folder with the runs; tables go to its folder `tables`", path=True)


@dataclass(kw_only=True)
class FiguresConfig:
    """The paper's figures, from numbers that `propagate`, `train`, `theory` and `bench` have stored."""

    only: str | None = option(None, "this figure; null: all of them", one_of(*FIGURES))
    formats: list[str] | None = option(None, f"of the pictures; null: {', '.join(FORMATS)}", some_of(*FORMATS))
    depth: int = option(200, "of the networks whose signals are shown", at_least(1), unit="layers")
    width: int = option(500, "of these, but in figure width", at_least(1), unit="units")
    by: str | None = option(
        None,
        "of curves: overlay the runs that differ in this key, such as optim.lr, activation or seed; null: GPN and "
        "non-GPN; of tuning: the key along the axis; null: the learning rate, or another number that was varied",
    )
    metric: list[str] | None = option(
        None,
        "of curves: what is drawn against the epoch; null: test_accuracy; of tuning: accuracies and losses at the end; "
        "null: validation_accuracy where there is one, else test_accuracy",
        some_of(*METRICS),
    )
    where: list[str] | None = option(None, f"{WHERE}; then only figures of runs are drawn")
    output_root: str = option("outputs", "folder with the numbers; figures go to its folder `figures`", path=True)


@dataclass(kw_only=True)
class GpnConfig:
    """Constants of Gaussian-Poincaré normalisation."""

    activation: ActivationConfig | None = option(None, "one of the group, such as mish; null: all of them")
    root: str = option(
        "auto", "which solution b, where all are printed; of one: activation.root", one_of("auto", "upper", "lower")
    )
    format: str = option("text", "how to print", one_of("text", "markdown", "csv", "json"))


@dataclass(kw_only=True)
class TheoryConfig:
    """The paper's theorems by Monte Carlo over widths, and signals and gradients over depth, predicted and measured."""

    activation: ActivationConfig | None = option(None, "one of the group, such as mish; null: all of them")
    smallest_width: int = option(32, "of the theorems; doubled up to the largest", at_least(1), unit="units")
    largest_width: int = option(1024, "of the theorems", at_least(1), unit="units")
    trials: int = option(2000, "draws of input and weights for each probability", at_least(1))
    epsilon: float | None = option(
        None, "deviation ε that counts; null: 2/√n₀, n₀ the geometric mean of the widths", above(0)
    )
    depth: int = option(200, "layers over which signals are followed", at_least(1), unit="layers")
    width: int = option(500, "of these layers", at_least(2), unit="units")
    networks: int = option(16, "over which what is measured is averaged", at_least(1))
    weights: str = option(
        "orthogonal",
        "of the layers over depth: σ_w times orthogonal, or Gaussian of variance σ_w²/n",
        one_of(*WEIGHTS_KINDS),
    )
    sigma_w: float = option(1.0, "scale σ_w of these weights", above(0))
    sigma_b: float = option(0.0, "standard deviation σ_b of their biases", at_least(0))
    seed: int = option(0, "of inputs and weights", SEED)
    output_root: str = option("outputs", "folder for everything that is written", path=True)


@dataclass(kw_only=True)
class RunsConfig:
    """What has been run."""

    status: str | None = option(None, "show only these", one_of("done", "diverged", "failed", "interrupted", "running"))
    where: list[str] | None = option(None, WHERE)
    sort: str | None = option(
        None, "column or key to sort by, such as test_accuracy or model.depth; -KEY: largest first; null: by directory"
    )
    columns: list[str] | None = option(
        None, "columns or keys to show, such as seed,optim.lr,test_accuracy; null: what differs between the runs"
    )
    format: str = option("text", "how to print", one_of("text", "markdown", "csv", "json"))
    help: str | None = option(
        None, "columns: explain every column and key of the files of results, and list no run", one_of("columns")
    )
    watch: bool = option(False, "follow the runs until all of them have ended, or Ctrl-C")
    prune: bool = option(False, "say which files of finished and failed runs can go, and how much that frees")
    yes: bool = option(False, "with prune: delete them")
    output_root: str = option("outputs", "folder with the runs", path=True)


@dataclass(kw_only=True)
class RerunConfig:
    """Repeat a run and compare."""

    directory: str = option("", "of a finished run; `bsnn rerun DIRECTORY` will do", path=True)


@dataclass(kw_only=True)
class DataConfig:
    """Fetch, verify and describe a dataset."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)


@dataclass(kw_only=True)
class BenchConfig:
    """Speed beside plain PyTorch and beside the matrix products alone."""

    activation: ActivationConfig = field(default_factory=ActivationConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: SgdConfig = field(default_factory=SgdConfig)
    quick: bool = option(False, "only plain PyTorch, one network of this program and the limit")
    growth: bool = option(False, "also how cost grows with depth, width and number of networks")
    compile: bool = option(False, "also plain PyTorch with torch.compile, which takes minutes to compile")
    networks: list[int] | None = option(None, "sizes of fleets; null: 1 on a CPU, 1, 12 and 24 on a GPU")
    rounds: int = option(9, "turns in which each implementation is timed: a step, on a GPU up to ten", at_least(1))
    precision: str = option("fp32", "of matrix products; tf32 needs a CUDA device", one_of("fp32", "tf32"))
    device: str = option("auto", "where to compute; auto: cuda if there is one", DEVICE)
    threads: int | None = option(None, "CPU threads; null: torch's choice", at_least(1))
    output_root: str = option("outputs", "results go to its folder `bench`", path=True)


VERBS = {
    "train": TrainConfig,
    "propagate": PropagateConfig,
    "table": TableConfig,
    "figures": FiguresConfig,
    "gpn": GpnConfig,
    "theory": TheoryConfig,
    "runs": RunsConfig,
    "rerun": RerunConfig,
    "data": DataConfig,
    "bench": BenchConfig,
    "reproduce": ReproduceConfig,
    "report": ReportConfig,
}
