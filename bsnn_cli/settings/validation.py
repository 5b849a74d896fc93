"""Checks of a config, and values that are derived from others. Imports no torch."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings import approaches
from bsnn_cli.settings.choices import AUTO_ROOT, CUSTOM, DATASETS, NORM_GROUPS, UNTAILORED, metric_parts
from bsnn_cli.settings.config import (
    ActivationConfig,
    ModelConfig,
    PropagateConfig,
    TableConfig,
    TheoryConfig,
    TrainConfig,
)
from bsnn_cli.settings.identity import network_name
from bsnn_cli.settings.options import allowed, complaint, options, written
from bsnn_cli.settings.widths import changing, widths, with_plain_width


def problems(config: Any) -> list[str]:
    """Return all problems of a config, one line each; empty if there are none."""
    lines = []
    for key, entry, value in options(config):
        rule = entry.metadata["rule"]
        if value is not None and rule is not None and not rule.accepts(value):
            lines.append(complaint(key, value, allowed(entry), rule.choices))
        elif value == "":
            lines.append(f"{key}=: must not be empty")
        elif entry.metadata.get("path") and str(value).startswith("~"):
            lines.append(f"{key}={value}: there is no such home directory; ./{value} is a folder of this name")
    activation = getattr(config, "activation", None)
    if activation is not None and activation.name == CUSTOM:
        lines += path_problems(activation)
    if activation is not None and activation.separation is not None:
        lines += tailoring_problems(activation)
    dataset = getattr(config, "dataset", None)
    if dataset is not None and dataset.name not in (None, dataset.kind):
        if dataset.kind != "folder":
            lines.append(f"dataset.name={dataset.name}: only a folder can be named; leave it out for {dataset.kind}")
        elif dataset.name in DATASETS:
            lines.append(f"dataset.name={dataset.name}: belongs to another dataset; choose a name of its own")
    if isinstance(config, TrainConfig) and config.model.norm == "batch" and config.optim.batch_size == 1:
        lines.append("optim.batch_size=1: must be at least 2 with model.norm=batch; one sample has no statistics")
    if isinstance(config, TrainConfig):
        lines += optimiser_problems(config)
    if isinstance(config, TrainConfig) and config.logger == "tensorboard" and find_spec("tensorboard") is None:
        lines.append('logger=tensorboard: is not installed; pip install "bsnn[tensorboard]"')
    if isinstance(config, (PropagateConfig, TrainConfig)):
        lines += network_problems(config)
    if (
        isinstance(config, PropagateConfig)
        and config.network.path is None
        and config.network.kind == "mlp"
        and (config.run is None or config.weights_digest is not None)
    ):
        # With run=, the network is known only once that run has been read.
        beyond = [layer for layer in config.propagate.histogram or [] if not 1 <= layer <= config.model.depth]
        if beyond:
            lines.append(f"propagate.histogram={beyond[0]}: must be a layer from 1 to {config.model.depth}")
    if isinstance(config, TheoryConfig) and config.largest_width < config.smallest_width:
        lines.append(f"largest_width={config.largest_width}: must be at least smallest_width={config.smallest_width}")
    if isinstance(config, TableConfig):
        lines += table_problems(config)
    model = getattr(config, "model", None)
    if model is None:
        return lines
    if not any(line.startswith(("model.depth=", "model.width=", "model.widths=", "model.taper=")) for line in lines):
        lines += width_problems(model)
    return lines + contradictions(model) + approaches.contradictions(config)


def table_problems(config: TableConfig) -> list[str]:
    """Return what a table cannot be asked for; one line each."""
    default = TableConfig()
    lines = []
    if config.kind != default.kind:
        apart = ["rows", "columns", "tune", "metric", "split", "format"]
        apart += ["where"] if config.kind == "approaches" else []
        lines += [
            f"{key}: goes with kind={default.kind}, not with kind={config.kind}"
            for key in apart
            if getattr(config, key) != getattr(default, key)
        ]
    several = config.metric is not None and len(config.metric) > 1
    axes = {} if (config.rows, config.columns) == (None, None) and not several else {"rows": config.rows}
    axes |= {"columns": config.columns} if axes and not several else {}
    lines += [
        f"tune={key}: is the key of the {axis} as well; a table along {key} shows all its values"
        for axis, key in ((axis, given or "activation") for axis, given in axes.items())
        if key in (config.tune or [])
    ]
    for metric in config.metric or []:
        parts = metric_parts(metric)
        if parts is not None and parts[1] is not None and config.split not in (default.split, parts[1]) and not several:
            lines.append(f"split={config.split}: contradicts metric={metric}, which is of split={parts[1]}")
    if several and config.columns is not None:
        lines.append(f"columns={config.columns}: several metrics are the columns of one table; leave it out")
    return lines


def optimiser_problems(config: TrainConfig) -> list[str]:
    """Return the problems of an optimiser and its schedule, one line each."""
    optim, lines = config.optim, []
    if optim.nesterov and optim.kind != "sgd":
        lines.append(f"optim.nesterov=true: belongs to optim=sgd, not to optim={optim.kind}; leave it out")
    elif optim.nesterov and optim.momentum == 0:
        lines.append("optim.nesterov=true: needs optim.momentum above 0")
    spec = DATASETS.get(config.dataset.kind)
    epochs = optim.epochs if optim.epochs is not None or spec is None else spec.epochs
    if epochs is not None and optim.warmup > max(epochs, 0):
        lines.append(f"optim.warmup={optim.warmup}: is longer than training; must be at most optim.epochs={epochs}")
    if epochs is not None and optim.schedule == "step" and (optim.decay_epochs or 0) >= max(epochs, 1):
        lines.append(f"optim.decay_epochs={optim.decay_epochs}: must be below optim.epochs={epochs}, or nothing decays")
    return lines


def path_problems(activation: ActivationConfig) -> list[str]:
    """Return the problems of a custom activation's path, at most one line."""
    if activation.path is None:
        return [f"activation.path: activation={CUSTOM} needs FILE.py:FUNCTION, such as activation.path=my.py:phi"]
    return taken_names(f"activation.path={activation.path}", activation.path.rpartition(":")[2])


