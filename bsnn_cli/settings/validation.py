"""Whether a config is sound, and what it leaves to be derived. Imports no torch."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings import approaches
from bsnn_cli.settings.choices import AUTO_ROOT, CUSTOM, DATASETS, NORM_GROUPS, UNTAILORED
from bsnn_cli.settings.config import ActivationConfig, ModelConfig, PropagateConfig, TheoryConfig, TrainConfig
from bsnn_cli.settings.knobs import allowed, complaint, knobs


def problems(config: Any) -> list[str]:
    """Everything that is wrong with a config, one line each; empty if it is sound."""
    found = []
    for key, entry, value in knobs(config):
        rule = entry.metadata["rule"]
        if value is not None and rule is not None and not rule.accepts(value):
            found.append(complaint(key, value, allowed(entry), rule.choices))
        elif value == "":
            found.append(f"{key}=: must not be empty")
        elif entry.metadata.get("path") and str(value).startswith("~"):
            found.append(f"{key}={value}: there is no such home directory; ./{value} is a folder of this name")
    activation = getattr(config, "activation", None)
    if activation is not None and activation.name == CUSTOM:
        found += path_problems(activation)
    if activation is not None and activation.separation is not None:
        found += tailoring_problems(activation)
    dataset = getattr(config, "dataset", None)
    if dataset is not None and dataset.name not in (None, dataset.kind):
        if dataset.kind != "folder":
            found.append(f"dataset.name={dataset.name}: only a folder can be named; leave it out for {dataset.kind}")
        elif dataset.name in DATASETS:
            found.append(f"dataset.name={dataset.name}: belongs to another dataset; choose a name of its own")
    if isinstance(config, TrainConfig) and config.model.norm == "batch" and config.optim.batch_size == 1:
        found.append("optim.batch_size=1: must be at least 2 with model.norm=batch; one sample has no statistics")
    if isinstance(config, TrainConfig) and config.logger == "tensorboard" and find_spec("tensorboard") is None:
        found.append('logger=tensorboard: is not installed; pip install "bsnn[tensorboard]"')
    if isinstance(config, PropagateConfig) and (config.run is None or config.weights_digest is not None):
        # With run=, the network is known only once that run has been read.
        beyond = [layer for layer in config.propagate.histogram or [] if not 1 <= layer <= config.model.depth]
        if beyond:
            found.append(f"propagate.histogram={beyond[0]}: must be a layer from 1 to {config.model.depth}")
    if isinstance(config, TheoryConfig) and config.largest_width < config.smallest_width:
        found.append(f"largest_width={config.largest_width}: must be at least smallest_width={config.smallest_width}")
    model = getattr(config, "model", None)
    return found if model is None else found + contradictions(model) + approaches.contradictions(config)


def path_problems(activation: ActivationConfig) -> list[str]:
    """What is wrong with where a custom activation comes from, at most one line."""
    if activation.path is None:
        return [f"activation.path: activation={CUSTOM} needs FILE.py:FUNCTION, such as activation.path=my.py:phi"]
    name = activation.path.rpartition(":")[2]
    if name in (*AUTO_ROOT, CUSTOM) or name.endswith(("_gpn", "_gpn_d")):
        return [
            f"activation.path={activation.path}: a function called {name} would pass for another activation; rename it"
        ]
    return []


def tailoring_problems(activation: ActivationConfig) -> list[str]:
    """What is wrong with asking for a depth-aware form, at most one line."""
    if not activation.gpn:
        return [f"activation.separation={activation.separation}: needs activation.gpn=true, which it is part of"]
    if activation.name in UNTAILORED:
        return [f"activation={activation.name}_gpn_d: {UNTAILORED[activation.name]}"]
    return []


def tailored_to_its_depth(config: Any) -> Any:
    """The config of a verb with the layers that its `activation.separation` counts, where that is left to be derived.

    They are those of the network that is trained or followed; 200 where there is none.
    """
    activation = getattr(config, "activation", None)
    if activation is None or activation.separation is None or activation.tailored_depth is not None:
        return config
    network = getattr(config, "model", config if isinstance(config, TheoryConfig) else ModelConfig())
    return dataclasses.replace(config, activation=dataclasses.replace(activation, tailored_depth=network.depth))


def contradictions(model: ModelConfig) -> list[str]:
    """Combinations of a network's options in which one undoes the other, with the reason; one line each."""
    found = []
    if model.init == "lsuv" and model.weights in ("unit_rows", "spectral_norm"):
        found.append(f"model.init=lsuv: cannot go with model.weights={model.weights}, which undoes it; use free")
    if model.init == "lsuv" and model.norm != "none":
        found.append(f"model.init=lsuv: cannot go with model.norm={model.norm}, which undoes it; use none")
    if model.weights == "orthogonal" and model.init != "orthogonal":
        found.append(f"model.weights=orthogonal: needs model.init=orthogonal, not {model.init}")
    if model.weights == "orthogonal" and (model.norm not in ("none", "batch") or model.residual):
        found.append("model.weights=orthogonal: needs model.norm none or batch, and no residual connections")
    if model.norm == "group" and model.width % NORM_GROUPS:
        found.append(f"model.width={model.width}: must be a multiple of {NORM_GROUPS}, the groups of model.norm=group")
    return found


def check(config: Any) -> None:
    """Raise `ConfigError` with all problems of a config, one line each."""
    found = problems(config)
    if found:
        raise ConfigError("\n".join(found))


def resolve(config: TrainConfig) -> TrainConfig:
    """Check a config and fill in what was left to be derived from the rest.

    Raises:
        ConfigError: with all problems, one line each.
    """
    check(config)
    kind = config.dataset.kind
    epochs = DATASETS[kind].epochs if config.optim.epochs is None else config.optim.epochs
    name = kind if config.dataset.name is None else config.dataset.name
    config = tailored_to_its_depth(config)
    return dataclasses.replace(
        config,
        dataset=dataclasses.replace(config.dataset, name=name),
        optim=dataclasses.replace(config.optim, epochs=epochs),
    )
