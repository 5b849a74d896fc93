"""From a command line to a config, or to one clear line: in this process, on inputs that nobody would think of."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bsnn_cli.cli import VERBS
from bsnn_cli.errors import ConfigError
from bsnn_cli.report import provenance_table
from bsnn_cli.runs import job, sweep
from bsnn_cli.settings import composition
from bsnn_cli.settings.arguments import groups
from bsnn_cli.settings.choices import OPTIMISERS, TAILORED_BY, tailored_as_usual
from bsnn_cli.settings.config import ActivationConfig, DatasetConfig, OptimConfig, TrainConfig
from bsnn_cli.settings.identity import canonical, differences, identity
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS
from bsnn_cli.settings.options import options
from bsnn_cli.settings.validation import resolve

KEYS = [key for key, _, _ in options(TrainConfig())]
RESULTS = {key for key, entry, _ in options(TrainConfig()) if entry.metadata["result"]}

VALUES = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "null", "true", "x", "1e-3", "[]", "[1,2]", "{a: 1}", "${seed}", "${nothing}", "'", "a=b", "???"]
    ),
    st.text(max_size=8),
)
OVERRIDES = st.one_of(
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "+", "++"]),
        st.sampled_from([*KEYS, "model", "activation", "nothing"]),
        VALUES,
    ),
    st.builds("~{}".format, st.sampled_from([*KEYS, "model", "dataset"])),
    st.text(max_size=12).filter(lambda text: not text.startswith("-")),
)


def compose(verb: str, arguments: list[str]) -> Any:
    """The config that the command line makes, as `bsnn` would have it."""
    made: list[Any] = []

    def act(composed: DictConfig) -> None:
        config = composition.typed(verb, composed)
        made.append(resolve(config) if verb == "train" else config)

    sweep.register()
    try:
        composition.run(verb, arguments, act)
    finally:
        GlobalHydra.instance().clear()
    [config] = made
    return config


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OVERRIDES, max_size=4))
def test_any_command_line_makes_a_config_or_a_clear_line(arguments: list[str]) -> None:
    config = None
    with contextlib.suppress(ConfigError):
        config = compose("train", arguments)
    assert config is None or isinstance(config, TrainConfig)


@pytest.mark.parametrize("verb", ["train", "propagate", "theory", "reproduce"])
def test_the_composer_composes_what_hydra_does(verb: str) -> None:
    lines = [
        ["activation=gelu_gpn", "dataset=cifar10", "model.depth=3", "seed=1"],
        ["activation.root=lower", "activation=tanh_gpn"],  # a choice fills its node, and a value goes on top of it
        ["activation=lrelu_gpn_d", "activation.separation=0.5"],
        ["dataset=cifar10_jpeg", "dataset.name=x"],
        ["optim=adamw", "optim.lr=0.01"],
        ["optim.lr=0.01", "optim.kind=adamw"],
        ["approach=batch_norm"],
        ["approach=batch_norm", "activation=selu"],
        ["activation=selu", "approach=batch_norm"],
        ["approach=null"],
        ["+model.nothing=1"],
        ["~model"],
        ["model.depth=abc"],
        ["activation=seluu"],
        ["activation=null"],
        ["nothing=1"],
        ["model=x"],
        ["profile=smoke", "profile.steps=[{title: mine, command: theory}]"],
    ]

    def act(_: DictConfig) -> None:
        composer = composition.Composer(verb)
        for line in lines:
            try:
                expected = hydra.compose(verb, overrides=line)
            except Exception as error:  # noqa: BLE001 - whatever Hydra makes of it
                with pytest.raises((HydraException, OmegaConfBaseException, type(error))):
                    composer.compose(line)
                continue
            found = composer.compose(line)
            assert OmegaConf.to_container(found) == OmegaConf.to_container(expected), line
            activation = OmegaConf.select(found, "activation")
            assert activation is None or OmegaConf.get_type(activation) is ActivationConfig

    sweep.register()
    try:
        composition.run(verb, [], act)
    finally:
        GlobalHydra.instance().clear()


def test_every_activation_has_three_choices_and_every_kind_of_dataset_one() -> None:
    names = [*NAMED_ACTIVATIONS, "custom"]
    forms = {"": (False, None), "_gpn": (True, None), "_gpn_d": (True, 0.3)}
    expected = {
        f"{name}{form}": ActivationConfig(name=name, gpn=gpn, separation=separation)
        for name in names
        for form, (gpn, separation) in forms.items()
    }

    def act(_: DictConfig) -> None:
        composer = composition.Composer("bench")
        for name, activation in expected.items():
            assert OmegaConf.to_object(composer.compose([f"activation={name}"]).activation) == activation
        for kind in ("mnist", "cifar10", "fashion_mnist", "digits", "folder"):
            dataset = OmegaConf.to_object(composer.compose([f"dataset={kind}"]).dataset)
            assert dataset == DatasetConfig(kind=kind, root=dataset.root)

        for kind in OPTIMISERS:
            optim = OmegaConf.to_object(composition.Composer("train").compose([f"optim={kind}"]).optim)
            assert optim == OptimConfig(kind=kind)

    sweep.register()
    composition.run("train", [], act)
    assert groups()["optim"] == sorted(OPTIMISERS)
    assert groups()["activation"] == sorted(expected)
    assert groups()["dataset"] == ["cifar10", "cifar10_jpeg", "digits", "fashion_mnist", "folder", "mnist"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "argument", ["output_root=[1]", "nothing=1", "=", "format=", "~quiet", "hydra.verbose=[", "a b"]
)
def test_no_verb_breaks_on_a_bad_argument(verb: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=r"\S"):
        compose(verb, [argument])


@pytest.mark.parametrize(
    ("verb", "word", "value"),
    [
        ("figures", "formats=png", ["png"]),
        ("figures", "metric=train_loss,test_loss", ["train_loss", "test_loss"]),
        ("figures", "formats=[png,svg]", ["png", "svg"]),
        ("figures", "formats=null", None),
        ("bench", "networks=1,2", [1, 2]),
        ("propagate", "propagate.histogram=1", [1]),
    ],
)
def test_a_list_needs_no_brackets(verb: str, word: str, value: list[Any] | None) -> None:
    key = word.partition("=")[0]
    assert {name: given for name, _, given in options(compose(verb, [word]))}[key] == value


def other_values(config: TrainConfig, key: str) -> st.SearchStrategy[Any]:
    """Values that an option may have besides the one that it has; those without a list of choices are of its type."""
    [(entry, value)] = [(entry, value) for name, entry, value in options(config) if name == key]
    rule, kind = entry.metadata["rule"], str(entry.type)
    if rule is not None and rule.choices:
        values: st.SearchStrategy[Any] = st.sampled_from(rule.choices)
    elif kind.startswith("bool"):
        values = st.booleans()
    elif kind.startswith("int"):
        values = st.integers(1, 10**6)
    elif kind.startswith("float"):
        values = st.floats(1e-6, 0.9)
    elif kind.startswith("dict"):
        values = st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(), max_size=2)
    elif kind.startswith("list"):
        values = st.lists(st.integers(1, 9), min_size=1, max_size=3)
    else:
        values = st.text("abcdefgh", min_size=1)
    return values.filter(lambda other: other != value)


def changed(config: TrainConfig, key: str, value: Any) -> TrainConfig:
    config = copy.deepcopy(config)
    node, _, name = key.rpartition(".")
    setattr(getattr(config, node) if node else config, name, value)
    return config


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_identity_is_a_function_of_what_changes_results_and_of_nothing_else(data: st.DataObject) -> None:
    config = TrainConfig()
    for key in data.draw(st.lists(st.sampled_from(sorted(RESULTS)), unique=True, max_size=4)):
        config = changed(config, key, data.draw(other_values(config, key)))
    assert identity(config) == identity(copy.deepcopy(config)) == identity(canonical(config))
    assert identity(config) == identity(job.from_plain(dataclasses.asdict(config)))

    key = data.draw(st.sampled_from(KEYS))
    other = changed(config, key, data.draw(other_values(config, key)))
    same_result = differences(config) == differences(other)
    assert (identity(config) == identity(other)) == same_result
    if key not in (*RESULTS, "network.path"):  # the path of a network counts by its fingerprint
        assert same_result
    elif key not in (
        "network.path", "network.kwargs", "network.shape", "network.fingerprint", "model.width", "model.widths",
        "model.taper",
        "activation.root", "activation.tailored_depth", "activation.parameter", "dataset.name", "model.norm_init",
        "optim.epochs", "optim.momentum", "optim.beta1", "optim.beta2", "optim.decay_epochs", "optim.decay_rate",
    ):  # fmt: skip
        # These may spell out a default, or mean nothing beside the rest.
        assert not same_result


@pytest.mark.parametrize("name", sorted(TAILORED_BY))
def test_the_command_of_a_tailored_run_makes_that_run(name: str) -> None:
    """Whatever the parameter meant when it was made."""
    for parameter in (None, "auto", "gain", "share"):
        activation = ActivationConfig(name=name, separation=0.3, parameter=parameter)
        config = resolve(TrainConfig(activation=activation))
        assert identity(canonical(config)) == identity(canonical(canonical(config))) == identity(config)
        told = provenance_table.command(config)
        assert ("activation.parameter" in told) == (not tailored_as_usual(name, parameter)), told
        again = compose("train", told.removeprefix("bsnn train ").split())
        assert identity(again) == identity(config), told