def network_problems(config: PropagateConfig | TrainConfig) -> list[str]:
    """Return what cannot go with a network of the user's own or of another kind, or means nothing; one line each."""
    network, default = config.network, type(config)()
    if network.path is None:
        lines = ["network.kwargs: means nothing without network=FILE.py:FUNCTION"] if network.kwargs else []
        if network.shape is not None and network.kind == "mlp":
            lines.append("network.shape: means nothing without network=FILE.py:FUNCTION or network=cnn")
        return [*lines, *convolution_problems(config.model)] if network.kind == "cnn" else lines
    names = ["activation", "model", "approach"]
    if isinstance(config, PropagateConfig) and config.weights_digest is None:  # else the network is that of the run
        names.append("run")
    beside = [name for name in names if getattr(config, name) != getattr(default, name)]
    if "approach" in beside:  # which has set the others
        beside = ["approach"]
    lines = [
        f"{name}: network={network.path} brings its own network; leave out what you have said about {name}"
        for name in beside
    ]
    if network.kind != default.network.kind:
        lines.append(f"network.kind={network.kind}: contradicts network.path={network.path}; give one of them")
    if isinstance(config, TrainConfig):
        lines += taken_names(f"network={network.path}", str(network_name(network)))
        if network.shape is not None:
            lines.append("network.shape: is that of the dataset's images in training; leave it out")
    return lines


def convolution_problems(model: ModelConfig) -> list[str]:
    """Return the options that a convolutional network does not have; one line each."""
    there_are: dict[str, tuple[str, ...]] = {
        "norm": ("none", "batch"),
        "weights": ("unit_rows", "free"),
        "init": ("orthogonal", "lecun_normal", "glorot_uniform", "he_normal"),
    }
    lines = [
        f"model.{key}={getattr(model, key)}: does not go with network=cnn; use one of {', '.join(values)}"
        for key, values in there_are.items()
        if getattr(model, key) not in values
    ]
    return lines + [
        f"model.{key}={written(getattr(model, key))}: does not go with network=cnn, whose layers have one width"
        for key in ("widths", "taper")
        if getattr(model, key) is not None
    ]


def taken_names(key: str, function: str) -> list[str]:
    """Return a line if a function has the name of an activation, as which it would pass in paths and tables."""
    if function in (*AUTO_ROOT, CUSTOM) or function.endswith(("_gpn", "_gpn_d")):
        return [f"{key}: a function called {function} would pass for another activation; rename it"]
    return []


def tailoring_problems(activation: ActivationConfig) -> list[str]:
    """Return the problems of a depth-aware form, at most one line."""
    if not activation.gpn:
        return [f"activation.separation={activation.separation}: needs activation.gpn=true, which it is part of"]
    if activation.name in UNTAILORED:
        return [f"activation={activation.name}_gpn_d: {UNTAILORED[activation.name]}"]
    return []


