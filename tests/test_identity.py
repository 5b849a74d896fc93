from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bsnn_cli.runs.directory import read_config
from bsnn_cli.settings.choices import DATASETS, TAILORED_BY, parameter_in_use
from bsnn_cli.settings.config import (
    ActivationConfig,
    CheckpointConfig,
    DatasetConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from bsnn_cli.settings.identity import differences, identity, protocol, run_directory
from bsnn_cli.settings.options import options
from bsnn_cli.settings.validation import resolve

RECORDED = {
    "c9dca30088": TrainConfig(),
    "973849fc1a": TrainConfig(activation=ActivationConfig(name="tanh", gpn=False)),
    "4da5559b03": TrainConfig(
        activation=ActivationConfig(name="gelu", root="upper"),
        dataset=DatasetConfig(kind="digits"),
        model=ModelConfig(depth=50, norm="batch"),
        optim=OptimConfig(epochs=1, lr=0.01),
    ),
    "74da726f80": TrainConfig(activation=ActivationConfig(name="lrelu", separation=0.3)),
}
"""Identities may never change: run directories of earlier versions must be found again."""


@pytest.mark.parametrize("recorded", RECORDED)
def test_recorded_identities_never_change(recorded: str) -> None:
    assert identity(resolve(RECORDED[recorded])) == recorded


ANOTHER_VALUE: dict[str, Any] = {
    "activation.name": "tanh",
    "activation.gpn": False,
    "activation.root": "lower",
    "activation.separation": 0.3,
    "activation.fingerprint": "abc",
    "dataset.kind": "digits",
    "dataset.scaling": "thin_shell",
    "dataset.validation": 0.1,
    "dataset.fingerprint": "abc",
    "model.depth": 10,
    "model.width": 10,
    "model.widths": [500, 400],
    "model.taper": 0.5,
    "model.norm": "batch",
    "model.weights": "free",
    "model.init": "he_normal",
    "model.residual": True,
    "model.input_init": "norm_preserving",
    "optim.lr": 1e-3,
    "optim.momentum": 0.9,
    "optim.kind": "adamw",
    "network.kind": "cnn",
    "optim.nesterov": True,
    "optim.weight_decay": 0.1,
    "optim.clip": 1.0,
    "optim.schedule": "cosine",
    "optim.warmup": 2.0,
    "optim.batch_size": 32,
    "optim.epochs": 7,
    "precision": "tf32",
}
WITHOUT_ANOTHER_VALUE = {"dataset.name", "activation.tailored_depth", "activation.parameter", "model.norm_init"}
WITHOUT_ANOTHER_VALUE |= {"network.kwargs", "network.shape", "network.fingerprint"}
"""Only folders have a name of their own, only a separation counts layers or has a parameter, only a normalisation has
gains (all tested below), only a user's own network has arguments (tested with these networks)."""

OF_OPTIMISERS = {"optim.beta1": 0.8, "optim.beta2": 0.9, "optim.decay_epochs": 3.0, "optim.decay_rate": 0.5}
"""They mean nothing beside the default optimiser and schedule (tested below)."""


def with_value(key: str, value: Any) -> TrainConfig:
    config = TrainConfig()
    node, _, name = key.rpartition(".")
    setattr(getattr(config, node) if node else config, name, value)
    return config


RESULT_KEYS = {key for key, entry, _ in options(TrainConfig()) if entry.metadata["result"]}


@pytest.mark.parametrize("key", sorted(RESULT_KEYS - WITHOUT_ANOTHER_VALUE - OF_OPTIMISERS.keys()))
def test_every_result_changing_option_changes_the_identity(key: str) -> None:
    assert identity(with_value(key, ANOTHER_VALUE[key])) != identity(TrainConfig())


def test_settings_count_where_the_optimiser_and_the_schedule_have_them() -> None:
    def made(**values: Any) -> str:
        return identity(TrainConfig(optim=OptimConfig(**values)))

    for key, value in OF_OPTIMISERS.items():
        setting = {key.partition(".")[2]: value}
        assert made(**setting) == made()
        assert (made(kind="adamw", **setting) != made(kind="adamw")) == ("beta" in key)
        assert (made(schedule="step", **setting) != made(schedule="step")) == ("decay" in key)
        assert made(schedule="cosine", **setting) == made(schedule="cosine")
    assert made(kind="adamw", momentum=0.9) == made(kind="adamw")
    assert made(schedule="step", epochs=6, decay_epochs=2.0) == made(schedule="step", epochs=6)
    assert made(schedule="step", decay_epochs=50 / 3) == made(schedule="step", epochs=50)


def test_what_changes_no_result_changes_no_identity() -> None:
    other = TrainConfig(
        eval=EvalConfig(train_every=3),
        checkpoint=CheckpointConfig(every_s=1, keep="all"),
        dataset=DatasetConfig(root="elsewhere"),
        seed=7,
        device="cpu",
        threads=1,
        output_root="there",
        force=True,
        wait=True,
        progress=False,
    )
    assert identity(other) == identity(TrainConfig())


@pytest.mark.parametrize("kind", [kind for kind in DATASETS if kind != "folder"])
def test_spelling_out_a_default_changes_nothing(kind: str) -> None:
    short = TrainConfig(dataset=DatasetConfig(kind=kind))
    long = TrainConfig(
        dataset=DatasetConfig(kind=kind, name=kind),
        activation=ActivationConfig(root="upper"),
        optim=OptimConfig(epochs=DATASETS[kind].epochs),
    )
    assert identity(short) == identity(long) == identity(resolve(short))
    assert differences(short) == differences(resolve(long))


def test_the_start_of_gains_counts_where_there_are_gains() -> None:
    def started(norm: str, norm_init: str) -> str:
        return identity(TrainConfig(model=ModelConfig(norm=norm, norm_init=norm_init)))

    assert started("none", "uniform") == identity(TrainConfig())
    for norm in ("batch", "layer", "group"):
        assert started(norm, "uniform") != started(norm, "ones")


def test_the_depth_an_activation_is_tailored_to_counts_where_it_is_not_the_networks() -> None:
    def tailored(separation: float | None, layers: int | None, depth: int = 200) -> TrainConfig:
        activation = ActivationConfig(separation=separation, tailored_depth=layers)
        return TrainConfig(activation=activation, model=ModelConfig(depth=depth))

    assert identity(tailored(None, 50)) == identity(tailored(None, None))
    assert identity(tailored(0.3, 200)) == identity(tailored(0.3, None)) == identity(resolve(tailored(0.3, None)))
    assert identity(tailored(0.3, 50)) != identity(tailored(0.3, None))
    assert resolve(tailored(0.3, None, depth=50)).activation.tailored_depth == 50


def test_the_parameter_counts_where_it_is_not_what_was_moved_before_it_could_be_chosen() -> None:
    def tailored(name: str, parameter: str | None, separation: float | None = 0.3) -> TrainConfig:
        return TrainConfig(activation=ActivationConfig(name=name, separation=separation, parameter=parameter))

    recorded = {"gelu": "6fab57f834", "lrelu": "74da726f80", "selu": "2c72db98f2", "elu": "201eb07e9a"}
    for name, before in recorded.items():
        usual = "share" if name in ("lrelu", "selu") else "gain"
        assert identity(tailored(name, None)) == identity(tailored(name, usual)) == before
        for config in (tailored(name, "auto"), tailored(name, TAILORED_BY[name])):
            assert (identity(config) == before) == (TAILORED_BY[name] == usual) == (name != "gelu")
            assert identity(resolve(config)) == identity(config)
    assert identity(tailored("tanh", "share")) != identity(tailored("tanh", "auto"))
    assert identity(tailored("gelu", "share", None)) == identity(tailored("gelu", "auto", None))


@pytest.mark.parametrize(("name", "meant"), [("gelu", "gain"), ("softplus", "gain"), ("selu", "share")])
def test_a_stored_config_without_a_parameter_means_what_it_meant_then(name: str, meant: str, tmp_path: Path) -> None:
    config = resolve(TrainConfig(activation=ActivationConfig(name=name, separation=0.3)))
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert read_config(path).activation == config.activation
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "parameter:" not in line))
    then = read_config(path)
    assert parameter_in_use(name, then.activation.parameter) == meant
    assert (identity(then) == identity(config)) == (name == "selu")
    assert run_directory(then).parent == run_directory(config).parent
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(then)))
    assert read_config(path).activation == then.activation


