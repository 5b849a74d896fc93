"""`bsnn reproduce`: everything that a profile asks for and that is not there yet, then tables, figures and the report.

Nothing is remembered but what trainings and measurements leave in their directories, so the same command goes on from
wherever it was stopped. Each job has a process of its own; what ends it leaves the others alone.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bsnn_cli.common.machine import available_bytes, choose_device
from bsnn_cli.common.terminal import say
from bsnn_cli.errors import BsnnError, Interrupted
from bsnn_cli.report.export import require_another_folder
from bsnn_cli.report.products import make_all
from bsnn_cli.reproducing import agenda
from bsnn_cli.reproducing.agenda import Speeds, Step
from bsnn_cli.runs import fleet_launcher, job, plan
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.interruption import StopFlag
from bsnn_cli.runs.job import Manifest
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label, run_directory
from bsnn_cli.settings.knobs import knobs
from bsnn_cli.settings.profiles import ProfileConfig, ReproduceConfig

NETWORKS = 24
"""In one fleet on a GPU; more gain nothing there."""

TOGETHER_BYTES = 200e6
"""Of the networks that a CPU trains as one fleet. Small ones share the cost of Python's calls; large ones keep a CPU
busy alone, and one after the other they end sooner, fail alone, and leave the cache to each."""

QUIET_S = 600.0
"""Where standard error is no terminal, a job at work is mentioned this often."""

CHILD = """\
import sys
from bsnn_cli import cli
from bsnn_cli.runs import job
sys.argv[0] = "bsnn"
job.die_with_parent(int(sys.argv.pop(1)))
cli.main()
"""
"""The program of a child that measures."""


class ReproductionError(BsnnError):
    """Something that was to be done is not done."""


@dataclass(frozen=True)
class Job:
    """What one child process does: a fleet of trainings, or one command line of measurements.

    Attributes:
        step: that it belongs to.
        configs: what is not finished yet.
        seconds: that it takes, estimated.
    """

    step: Step
    configs: list[Any]
    seconds: float

    @property
    def name(self) -> str:
        """For people."""
        if self.step.verb != "train":
            return self.step.title
        first, *others = self.configs
        return f"{self.step.title}: {self.label(first)}" + (f" and {len(others)} more" if others else "")

    def label(self, config: TrainConfig) -> str:
        """Of one run: activation, what else the step varies, seed."""
        values = {key: value for key, _, value in knobs(config)}
        apart = [f"{key}={values[key]}" for key in plan.varied(self.step.configs)]
        return ", ".join([activation_label(config), *apart, f"seed {config.seed}"])


def run(config: ReproduceConfig) -> None:
    """Print the plan, do what is left of it, and make tables, figures and the report.

    Raises:
        ConfigError: a step of the profile cannot be run here, or the export would overwrite what it copies.
        ReproductionError: something has failed; the rest is done.
        Interrupted: a signal has stopped it; what was at work has saved its state.
    """
    require_another_folder(config.export, config.output_root)
    speeds: Speeds = {}
    steps = agenda.steps(config, fetching=not config.dry_run)
    print(agenda.describe(config, steps, speeds), flush=True)
    if config.dry_run:
        return
    failures = work(config, list(jobs(config, steps, speeds)))
    try:
        print(make_all(config.output_root, config.export, command_line(config)), flush=True)
    finally:
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise ReproductionError(f"{len(failures)} failed; the same command tries them again")


def jobs(config: ReproduceConfig, steps: Sequence[Step], speeds: Speeds) -> Iterator[Job]:
    """What is left, in the order of the steps."""
    on_gpu = choose_device(config.device).type == "cuda"
    memory = fleet_launcher.MEMORY_SHARE * available_bytes() if on_gpu else TOGETHER_BYTES
    for step in steps:
        left = step.left()
        parts = fleet_launcher.fleets(left, NETWORKS, memory) if step.verb == "train" else [left] if left else []
        for part in parts:
            yield Job(step, part, sum(agenda.seconds(each, speeds) for each in part))


def work(config: ReproduceConfig, todo: Sequence[Job]) -> list[str]:
    """Do all jobs, one after the other; returns what has failed, a line each."""
    if not todo:
        return []
    folder = Path(config.output_root) / "sweeps" / datetime.datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    folder.mkdir(parents=True)
    orders = Manifest.of_this_process(
        folder, [], [each for one in todo for each in one.configs if one.step.verb == "train"]
    )
    failures: list[str] = []
    outlook = Outlook(todo)
    with StopFlag(orders.stop) as flag:
        for number, one in enumerate(todo, 1):
            outlook.begin(number, one)
            try:
                if one.step.verb == "train":
                    job.supervise(one.configs, orders, outlook.tick)
                elif any(measurable(each) for each in one.configs):
                    measure(one.step, orders, flag, folder / f"{number}.txt", outlook.tick)
            except OSError as error:
                failures.append(f"{one.name}: {error}")
            if flag.received is not None:
                break
            failures += list(problems(one, folder / f"{number}.txt"))
            outlook.end()
    outlook.close()
    if flag.received is not None:
        raise Interrupted(flag.received, "stopped; what is done is kept, and the same command goes on from here")
    return failures


def measure(step: Step, orders: Manifest, flag: StopFlag, log: Path, tick: Callable[[], object]) -> None:
    """Run a command line other than a training in a child process, which ends with this one."""
    arguments = [step.verb, *(["-m"] if step.verb == "propagate" else []), *of_what_is_there(step)]
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )
        job.watch(child, orders, flag, tick)


def measurable(config: Any) -> bool:
    """Whether it is a training, a study or a fresh network, or one whose weights are there."""
    return getattr(config, "run", None) is None or (Path(config.run) / "weights.pt").exists()


def of_what_is_there(step: Step) -> list[str]:
    """The arguments of a step; of trained networks only those that are measurable."""
    first, *others = step.arguments
    if step.verb != "propagate" or not first.startswith("run="):
        return step.arguments
    return [agenda.of_runs([each.run for each in step.left() if measurable(each)]), *others]


def problems(one: Job, log: Path) -> Iterator[str]:
    """What a job has left undone, and where to read why."""
    for config in one.configs:
        if agenda.finished(config) or not measurable(config):  # why a network is not trained is told above
            continue
        if isinstance(config, TrainConfig):
            directory = RunDirectory(run_directory(config))
            why = plan.reason(directory.path) if directory.status() == "failed" else directory.status()
            yield f"{one.step.title}: {one.label(config)}: {why}; {directory.path}"
        else:
            yield f"{one.step.title}: see {log}"
            return


class Outlook:
    """What is at work and how long the whole plan still takes: estimates, corrected by the jobs that have ended.

    Args:
        todo: all jobs.
    """

    def __init__(self, todo: Sequence[Job]) -> None:
        self._todo = list(todo)
        self._number = 0
        self._began = time.monotonic()
        self._shown = self._began
        self._spent: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        """(taken, estimated) seconds of the jobs of a verb that have ended."""
        self._line = tqdm(bar_format="{desc}", disable=None)

    def begin(self, number: int, one: Job) -> None:
        """Job `number`, counted from 1, starts."""
        self._number, self._began = number, time.monotonic()
        self._shown = self._began
        say(f"[{number}/{len(self._todo)}] {one.name}; {self.left()}")

    def end(self) -> None:
        """The job has ended."""
        one = self._todo[self._number - 1]
        taken, estimated = self._spent[one.step.verb]
        self._spent[one.step.verb] = (taken + time.monotonic() - self._began, estimated + one.seconds)
        if one.step.verb == "train":
            for config in one.configs:
                result = RunDirectory(run_directory(config)).result()
                if result is not None and result.test_accuracy is not None:
                    say(f"  {one.label(config)}: test {result.test_accuracy:.2f} %")

    def seconds(self) -> float:
        """Left for the whole plan."""
        total = 0.0
        for place, one in enumerate(self._todo[self._number - 1 :]):
            taken, estimated = self._spent[one.step.verb]
            expected = one.seconds * (taken / estimated if estimated > 0 else 1.0)
            total += expected if place > 0 else max(0.0, expected - (time.monotonic() - self._began))
        return total

    def left(self) -> str:
        """The same in words."""
        return f"about {plan.formatted(self.seconds())} left in all"

    def tick(self) -> None:
        """Refresh the line of a terminal every second; elsewhere say now and then that work goes on."""
        now = time.monotonic()
        if now - self._shown < (QUIET_S if self._line.disable else 1.0):
            return
        self._shown = now
        text = f"[{self._number}/{len(self._todo)}] at work for {plan.formatted(now - self._began)}; {self.left()}"
        if self._line.disable:
            say(text)
        else:
            self._line.set_description_str(text)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._line.close()


def command_line(config: ReproduceConfig) -> str:
    """The command line that a reader repeats."""
    words = [f"profile={config.profile.name}"]
    if config.profile.activations != ProfileConfig().activations:
        words.append(f"'profile.activations=\"{config.profile.activations}\"'")
    for name in ("seeds", "batch_norm", "datasets", "extras", "threads"):
        value = getattr(config, name)
        text = f"[{','.join(value)}]" if isinstance(value, list) else str(value).lower()
        words += [f"{name}={text}"] if value != getattr(ReproduceConfig(), name) else []
    return " ".join(["bsnn reproduce", *words])
