"""The plan of a reproduction: which command lines, what of them is done, what the rest takes. Runs nothing."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bsnn_cli.datasets import fetch
from bsnn_cli.errors import ConfigError, DataError
from bsnn_cli.gpn import custom
from bsnn_cli.measuring import propagation_store
from bsnn_cli.runs import checkpoint, plan
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.runner import identified
from bsnn_cli.settings import arguments, composition
from bsnn_cli.settings.choices import AUTO_ROOT, DATASETS
from bsnn_cli.settings.composition import Composer
from bsnn_cli.settings.config import VERBS, DatasetConfig, ModelConfig, PropagateConfig, TheoryConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.knobs import knobs
from bsnn_cli.settings.profiles import ReproduceConfig, StepConfig
from bsnn_cli.settings.validation import resolve

UNITS = {"train": "run", "propagate": "measurement", "theory": "study"}
"""What a verb makes, for people."""

THEORY_S = 1e-7
"""Time of one unit in one network in `bsnn theory`, roughly; it is a small part of any profile."""

PROBE_WIDTH = 500
"""Networks are timed at this width at most."""

Speeds = dict[str, float]
"""Seconds of a training step, by what it depends on; each is timed once."""


@dataclass(frozen=True)
class Step:
    """A command line of the profile.

    Attributes:
        title: what it is for.
        verb: `train`, `propagate` or `theory`.
        arguments: of the verb, without `-m`.
        configs: what the arguments come to.
        fresh: those of them that no earlier step has.
        absent: why the dataset is not to be had; None if it is, or none is needed.
        to_fetch: the dataset is not here yet.
    """

    title: str
    verb: str
    arguments: list[str]
    configs: list[Any]
    fresh: list[Any]
    absent: str | None = None
    to_fetch: bool = False

    def left(self) -> list[Any]:
        """What is to be done; nothing without data."""
        return [] if self.absent is not None else [config for config in self.fresh if not finished(config)]

    @property
    def command(self) -> str:
        """As a person types it; a list of run directories is cut short."""
        shown = [re.sub("^(run=[^,]*),.*", r"\1,...", argument) for argument in self.arguments]
        return shlex.join(["bsnn", self.verb, *(["-m"] if self.verb != "theory" else []), *shown])


def steps(config: ReproduceConfig, fetching: bool) -> list[Step]:
    """The steps of a profile, checked, with what they come to.

    Args:
        config: of the reproduction.
        fetching: whether data that is not here is fetched now.

    Raises:
        ConfigError: a step cannot be run, with the reasons.
    """
    found: list[Step] = []
    composers = {verb: Composer(verb) for verb in UNITS}
    for entry in config.profile.steps:
        step = _step(config, entry, found, fetching, composers) if entry.wanted else None
        if step is not None and step.configs:
            found += [step, *([_measurement_of(config, step)] if entry.measure else [])]
    return found


def _step(
    config: ReproduceConfig, entry: StepConfig, before: Sequence[Step], fetching: bool, composer: Mapping[str, Composer]
) -> Step:
    verb, *words = [word for word in shlex.split(entry.command) if word != "-m"]
    words += _common(config, verb)
    configs = [whole(each) for each in composition.expand(words, composer[verb])]
    if verb == "train" and config.datasets is not None:
        configs = [each for each in configs if each.dataset.kind in config.datasets]
    if len({each.dataset.kind for each in configs if verb == "train"}) > 1:
        raise ConfigError(f"{entry.command}: trains on several datasets; give each a step of its own")
    seen = {place(each) for step in before for each in step.configs}
    fresh = [each for each in configs if place(each) not in seen]
    step = Step(entry.title, verb, words, configs, fresh)
    if verb == "theory" and any(other.verb == verb and other.configs != configs for other in before):
        raise ConfigError(f"{entry.command}: {place(configs[0])} holds one study, and a step above asks for another")
    if verb != "train" or not step.left():
        return step
    dataset = configs[0].dataset
    for other in before:  # a server that does not answer is asked once
        asked = other.absent is not None or other.to_fetch
        if asked and other.configs[0].dataset == dataset:
            return dataclasses.replace(step, absent=other.absent, to_fetch=other.to_fetch)
    absent = missing(dataset) if fetching else None
    return dataclasses.replace(step, absent=absent, to_fetch=not fetching and not is_here(dataset))


def whole(config: Any) -> Any:
    """A config with everything filled in that its result is found by."""
    if isinstance(config, TrainConfig):
        return identified(resolve(config))
    if isinstance(config, PropagateConfig):
        return dataclasses.replace(config, activation=custom.identified(config.activation))
    return config


def _common(config: ReproduceConfig, verb: str) -> list[str]:
    """What a command line must say of folders and the device."""
    keys = {key: value for key, _, value in knobs(VERBS[verb]())}
    given = {
        "output_root": config.output_root,
        "dataset.root": config.data_root,
        "device": None if config.device == "auto" else config.device,
        "threads": config.threads,
    }
    usual = {"output_root": ReproduceConfig().output_root, "dataset.root": os.environ.get("BSNN_DATA_DIR", "data")}
    return [
        f"{key}={quoted(value)}"
        for key, value in given.items()
        if key in keys and value is not None and value != usual.get(key)
    ]


def _measurement_of(config: ReproduceConfig, training: Step) -> Step:
    """The step that measures the networks that another one trains."""
    runs = [str(run_directory(each)) for each in training.configs]
    configs = [PropagateConfig(run=run, output_root=config.output_root, model=each.model)
               for run, each in zip(runs, training.configs, strict=True)]  # fmt: skip
    words = [of_runs(runs), *_common(config, "propagate")]
    title = f"signals after training: {training.title}"
    return Step(title, "propagate", words, configs, configs, training.absent)


def of_runs(directories: Sequence[str]) -> str:
    """The argument of `propagate` that measures the networks of these runs."""
    return "run=" + ",".join(quoted(directory) for directory in directories)


def quoted(value: Any) -> str:
    """A value as Hydra reads it back."""
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_./:-]+", text) else arguments.quoted(text)


def place(config: Any) -> Path:
    """Where the result of a config is stored."""
    if isinstance(config, TrainConfig):
        return run_directory(config)
    if isinstance(config, PropagateConfig):
        return propagation_store.directory(config) if config.run is None else Path(config.run)
    return Path(config.output_root) / "theory"


def finished(config: Any) -> bool:
    """Whether its result is there. What cannot be measured, as the weights are not kept, counts as finished."""
    if isinstance(config, TrainConfig):
        return plan.finished(config)
    if isinstance(config, PropagateConfig):
        if config.run is None:
            return propagation_store.finished(place(config)) is not None
        done = RunDirectory(Path(config.run)).result() is not None and not (Path(config.run) / "weights.pt").exists()
        wanted = config.run, config.propagate.source
        stored = propagation_store.load_all(config.output_root)
        return done or any((each["trained"], each["source"]) == wanted for each in stored)
    return studied(config)


def studied(config: TheoryConfig) -> bool:
    """Whether `theory.csv` holds what this config asks for, wherever it was when it was made."""
    try:
        stored = OmegaConf.merge(OmegaConf.structured(TheoryConfig), OmegaConf.load(place(config) / "config.yaml"))
    except (OSError, OmegaConfBaseException):
        return False
    there = cast(TheoryConfig, OmegaConf.to_object(stored))
    return dataclasses.replace(there, output_root=config.output_root) == config


def is_here(dataset: DatasetConfig) -> bool:
    """Whether the files of a dataset are there and whole, packed or not."""
    root = Path(dataset.root)
    return all(fetch.is_here(root, archive) for archive in fetch.ARCHIVES.get(dataset.kind, ()))


def missing(dataset: DatasetConfig) -> str | None:
    """Why a dataset is not to be had, after it has been fetched where needed; None if it is here."""
    if is_here(dataset):
        return None
    try:
        with fetch.unpacked(Path(dataset.root), fetch.ARCHIVES[dataset.kind]):
            return None
    except DataError as error:
        return str(error).splitlines()[0].rstrip(":")


def describe(config: ReproduceConfig, found: Sequence[Step], speeds: Speeds) -> str:
    """The plan for people: what each step comes to, what is done of it, which data is absent, what the rest takes."""
    lines, total = [f"profile {config.profile.name}: {config.profile.title}", ""], 0.0
    for number, step in enumerate(found, 1):
        time = sum(seconds(each, speeds) for each in step.left())
        total += time
        takes = f"; about {plan.formatted(time)}" if step.left() else ""
        lines += [f"{number:2}. {step.title}: {state(step)}{takes}", f"    {step.command}"]
    for name in dict.fromkeys(step.configs[0].dataset.kind for step in found if step.verb == "train"):
        of_data = [step for step in found if step.verb == "train" and step.configs[0].dataset.kind == name]
        label = DATASETS[name].label
        absent = next((step.absent for step in of_data if step.absent is not None), None)
        if absent is not None:
            lines.append(f"{label} is absent, and its cells stay dashed: {absent}")
        elif any(step.to_fetch for step in of_data):
            lines.append(f"{label} is not here; it is fetched when this is run")
    return "\n".join([*lines, f"in all about {plan.formatted(total)} on this machine" if total else "all is done"])


def state(step: Step) -> str:
    """Such as "12 runs: 3 finished, 1 to resume, 8 to run"."""
    shared = len(step.configs) - len(step.fresh)
    words = ["shared with a step above"] * shared
    for config in step.fresh:
        resumable = isinstance(config, TrainConfig) and plan.resumable(config)
        todo = "without data" if step.absent is not None else "to resume" if resumable else "to run"
        words.append("finished" if finished(config) else todo)
    many = f"{len(words)} {UNITS[step.verb]}{'s' if len(words) > 1 else ''}"
    return f"{many}: " + ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def seconds(config: Any, speeds: Speeds) -> float:
    """What is left of a config's work takes about this long, on this machine and alone."""
    if isinstance(config, TrainConfig):
        done = checkpoint.epoch(run_directory(config)) if plan.resumable(config) else 0
        return (1 - done / plan.epochs(config)) * plan.steps_equivalent(config) * _step_seconds(config, speeds)
    if isinstance(config, PropagateConfig):
        model, inputs, repeats = config.model, config.propagate.inputs, config.propagate.repeats
        train = TrainConfig(model=ModelConfig(depth=model.depth, width=model.width), device=config.device)
        per_product = _step_seconds(train, speeds) / (6 * train.optim.batch_size)
        drawing = 0 if config.run is not None else 8 * model.width  # of orthogonal matrices, in products of a sample
        return float(per_product * (6 * inputs + drawing) * repeats)
    names = 1 if config.activation is not None else len(AUTO_ROOT)
    widths = 2 * config.largest_width
    units = config.depth * config.width * config.networks * 15 + widths * config.trials * 8
    return float(THEORY_S * names * units)


def _step_seconds(config: TrainConfig, speeds: Speeds) -> float:
    """Of an update; very wide networks are timed narrower, as one may not fit into the memory."""
    width = min(config.model.width, PROBE_WIDTH)
    probe = dataclasses.replace(config, model=dataclasses.replace(config.model, width=width))
    key = f"{probe.model} {config.optim.batch_size} {config.device} {config.precision} {config.threads}"
    if key not in speeds:
        speeds[key] = plan.step_seconds(probe)
    return speeds[key] * (config.model.width / width) ** 2
