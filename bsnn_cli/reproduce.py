"""`bsnn reproduce`: run the command lines of a profile one after the other, then make tables, figures and the report.

Each step runs as a user would type it, in a process of its own. Nothing is remembered but what the commands leave in
their directories, so the same command goes on from wherever it was stopped.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from bsnn_cli.common.machine import choose_device
from bsnn_cli.common.terminal import duration, say
from bsnn_cli.datasets import fetch
from bsnn_cli.errors import BsnnError, ConfigError, DataError, Interrupted
from bsnn_cli.gpn import custom
from bsnn_cli.measuring import propagation_store
from bsnn_cli.networks.memory import training_bytes
from bsnn_cli.report.export import require_another_folder
from bsnn_cli.report.products import make_all
from bsnn_cli.runs import job, plan
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.estimate import Estimator
from bsnn_cli.runs.interruption import StopFlag
from bsnn_cli.runs.runner import identified
from bsnn_cli.settings import arguments
from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.composition import Composer, expand
from bsnn_cli.settings.config import VERBS, PropagateConfig, TheoryConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.options import options
from bsnn_cli.settings.profiles import ReproduceConfig, StepConfig
from bsnn_cli.settings.validation import resolve

UNITS = {"train": "run", "propagate": "measurement", "theory": "study"}
"""The verbs that a step may have, and what the plan calls one result of each."""

FLEET_NETWORKS, FLEET_BYTES = 24, 200e6
"""At most this many networks train as one fleet, and on a CPU in at most this much memory: small networks share the
cost of Python's calls, large ones keep a CPU busy alone, and leave the cache to each other one after the other."""

STUDY_S, MEASUREMENT_S, MULTIPLICATIONS_PER_S = 60.0, 0.5, 8e10
"""Rough times of a study of `bsnn theory`, and of a measurement and its matrix products; trainings take far longer."""

POLL_S = 0.5
ANNOUNCE_S = 600.0
"""The time left is printed at the start of a step, and this often while it runs."""

CHILD = """\
import sys
from bsnn_cli import cli
from bsnn_cli.runs import job
sys.argv[0] = "bsnn"
job.die_with_parent(int(sys.argv.pop(1)))
cli.main()
"""
"""The program of a child process: the command `bsnn`, which stops when its parent dies."""

STOPPED = "stopped; what is done is kept, and the same command goes on from here"

OF_THIS_MACHINE = ("output_root", "data_root", "device", "export")
"""The keys that the page of an export leaves out of the command line that makes it."""


class ReproductionError(BsnnError):
    """Some step has failed."""


@dataclass(frozen=True)
class Step:
    """A command line of the profile, or the measurement of the networks that one has trained.

    Attributes:
        title: says what the step is for.
        verb: `train`, `propagate` or `theory`.
        words: arguments of the verb, without `-m` and without the `run=` of trained networks.
        configs: one for each result that the command line asks for.
        fresh: the configs that no earlier step has.
        absent: whether the dataset cannot be obtained.
        notice: a line about a dataset that is not here, or None.
        measures: whether it measures the networks that the step before has trained.
    """

    title: str
    verb: str
    words: list[str]
    configs: list[Any]
    fresh: list[Any]
    absent: bool = False
    notice: str | None = None
    measures: bool = False

    def left(self) -> list[Any]:
        """Return the configs that are to be run: none if the dataset is absent."""
        return [] if self.absent else [config for config in self.fresh if not finished(config)]

    def command(self, configs: Sequence[Any]) -> list[str]:
        """Return the words after `bsnn`; of the networks that a step before trains, these configs are measured."""
        runs = ["run=" + ",".join(quoted(config.run) for config in configs)] if self.measures else []
        return [self.verb, *(["-m"] if self.verb != "theory" else []), *runs, *self.words]

    def __str__(self) -> str:
        """Return a line such as "accuracy on digits: 12 runs: 3 finished, 1 to resume, 8 to run"."""
        states = ["shared with a step above"] * (len(self.configs) - len(self.fresh))
        for config in self.fresh:
            resumable = isinstance(config, TrainConfig) and plan.resumable(config)
            to_do = "without data" if self.absent else "to resume" if resumable else "to run"
            states.append("finished" if finished(config) else to_do)
        return f"{self.title}: {plan.count(states, list(dict.fromkeys(states)), UNITS[self.verb])}"