def test_a_root_means_nothing_without_gpn() -> None:
    plain = TrainConfig(activation=ActivationConfig(name="relu", gpn=False))
    assert identity(plain) == identity(TrainConfig(activation=ActivationConfig(name="relu", gpn=False, root="lower")))


def test_protocol_names_what_differs_but_not_the_axes_of_the_table() -> None:
    assert str(protocol(resolve(TrainConfig()))) == ""
    axes = TrainConfig(activation=ActivationConfig(name="relu", gpn=False), dataset=DatasetConfig(kind="cifar10"))
    axes.model.norm = "batch"
    assert str(protocol(resolve(axes))) == ""
    assert str(protocol(resolve(TrainConfig(model=ModelConfig(norm="layer"))))) == "model.norm=layer"
    small = TrainConfig(model=ModelConfig(depth=10), optim=OptimConfig(epochs=1))
    assert str(protocol(resolve(small))) == "model.depth=10, optim.epochs=1"


def test_directory_follows_the_contract() -> None:
    config = resolve(TrainConfig(activation=ActivationConfig(name="tanh"), seed=3, output_root="out"))
    assert run_directory(config) == Path("out/runs/mnist/tanh_gpn") / f"{identity(config)}-s3"
    batch = dataclasses.replace(config, model=ModelConfig(norm="batch"))
    assert run_directory(batch).parent == Path("out/runs/mnist/tanh_gpn-bn")


def test_two_folders_differ_by_content_and_share_no_directory() -> None:
    def folder(**values: str) -> TrainConfig:
        return resolve(TrainConfig(dataset=DatasetConfig(kind="folder", **values)))

    one, moved, other = (
        folder(root="a", fingerprint="1"),
        folder(root="b", fingerprint="1"),
        folder(root="a", fingerprint="2"),
    )
    assert identity(one) == identity(moved) != identity(other)
    named = folder(root="a", fingerprint="1", name="cifar10_jpeg")
    assert run_directory(named).parts[2] == "cifar10_jpeg"
