"""The identity of a config, equal for equal runs, and the directory of a run.

The identity hashes only what differs from the defaults, so that a new option with a default leaves existing run
directories where they are.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bsnn_cli.settings.choices import AUTO_ROOT, CUSTOM, DATASETS, parameter_in_use
from bsnn_cli.settings.config import (
    ActivationConfig,
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    OptimConfig,
    PropagateConfig,
    TrainConfig,
)
from bsnn_cli.settings.options import flattened, options, written
from bsnn_cli.settings.widths import with_plain_width

SCHEMA_VERSION = 1
"""Enters every identity. Raise it only if old run directories must never be found again."""


AnyConfig = TypeVar("AnyConfig", bound=TrainConfig | PropagateConfig)
"""A config with an identity: of a training run, or of a measurement of signals."""


def canonical(config: AnyConfig) -> AnyConfig:
    """Return the config in its canonical form: values that only spell out a default become the default.

    For example, `activation.root=lower` is what `auto` means for GELU, a root means nothing without GPN, the start of
    a gain nothing without normalisation, and `optim.epochs=50` is the protocol of MNIST. Gaussian signals pass neither
    a dataset nor an input layer. A list of equal widths is that width; one of others fills in `width`, the first.
    """
    config = copy.deepcopy(config)
    if config.network.path is not None:
        config.activation, config.model, config.approach = ActivationConfig(), ModelConfig(), None
    activation = config.activation
    if activation.separation is None or activation.tailored_depth == config.model.depth:
        activation.tailored_depth = None
    parameter = parameter_in_use(activation.name, activation.parameter)
    activation.parameter = "auto" if activation.separation is None or parameter is None else parameter
    # A tailored φ may take another root by itself than φ does.
    if not activation.gpn or (activation.separation is None and activation.root == AUTO_ROOT.get(activation.name)):
        activation.root = "auto"
    config.model = with_plain_width(config.model)
    if config.model.norm == "none":
        config.model.norm_init = ModelConfig().norm_init
    if isinstance(config, TrainConfig) and config.optim.epochs == DATASETS[config.dataset.kind].epochs:
        config.optim.epochs = None
    if isinstance(config, TrainConfig):
        config.optim = canonical_optimiser(config.optim, DATASETS[config.dataset.kind].epochs)
    if isinstance(config, PropagateConfig) and config.propagate.source == "gaussian":
        config.dataset = DatasetConfig()
        config.model.input_init = ModelConfig().input_init
    network = config.network
    if network.path is None:
        measured = isinstance(config, PropagateConfig) and network.kind != "mlp"
        config.network = NetworkConfig(kind=network.kind, shape=network.shape if measured else None)
    if config.dataset.name == config.dataset.kind:
        config.dataset.name = None
    return config


def canonical_optimiser(optim: OptimConfig, usual_epochs: int) -> OptimConfig:
    """Return the optimiser without what means nothing to it: settings of another one, or of another schedule.

    Args:
        optim: of a training.
        usual_epochs: passes over the training split where `epochs` is None.
    """
    default = OptimConfig()
    idle = {"sgd": ["beta1", "beta2"], "adamw": ["momentum"]}.get(optim.kind, [])
    if optim.schedule != "step":
        idle += ["decay_epochs", "decay_rate"]
    elif optim.decay_epochs == (optim.epochs or usual_epochs) / 3:
        idle += ["decay_epochs"]
    return dataclasses.replace(optim, **{name: getattr(default, name) for name in idle})


def differences(config: TrainConfig | PropagateConfig) -> dict[str, Any]:
    """Return the result-changing options, except the seed, that differ from their defaults: {dotted key: value}.

    The parameter of a tailored φ differs if it is not the one that was moved before it could be chosen. Of a function
    from a file, `custom.identified` has said `auto` where it is that one.
    """
    defaults = {key: value for key, _, value in options(type(config)())}
    if config.activation.separation is not None:
        before = parameter_in_use(config.activation.name, None)
        defaults["activation.parameter"] = defaults["activation.parameter"] if before is None else before
    return {
        key: value
        for key, entry, value in options(canonical(config))
        if entry.metadata["result"] and value != defaults[key]
    }


def identity(config: TrainConfig | PropagateConfig) -> str:
    """Return ten hexadecimal digits, equal for configs that give equal results at equal seeds."""
    payload = json.dumps({"schema": SCHEMA_VERSION, **differences(config)}, sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Protocol:
    """The settings that set a run's protocol apart from the paper's; false where there are none.

    Runs are grouped by it, so it is hashable and has an order. It reads `model.depth=50, optim.epochs=1`.
    """

    items: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by dotted key."""
        return dict(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.items)

    def __lt__(self, other: Protocol) -> bool:
        return str(self) < str(other)


def protocol(config: TrainConfig) -> Protocol:
    """Return the settings that set a run's protocol apart from the paper's.

    The activation, batch normalisation and the dataset are not part of it: they are the axes of the paper's tables.
    """
    axes = {"activation.name", "activation.gpn", "activation.fingerprint"}
    axes |= {"dataset.kind", "dataset.name", "dataset.fingerprint", "network.fingerprint"}
    apart = {key: written(value) for key, value in flattened(differences(config)).items()}
    return Protocol(tuple(item for item in apart.items() if item[0] not in axes and item != ("model.norm", "batch")))


def base_name(activation: ActivationConfig) -> str:
    """Return the name of φ, or that of the function in `activation.path`."""
    return activation.name if activation.name != CUSTOM else str(activation.path).rpartition(":")[2]


def network_name(network: NetworkConfig) -> str | None:
    """Return the name of the function in `network.path`; None if there is none."""
    return None if network.path is None else network.path.rpartition(":")[2]


def form(activation: ActivationConfig) -> str:
    """Return the suffix of `activation=`, one of `FORMS`."""
    return ("_gpn" if activation.gpn else "") + ("_d" if activation.separation is not None else "")


def activation_label(config: TrainConfig | PropagateConfig) -> str:
    """Return the name of a run's activation in paths and tables, such as `selu_gpn`, `tanh-bn` or `selu_gpn-cnn`.

    A network of the user's own has the name of its function there.
    """
    function = network_name(config.network)
    if function is not None:
        return function
    kind = "" if config.network.kind == "mlp" else f"-{config.network.kind}"
    norm = "-bn" if config.model.norm == "batch" else ""
    return base_name(config.activation) + form(config.activation) + kind + norm


def run_directory(config: TrainConfig) -> Path:
    """Return `<output_root>/runs/<dataset>/<activation>[-bn]/<identity>-s<seed>`."""
    runs = Path(config.output_root) / "runs"
    return runs / str(config.dataset.name) / activation_label(config) / f"{identity(config)}-s{config.seed}"