def tailored_to_its_depth(config: Any) -> Any:
    """Fill in the layers that a verb's `activation.separation` counts, if they are left to be derived.

    They are those of the network that is trained or measured; 200 if there is none.
    """
    activation = getattr(config, "activation", None)
    if activation is None or activation.separation is None or activation.tailored_depth is not None:
        return config
    network = getattr(config, "model", config if isinstance(config, TheoryConfig) else ModelConfig())
    return dataclasses.replace(config, activation=dataclasses.replace(activation, tailored_depth=network.depth))


def derived(config: Any) -> Any:
    """Fill in the values of a checked config that follow from others: widths of layers, and what is tailored to depth.

    Datasets have values of their own to be derived, which `resolve` fills in.
    """
    model = getattr(config, "model", None)
    if model is not None:
        config = dataclasses.replace(config, model=with_plain_width(model))
    return tailored_to_its_depth(config)


def contradictions(model: ModelConfig) -> list[str]:
    """Return the network's options that contradict each other, with the reason; one line each."""
    lines = []
    if model.init == "lsuv" and model.weights in ("unit_rows", "spectral_norm"):
        lines.append(f"model.init=lsuv: cannot go with model.weights={model.weights}, which undoes it; use free")
    if model.init == "lsuv" and model.norm != "none":
        lines.append(f"model.init=lsuv: cannot go with model.norm={model.norm}, which undoes it; use none")
    if model.weights == "orthogonal" and model.init != "orthogonal":
        lines.append(f"model.weights=orthogonal: needs model.init=orthogonal, not {model.init}")
    if model.weights == "orthogonal" and (model.norm not in ("none", "batch") or model.residual):
        lines.append("model.weights=orthogonal: needs model.norm none or batch, and no residual connections")
    return lines


def width_problems(model: ModelConfig) -> list[str]:
    """Return what is wrong with the widths of layers, or does not go with them; one line each.

    Args:
        model: whose depth, width, widths and taper are each allowed by themselves.
    """
    said = f"model.widths={written(model.widths)}" if model.widths is not None else f"model.taper={model.taper}"
    if model.widths is not None:
        count, layers = len(model.widths), model.depth
        if model.taper is not None:
            return [f"{said}: says all widths, and model.taper={model.taper} as well; leave one of them out"]
        if count != layers + 1:
            remedy = f"; give them all, or model.depth={count - 1}" if count > 1 else "; give them all"
            return [f"{said}: has {count} of the {layers + 1} widths that model.depth={layers} needs{remedy}"]
        if model.width not in (ModelConfig().width, model.widths[0]):
            return [f"model.width={model.width}: contradicts {said}, which begins with another one; leave it out"]
    sizes, lines = widths(model), []
    if min(sizes) < 1:
        return [f"{said}: leaves no unit of model.width={model.width}; must be at least {1 / model.width:.2g}"]
    if changing(model) and model.weights == "orthogonal":
        lines.append(f"model.weights=orthogonal: needs square matrices, not {said}; use unit_rows")
    if changing(model) and model.residual:
        lines.append(f"model.residual=true: adds signals of one width, not of {said}; leave it out")
    uneven = [width for width in sizes if width % NORM_GROUPS]
    if model.norm == "group" and uneven:
        multiple = f"must be a multiple of {NORM_GROUPS}, the groups of model.norm=group"
        lines.append(
            f"{said}: each width {multiple}, not {uneven[0]}"
            if changing(model)
            else f"model.width={uneven[0]}: {multiple}"
        )
    return lines


def check(config: Any) -> None:
    """Raise `ConfigError` with all problems of a config, one line each."""
    lines = problems(config)
    if lines:
        raise ConfigError("\n".join(lines))


def resolve(config: TrainConfig) -> TrainConfig:
    """Check a config and fill in what is derived from other values.

    Raises:
        ConfigError: with all problems, one line each.
    """
    check(config)
    kind = config.dataset.kind
    epochs = DATASETS[kind].epochs if config.optim.epochs is None else config.optim.epochs
    name = kind if config.dataset.name is None else config.dataset.name
    config = derived(config)
    return dataclasses.replace(
        config,
        dataset=dataclasses.replace(config.dataset, name=name),
        optim=dataclasses.replace(config.optim, epochs=epochs),
    )