def run(config: ReproduceConfig) -> None:
    """Print the plan, run what is left of it, and make tables, figures and the report.

    Raises:
        ConfigError: a step of the profile cannot be run here, or the export would overwrite what it copies.
        ReproductionError: some step has failed; the others are done.
        Interrupted: a signal has stopped a step, which has saved its state.
    """
    require_another_folder(config.export, config.output_root)
    steps = planned_steps(config)
    estimator = Estimator()
    print(f"profile {config.profile.name}: {config.profile.title}\n\n{describe(steps, estimator)}", flush=True)
    if config.dry_run:
        return
    failures = run_steps([step for step in steps if step.left()], estimator)
    typed = [word for word in HydraConfig.get().overrides.task if word.partition("=")[0] not in OF_THIS_MACHINE]
    try:
        print(make_all(config.output_root, config.export, shlex.join(["bsnn", "reproduce", *typed])), flush=True)
    finally:
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise ReproductionError(f"{len(failures)} failed; the same command tries them again")


def planned_steps(config: ReproduceConfig) -> list[Step]:
    """Return the wanted steps of the profile; fetch absent datasets unless this is a dry run.

    Raises:
        ConfigError: a step cannot be run, with the reasons.
    """
    steps: list[Step] = []
    composers = {verb: Composer(verb) for verb in UNITS}
    look = functools.cache(look_for_data)  # a server that does not answer is asked once
    for entry in config.profile.steps:
        step = planned_step(config, entry, steps, composers) if entry.wanted else None
        if step is None:
            continue
        if step.verb == "train" and step.left():
            dataset = step.configs[0].dataset
            absent, notice = look(dataset.kind, dataset.root, not config.dry_run)
            step = replace(step, absent=absent, notice=notice)
        steps.append(step)
        if entry.measure:
            steps.append(measurement_of(config, step))
    return steps


def planned_step(
    config: ReproduceConfig, entry: StepConfig, before: Sequence[Step], composers: dict[str, Composer]
) -> Step | None:
    """Return the step of a profile's entry; None if it trains on a dataset that is not among the wanted ones."""
    verb, *words = [word for word in shlex.split(entry.command) if word != "-m"] or [""]
    if verb not in UNITS:
        raise ConfigError(f"{entry.command}: must begin with one of {', '.join(UNITS)}")
    words += common_words(config, verb, words)
    composed = expand([word for word in words if not word.startswith("hydra")], composers[verb])
    configs = list(map(with_fingerprints, composed))
    seen = {directory(config) for step in before if step.verb == verb for config in step.configs}
    if verb == "train":
        kinds = {config.dataset.kind for config in configs}
        if len(kinds) > 1:
            raise ConfigError(f"{entry.command}: trains on several datasets; give each a step of its own")
        if config.datasets is not None and not kinds <= set(config.datasets):
            return None
        words += fleet_words(configs, words)
    if verb == "theory" and any(step.verb == verb and step.configs != configs for step in before):
        folder = directory(configs[0])
        raise ConfigError(f"{entry.command}: {folder} holds one study, and a step above asks for another")
    return Step(entry.title, verb, words, configs, [config for config in configs if directory(config) not in seen])


def measurement_of(config: ReproduceConfig, training: Step) -> Step:
    """Return the step that measures the signals of the networks that another step trains."""
    configs = [PropagateConfig(run=str(run_directory(trained)), output_root=config.output_root, model=trained.model)
               for trained in training.configs]  # fmt: skip
    title, words = f"signals after training: {training.title}", common_words(config, "propagate", [])
    return Step(title, "propagate", words, configs, configs, training.absent, training.notice, measures=True)


