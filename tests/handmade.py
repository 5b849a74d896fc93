"""Frames of runs made by hand, one row per run, shaped as `runs.load_all` reads them from disk."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from bsnn_cli.results.store import Results
from bsnn_cli.runs.directory import RunResult
from bsnn_cli.settings import identity
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.options import options
from bsnn_cli.settings.validation import resolve


def run(activation: str, dataset: str = "mnist", test: float | None = None, **values: Any) -> dict[str, Any]:
    """One run at the paper's protocol unless told otherwise.

    Args:
        activation: such as `selu_gpn` or `tanh-bn`.
        dataset: a kind, or the name of an image folder.
        test: accuracy in percent, of the training split one more; None = diverged.
        values: fields of the row to set; a dotted key of the configuration is written `optim__lr=0.1`.
    """
    config = TrainConfig()
    config.model.norm = "batch" if activation.endswith("-bn") else "none"
    base = activation.removesuffix("-bn")
    config.activation.name, config.activation.gpn = base.removesuffix("_gpn"), base.endswith("_gpn")
    known = dataset in ("mnist", "cifar10", "fashion_mnist", "digits")
    config.dataset.kind, config.dataset.name = (dataset, None) if known else ("folder", dataset)
    for key in [key for key in values if "__" in key or hasattr(config, key)]:
        *node, field = key.split("__")
        setattr(getattr(config, node[0]) if node else config, field, values.pop(key))
    config = resolve(config)
    fields = {field.name: None for field in dataclasses.fields(RunResult)}
    measured = {
        "status": "diverged" if test is None else "done",
        "test_accuracy": test,
        "train_accuracy": None if test is None else test + 1,
        "root": config.activation.root if config.activation.gpn else None,
        "numerics": 1,
        "directory": str(identity.run_directory(config)),
        "identity": identity.identity(config),
        "protocol": str(identity.protocol(config)),
        "settings": identity.protocol(config),
    }
    return fields | {key: value for key, _, value in options(config)} | measured | values


def unfinished(activation: str, status: str, **values: Any) -> dict[str, Any]:
    """A run without a result."""
    row = run(activation, **values)
    missing = {field.name: None for field in dataclasses.fields(RunResult)}
    return row | missing | {"status": status, "seed": row["seed"]}


def seeds(activation: str, dataset: str, tests: list[float | None], **values: Any) -> list[dict[str, Any]]:
    """Runs with seeds 0, 1, …"""
    return [run(activation, dataset, test, seed=seed, **values) for seed, test in enumerate(tests)]


def frame(*rows: dict[str, Any] | list[dict[str, Any]]) -> pd.DataFrame:
    """All of them as one frame."""
    flat = [row for entry in rows for row in (entry if isinstance(entry, list) else [entry])]
    return pd.DataFrame(flat)


def stored(*rows: dict[str, Any] | list[dict[str, Any]], epochs: pd.DataFrame | None = None) -> Results:
    """The results of a folder that holds these runs, and these rows of their `epochs.csv`."""
    results = Results("outputs")
    results.__dict__["runs"] = frame(*rows)
    if epochs is not None:
        results.__dict__["epochs"] = epochs
    return results
