"""Tables of what can be chosen by name, and what is fixed about each choice. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS

AUTO_ROOT = {name: entry.root for name, entry in NAMED_ACTIVATIONS.items()}
"""Named activations, and the root of b that `activation.root=auto` takes."""


def root_in_use(name: str, root: str) -> str:
    """Return the root that `activation.root` selects; `auto` of a function from a file stays as it is."""
    return AUTO_ROOT.get(name, root) if root == "auto" else root


ACTIVATION_LABELS = {name: entry.label for name, entry in NAMED_ACTIVATIONS.items()}
"""Named activations as tables and figures show them."""

FORMS = {"": "", "_gpn": "-GPN", "_gpn_d": "-GPN-d"}
"""Suffixes of activations in configs, and what tables and figures show: as it is, GPN, depth-aware GPN."""


def split_label(activation: str) -> tuple[str, str]:
    """Split `selu_gpn` into ("selu", "_gpn"); a name without a suffix has the form ""."""
    form = next(form for form in ("_gpn_d", "_gpn", "") if activation.endswith(form))
    return activation.removesuffix(form), form


CUSTOM = "custom"
"""`activation.name` of a function from a file; paths and tables call it by the name of the function."""

DEFAULT_SEPARATION = 0.3
"""1 − c after all layers that `activation=NAME_gpn_d` asks for."""

UNTAILORED = {name: entry.untailored for name, entry in NAMED_ACTIVATIONS.items() if entry.untailored}
"""Named activations without a depth-aware form, and why."""

TAILORED_BY = {name: entry.tailored_by for name, entry in NAMED_ACTIVATIONS.items() if entry.tailored_by is not None}
"""Named activations with a depth-aware form, and what `activation.parameter=auto` changes.

With a gain, lengths above 2 to 2.6 would run away at 200 layers under GELU, SiLU, Softplus and Mish. In shallow
networks, where their share may have to reach less of 1 − c than φ keeps, `auto` takes the gain.
"""


def parameter_in_use(name: str, parameter: str | None) -> str | None:
    """Return the parameter that `activation.parameter` selects; for a function from a file, return it unchanged.

    Before there was that key (None), the share was changed where φ has a corner at 0, and the gain elsewhere.
    """
    if name not in TAILORED_BY:
        return parameter
    if parameter is None:
        return "share" if NAMED_ACTIVATIONS[name].corner else "gain"
    return TAILORED_BY[name] if parameter == "auto" else parameter


def tailored_as_usual(name: str, parameter: str | None) -> bool:
    """Return True if this is the parameter that `auto` changes."""
    return parameter_in_use(name, parameter) == TAILORED_BY.get(name, parameter)


WEIGHTS_KINDS = ("orthogonal", "gaussian")
"""Laws of the weights that theory knows."""

PAPER_ACTIVATIONS = tuple(name for name, entry in NAMED_ACTIVATIONS.items() if entry.published is not None)
"""Rows of the published tables, in their order."""


@dataclass(frozen=True)
class DatasetSpec:
    """The facts about a kind of dataset that are fixed before it is read.

    Attributes:
        label: as a table shows it.
        epochs: passes over the training split that the protocol asks for.
        samples: in the training and the test split; None where that depends on the files.
    """

    label: str
    epochs: int
    samples: tuple[int, int] | None


DATASETS = {
    "mnist": DatasetSpec("MNIST", 50, (60_000, 10_000)),
    "cifar10": DatasetSpec("CIFAR-10", 100, (50_000, 10_000)),
    "fashion_mnist": DatasetSpec("Fashion-MNIST", 50, (60_000, 10_000)),
    "digits": DatasetSpec("digits", 50, (1_442, 355)),
    "folder": DatasetSpec("folder", 100, None),
}
"""Kinds of dataset; 50 and 100 epochs are the paper's for MNIST and CIFAR-10."""

GPN_FORMS: dict[str, dict[str, Any]] = {
    "": {"gpn": False},
    "_gpn": {"gpn": True},
    "_gpn_d": {"gpn": True, "separation": DEFAULT_SEPARATION},
}
"""The settings that each suffix of `FORMS` makes in the group `activation`."""


@dataclass(frozen=True)
class OptimiserSpec:
    """The facts about an optimiser that are known before torch is.

    Attributes:
        label: as a message shows it.
        buffers: what it keeps for each trained tensor; `BUFFER.NAME` is the name of it in a checkpoint.
    """

    label: str
    buffers: tuple[str, ...]


OPTIMISERS = {
    "sgd": OptimiserSpec("SGD", ("momentum",)),
    "adamw": OptimiserSpec("AdamW", ("momentum", "second_moment")),
}
"""Optimisers; their rules are in `networks/optimiser.py`."""

SCHEDULES = ("constant", "cosine", "step")
"""Schedules of the learning rate; their formulas are in `networks/optimiser.py`."""

NETWORKS = ("mlp", "cnn")
"""Kinds of network that `activation` and `model` describe."""

MADE_CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "activation": {
        name + form: {"name": name, **settings}
        for name in (*NAMED_ACTIVATIONS, CUSTOM)
        for form, settings in GPN_FORMS.items()
    },
    "dataset": {kind: {"kind": kind} for kind in DATASETS},
    "network": {kind: {"kind": kind} for kind in NETWORKS},
    "optim": {kind: {"kind": kind} for kind in OPTIMISERS},
}
"""The choices of config groups that need no file in `configs/`: the keys that each sets in its group."""

NORM_GROUPS = 10
"""Groups of `model.norm=group`; a divisor of all widths of the paper's experiments."""

SPLITS = ("test", "train", "validation")
"""Parts of a dataset on which a network is evaluated."""

QUANTITIES = ("accuracy", "loss", *(f"{split}_{name}" for split in SPLITS for name in ("accuracy", "loss")))
"""Numbers of a run at the end of its training, of the splits that are shown or of one."""


def metric_parts(metric: str) -> tuple[str, str | None, float | None] | None:
    """Split a metric into its quantity, its split and its target; None if it is no metric.

    `test_loss` is ("loss", "test", None), and `epochs_to_90`, or `epochs_to=90`, is ("epochs_to", None, 90.0).
    """
    plain = re.fullmatch(rf"(?:({'|'.join(SPLITS)})_)?(accuracy|loss)", metric)
    if plain:
        return plain[2], plain[1], None
    target = re.fullmatch(r"epochs_to[_=](\d{1,2}(?:\.\d+)?|100)", metric)
    return ("epochs_to", None, float(target[1])) if target else None


FIGURES = (
    "activations",
    "propagation",
    "propagation_all",
    "derivatives",
    "width",
    "root_signals",
    "after_training",
    "curves",
    "tuning",
    "approaches",
    "theorems",
    "lengths",
    "angles",
    "gradients",
    "phase_diagram",
    "bench",
    "constraint",
    "roots",
    "depth_aware",
    "networks",
)
FORMATS = ("png", "svg", "pdf")

METRICS = (
    "train_loss",
    "test_loss",
    "validation_loss",
    "train_accuracy",
    "test_accuracy",
    "validation_accuracy",
    "learning_rate",
    "orthogonality_error",
    "elapsed_s",
)
"""Columns of `epochs.csv` that are drawn against the epoch."""