def common_words(config: ReproduceConfig, verb: str, words: Sequence[str]) -> list[str]:
    """Return the folders, the device and the threads as words, where they are not the defaults nor given already."""
    keys = {key for key, _, _ in options(VERBS[verb]())} - {word.partition("=")[0] for word in words}
    values = {
        "output_root": (config.output_root, "outputs"),
        "dataset.root": (config.data_root, os.environ.get("BSNN_DATA_DIR", "data")),
        "device": (config.device, "auto"),
        "threads": (config.threads, None),
    }
    return [f"{key}={quoted(value)}" for key, (value, usual) in values.items() if key in keys and value != usual]


def quoted(value: Any) -> str:
    """Return a value as Hydra reads it back."""
    text = str(value)
    return text if re.fullmatch(r"[A-Za-z0-9_./:-]+", text) else arguments.quoted(text)


def fleet_words(configs: Sequence[TrainConfig], words: Sequence[str]) -> list[str]:
    """Return the words that make fleets of the networks: on a GPU of any, on a CPU of those that are small enough."""
    largest = max(training_bytes(config) for config in configs)
    on_gpu = choose_device(configs[0].device).type == "cuda"
    networks = FLEET_NETWORKS if on_gpu else min(FLEET_NETWORKS, int(FLEET_BYTES // largest))
    if networks < 2 or any(word.startswith("hydra") for word in words):
        return []
    return ["hydra/launcher=fleet", *([f"hydra.launcher.networks={networks}"] if networks < FLEET_NETWORKS else [])]


def look_for_data(kind: str, root: str, fetching: bool) -> tuple[bool, str | None]:
    """Return whether a dataset cannot be obtained, and a notice if it is not here; fetch it if `fetching`."""
    archives, label = fetch.ARCHIVES.get(kind, ()), DATASETS[kind].label
    if all(fetch.is_here(Path(root), archive) for archive in archives):
        return False, None
    if not fetching:
        return False, f"{label} is not here; it is fetched when this is run"
    try:
        with fetch.unpacked(Path(root), archives):
            return False, None
    except DataError as error:
        reason = str(error).splitlines()[0].rstrip(":")
        return True, f"{label} is absent, and its cells stay dashed: {reason}"


def with_fingerprints(config: Any) -> Any:
    """Fill in everything that the directory of a config's result depends on."""
    if isinstance(config, TrainConfig):
        return identified(resolve(config))
    if isinstance(config, PropagateConfig):
        return replace(config, activation=custom.identified(config.activation))
    return config


def directory(config: Any) -> Path:
    """Return where the result of a config is stored; for a measurement of a trained network, that network's run."""
    if isinstance(config, TrainConfig):
        return run_directory(config)
    if isinstance(config, PropagateConfig):
        return propagation_store.directory(config) if config.run is None else Path(config.run)
    return Path(config.output_root) / "theory"


def finished(config: Any) -> bool:
    """Return whether a result is stored. A finished run without weights cannot be measured and counts as measured."""
    if isinstance(config, TrainConfig):
        return plan.finished(config)
    if isinstance(config, TheoryConfig):
        path, asked = directory(config) / "config.yaml", OmegaConf.structured(replace(config, output_root=""))
        return path.exists() and OmegaConf.merge(OmegaConf.load(path), {"output_root": ""}) == asked
    if config.run is None:
        return propagation_store.finished(directory(config)) is not None
    if RunDirectory(Path(config.run)).result() is not None and not has_weights(config):
        return True
    stored = propagation_store.load_all(config.output_root)
    return (config.run, config.propagate.source) in {(summary["trained"], summary["source"]) for summary in stored}


def has_weights(config: PropagateConfig) -> bool:
    """Return whether the trained network that a config measures has been saved."""
    return Path(str(config.run), "weights.pt").exists()


def describe(steps: Sequence[Step], estimator: Estimator) -> str:
    """Return the plan: the state, the time and the command line of each step, absent datasets, and the time in all."""
    lines = []
    for number, step in enumerate(steps, 1):
        takes = f"; about {duration(seconds([step], estimator))}" if step.left() else ""
        words = [re.sub("^(run=[^,]*),.*", r"\1,...", word) for word in step.command(step.configs)]
        lines += [f"{number:2}. {step}{takes}", f"    {shlex.join(['bsnn', *words])}"]
    lines += dict.fromkeys(step.notice for step in steps if step.notice is not None)
    total = seconds(steps, estimator)
    return "\n".join([*lines, f"in all about {duration(total)} on this machine" if total > 0 else "all is done"])


def seconds(steps: Sequence[Step], estimator: Estimator, verb: str | None = None) -> float:
    """Estimate how long steps (of one verb) still take here; `estimator` is for the trainings."""
    total = 0.0
    for config in itertools.chain.from_iterable(step.left() for step in steps if verb in (None, step.verb)):
        if isinstance(config, TrainConfig):
            total += plan.seconds_left(config, estimator).typical
        elif isinstance(config, PropagateConfig):
            model, options = config.model, config.propagate
            products = 6 * options.inputs + (8 * model.width if config.run is None else 0)  # the latter draw weights
            total += MEASUREMENT_S
            total += options.repeats * products * model.depth * model.width**2 / MULTIPLICATIONS_PER_S
        else:
            total += STUDY_S
    return total


def run_steps(steps: Sequence[Step], estimator: Estimator) -> list[str]:
    """Run the steps one after the other; return a line for each that has failed.

    Raises:
        Interrupted: a signal has stopped a step.
    """
    failures: list[str] = []
    planned = {verb: seconds(steps, estimator, verb) for verb in UNITS}
    taken = dict.fromkeys(UNITS, 0.0)

    def announce(number: int, begin: float) -> None:
        """Print which step runs since `begin`, and the time left, corrected by how long each verb has taken so far."""
        running, left = steps[number - 1], 0.0
        for verb in UNITS:
            done = planned[verb] - seconds(steps, estimator, verb)
            took = taken[verb] + (time.monotonic() - begin if verb == running.verb else 0.0)
            left += seconds(steps[number - 1 :], estimator, verb) * (took / done if done > 0 else 1.0)
        say(f"[{number}/{len(steps)}] {running.title}; about {duration(left)} left in all")

    with StopFlag() as flag:
        for number, step in enumerate(steps, 1):
            configs = [config for config in step.left() if not step.measures or has_weights(config)]
            if not configs:
                continue  # no network has been trained, and that step is among the failures already
            begin = time.monotonic()
            code = run_command(step.command(configs), flag, functools.partial(announce, number, begin))
            taken[step.verb] += time.monotonic() - begin
            if flag.received is not None:
                raise Interrupted(flag.received, STOPPED)
            if code != 0:
                how = job.ending(code) if code < 0 else f"exited with code {code}"
                failures.append(f"{step.title}: {how}; its messages above say why")
    return failures


def run_command(words: Sequence[str], flag: StopFlag, announce: Callable[[], object]) -> int:
    """Run `bsnn` with these words in a child process; return its exit code, or minus the number of a signal.

    A stop signal is passed on once, so that the child saves its state. The child has a session of its own, since
    Ctrl-C would reach it twice otherwise, and a second one makes it stop without saving.
    """
    announce()
    announced, passed_on = time.monotonic(), False
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(os.getpid()), *words],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"PYTHONSAFEPATH": "1"},  # no file in a user's folder may stand in for a module
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_S)
            if time.monotonic() - announced >= ANNOUNCE_S:
                announce()
                announced = time.monotonic()
            if flag.received is not None and not passed_on:
                child.send_signal(flag.received)
                passed_on = True
    finally:  # also after a second Ctrl-C, which raises KeyboardInterrupt here
        if child.poll() is None:
            child.terminate()
            child.wait()
