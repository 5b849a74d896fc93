"""Sweeps: many runs from one command. A launcher gets the runs that are not finished; a table tells the outcome of all.

A sweep is a set of run directories. What a launcher reports is not relied on: the directories tell, before and after,
which runs are finished and how they ended.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bsnn_cli.common.machine import cores, local_gpus
from bsnn_cli.errors import BsnnError, ConfigError, Interrupted, RunDirectoryError
from bsnn_cli.runs import job, plan, slurm, user_files
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.interruption import StopFlag
from bsnn_cli.runs.job import Manifest
from bsnn_cli.runs.watch import Watch, watching
from bsnn_cli.settings import composition
from bsnn_cli.settings.arguments import quoted
from bsnn_cli.settings.config import DatasetConfig, TrainConfig
from bsnn_cli.settings.identity import run_directory
from bsnn_cli.settings.validation import resolve

SWEEPER = "hydra_plugins.bsnn.RunSweeper"
"""Hydra takes plugins of this name space only; this one is registered, not installed. By `Plugins.register` it would
get the name of its module, and Hydra imports a plugin by that."""

LOCAL = ("joblib", "submitit_local")
"""Launchers whose workers share this machine, and die with this process."""


class SweepError(BsnnError):
    """A sweep has ended, and not all of its runs are done."""


def register() -> None:
    """Make the sweeper known to Hydra, and let the files in `configs/hydra/launcher` extend what the plugins declare.

    Hydra would take a file for an attempt to validate it against the plugin's declaration of the same name.
    """
    Plugins.instance().class_name_to_class[SWEEPER] = RunSweeper
    store = ConfigStore.instance()
    store.store(
        group="hydra/sweeper",
        name="runs",
        node={"_target_": SWEEPER, "max_batch_size": None, "params": None},
        provider="bsnn",
    )
    launchers = store.repo["hydra"]["launcher"]
    for engine in composition.EXTRAS:
        declared = launchers.pop(f"{engine}.yaml", None)
        if declared is not None:
            store.store(group="hydra/launcher", name=f"{engine}{composition.PLUGIN}", node=declared.node)


class RunSweeper(Sweeper):
    """Expand a command line as Hydra's basic sweeper does, launch what is not finished, and print every run's outcome.

    Args:
        max_batch_size: jobs that the launcher is given at a time; None: all.
        params: values of keys that the command line does not give, as it would write them: those of an experiment.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(self, max_batch_size: int | None, params: Mapping[str, Any] | None) -> None:
        self.max_batch_size, self.params = max_batch_size, params

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,  # noqa: ARG002
        config: DictConfig,
    ) -> None:
        """See the base class. The task of each job is `work`, not what the command line does with a single run."""
        config.hydra.sweep.dir = os.path.expanduser(config.hydra.sweep.dir)
        self.config = config
        self.engine = str(config.hydra.runtime.choices["hydra/launcher"])
        if self.engine.startswith("submitit") and "%" in os.path.abspath(config.hydra.sweep.dir):
            raise ConfigError(
                f"hydra/launcher={self.engine}: {config.hydra.sweep.dir} has a %, which stands for numbers of jobs"
                " in the names of its logs; take another folder"
            )
        self.fingerprints: dict[str, str | None] = {}
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=work, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Train all runs of the sweep to their end.

        Raises:
            ConfigError: with the problems of all jobs; then none has run.
            SweepError: some run has failed, or is not finished.
            Interrupted: a signal has stopped the sweep; jobs that were running have saved their state.
        """
        os.environ.update(self.config.hydra.job.env_set)  # Hydra sets it for each job; a config may ask for it before
        jobs = self.expand(arguments)
        configs = [config for config, _ in jobs]
        for config in configs:
            RunDirectory(run_directory(config)).verify(config)
        if any(config.dry_run for config in configs):
            print(plan.preview(configs))
            if self.engine == "submitit_slurm":
                print(self.rehearsal(sum(config.force or not plan.finished(config) for config in configs)))
            return
        print(plan.summary(configs), flush=True)
        unfinished = [(config, overrides) for config, overrides in jobs if config.force or not plan.finished(config)]
        stopped = None
        if unfinished:
            folder, to_run = self.make_folder(), [config for config, _ in unfinished]
            started = functools.partial(job.has_started, folder)
            with watching(Watch(to_run, [*map(run_directory, to_run)], started, afresh=True)):
                stopped = self.launch(unfinished, folder)
        print(plan.outcome(configs))
        left = sum(not plan.finished(config) for config in configs)
        message = f"{len(configs) - left} of {len(configs)} runs are finished; the same command runs what is left"
        if stopped is not None:
            raise Interrupted(stopped, f"stopped; {message}")
        if left:
            raise SweepError(message)

    def expand(self, arguments: list[str]) -> list[tuple[TrainConfig, list[str]]]:
        """Return the runs that the command line asks for, each once, with the overrides that make them.

        Raises:
            ConfigError: with all problems of all jobs, each once.
        """
        arguments = composition.with_parameters(arguments, self.params)
        hydra = self.config.hydra
        settings = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
        composer = composition.Composer("train", hydra.job.config_name, settings)
        jobs: dict[Path, tuple[TrainConfig, list[str]]] = {}
        problems: dict[str, None] = {}
        for combination in composer.combinations(arguments):
            try:
                config = self.prepare(resolve(composition.typed("train", composer.compose(combination))))
                jobs.setdefault(run_directory(config), (config, combination))
            except (HydraException, OmegaConfBaseException) as error:
                problems[composition.explain(error, "train", combination)] = None
            except ConfigError as error:
                problems.update(dict.fromkeys(str(error).splitlines()))
        if problems:
            raise ConfigError("\n".join(problems))
        return list(jobs.values())

    def prepare(self, config: TrainConfig) -> TrainConfig:
        """Check a config against the machine and the data where it depends on them, which takes torch.

        The machine counts only if the launcher trains here: another one may have what this one lacks, such as a GPU.
        """
        special = config.device not in ("auto", "cpu") or config.precision != "fp32"
        if special and self.engine in ("basic", "fleet", *LOCAL):
            from bsnn_cli.runs import runner

            return runner.prepare(config, self.fingerprint)
        tailored = config.activation.separation is not None
        if config.dataset.kind == "folder" or user_files.used(config) or tailored:
            from bsnn_cli.runs import runner

            return runner.identified(config, self.fingerprint)
        return config

    def fingerprint(self, dataset: DatasetConfig) -> str | None:
        """Return `data.fingerprint`; an image folder that several jobs share is read once."""
        from bsnn_cli.datasets import data

        if dataset.root not in self.fingerprints and dataset.kind == "folder":
            self.fingerprints[dataset.root] = data.fingerprint(dataset)
        return self.fingerprints[dataset.root] if dataset.kind == "folder" else None

    def rehearsal(self, jobs: int) -> str:
        """Describe what would be submitted to SLURM for this number of runs."""
        if jobs == 0:
            return "nothing would be submitted to SLURM"
        launcher = OmegaConf.to_container(self.config.hydra.launcher, resolve=True)
        command = ["bsnn", "train", *(word for word in sys.argv[1:] if not word.startswith("dry_run="))]
        return slurm.rehearsal(cast(dict[str, Any], launcher), jobs, self.max_batch_size, command)

    def make_folder(self) -> Path:
        """Make the sweep's own folder, and return it.

        Raises:
            RunDirectoryError: it cannot be written.
        """
        with self.writing():
            folder = unused(Path(self.config.hydra.sweep.dir))
            self.config.hydra.sweep.dir = str(folder)
            OmegaConf.save(self.config, folder / "multirun.yaml")
        return folder

    def launch(self, jobs: Sequence[tuple[TrainConfig, list[str]]], folder: Path) -> int | None:
        """Have the launcher run the jobs; return the number of the signal that has stopped it, or None.

        A launcher on this machine that breaks down is called again as long as that finishes runs.

        Args:
            jobs: runs and the overrides that make them.
            folder: of the sweep.

        Raises:
            RunDirectoryError: the folder cannot be written.
        """
        sweep_dir = f"hydra.sweep.dir={quoted(str(folder))}"  # of all its jobs
        gpus = local_gpus() if self.engine in LOCAL else []
        size = self.max_batch_size
        if self.engine in LOCAL:
            n_jobs = self.config.hydra.launcher.get("n_jobs", size)
            workers = len(gpus) or (cores() if n_jobs in (None, -1) else n_jobs)
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))  # the workers inherit it
            size = workers if self.engine == "submitit_local" else size  # it would start all jobs at the same time
        while True:
            configs = [config for config, _ in jobs]
            manifest = Manifest.of_this_process(folder, gpus, configs, queued=self.engine == "submitit_slurm")
            with self.writing():
                manifest.write()
            with StopFlag(manifest.stop) as flag:
                try:
                    for begin in range(0, len(jobs), size or len(jobs)):
                        batch = [[*overrides, sweep_dir] for _, overrides in jobs[begin : begin + (size or len(jobs))]]
                        self.launcher.launch(batch, initial_job_idx=begin)
                except Exception as error:  # noqa: BLE001 - whatever a launcher raises, the runs tell how far it got
                    print(f"error: hydra/launcher={self.engine}: {type(error).__name__}: {error}", file=sys.stderr)
            left = [(config, overrides) for config, overrides in jobs if plan.untried(config)]
            if flag.received is not None or self.engine not in LOCAL or not 0 < len(left) < len(jobs):
                return flag.received
            jobs = left

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a failure to write the files of the sweep into one line."""
        try:
            yield
        except OSError as error:
            hydra = self.config.hydra
            given = any(override.startswith("hydra.sweep.dir=") for override in hydra.overrides.hydra)
            key = "hydra.sweep.dir" if given else "output_root"
            raise RunDirectoryError(f"{key}: cannot write {hydra.sweep.dir}: {error.strerror}") from error


def unused(folder: Path) -> Path:
    """Make a folder for a sweep: this one, or a numbered one in it, from 2 on, if an earlier sweep has used it.

    Jobs of the earlier sweep may still wait in a queue, and will read its manifest.
    """
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder / str(number)
        candidate.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), (candidate / "orders.json").open("x"):
            return candidate
    raise AssertionError


def work(_composed: DictConfig) -> None:
    """Run one job, in whatever process and on whatever machine the launcher calls this. Never raises."""
    hydra = HydraConfig.get()
    try:
        os.chdir(hydra.runtime.cwd)  # Ray's workers have another working directory
        manifest = Manifest.read(Path(hydra.sweep.dir))
        job.supervise([manifest.configs[hydra.job.num]], manifest)
        if manifest.driver_has_ended():
            os._exit(128 + signal.SIGTERM)  # a worker that waits for other work would never end
    except (BsnnError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
