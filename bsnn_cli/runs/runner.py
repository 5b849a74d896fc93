"""Train a fleet of runs from configs to results: lock, resume, train, save, stop when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bsnn_cli.common import provenance
from bsnn_cli.common.machine import choose_device
from bsnn_cli.common.terminal import say
from bsnn_cli.datasets import data
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.errors import BsnnError, CheckpointError, ConfigError, Interrupted, StorageError
from bsnn_cli.gpn import custom
from bsnn_cli.networks import building, memory, network_file
from bsnn_cli.networks.optimiser import Optimiser, is_buffer
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.networks.training import Position, Tick, Trainer, steps_per_epoch, train
from bsnn_cli.runs import checkpoint, progress, user_files
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.runs.interruption import StopFlag
from bsnn_cli.runs.tensorboard import EventLog
from bsnn_cli.settings.config import DatasetConfig, TrainConfig
from bsnn_cli.settings.identity import base_name, identity, network_name, run_directory

GPU_SHARE = 0.8
"""Networks may take this share of the free memory of a GPU; temporaries and evaluation take some as well."""

SAVING_SHARE = 0.02
"""Saving may take this share of the time; a slow disk stretches the interval between checkpoints."""


@dataclass
class Run:
    """A run that is not finished.

    Attributes:
        checkpoint: the newest one, or None if there is none; `begin` empties it.
    """

    config: TrainConfig
    directory: RunDirectory
    checkpoint: dict[str, Any] | None = None

    def load(self) -> None:
        """Read the newest checkpoint.

        Raises:
            CheckpointError: there are checkpoints, and none of them can be read.
        """
        self.checkpoint, warnings = checkpoint.newest(self.directory.path)
        for warning in warnings:
            say(f"warning: {warning}; going on from the checkpoint before it")


Fingerprint = Callable[[DatasetConfig], "str | None"]
"""A function like `data.fingerprint`."""


def prepare(config: TrainConfig, fingerprint: Fingerprint = data.fingerprint) -> TrainConfig:
    """Fill in what depends on the machine or the data, and refuse what cannot run here.

    Raises:
        ConfigError: the device is absent, or does not have the precision; or as `identified`.
        DataError: as `identified`.
    """
    device = choose_device(config.device)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision=tf32: needs a CUDA device, and this run is on {device}; use fp32")
    if config.precision == "tf32" and config.model.weights == "orthogonal":
        raise ConfigError("precision=tf32: has three digits, and model.weights=orthogonal keeps five; use fp32")
    return identified(config, fingerprint)


def identified(config: TrainConfig, fingerprint: Fingerprint = data.fingerprint) -> TrainConfig:
    """Fill in the fingerprints of the user's files that a run reads.

    Raises:
        ConfigError: a custom activation or network cannot be read, is none, or is not the one that the config was made
            for.
        DataError: an image folder cannot be read.
    """
    dataset = dataclasses.replace(config.dataset, fingerprint=fingerprint(config.dataset))
    config = dataclasses.replace(config, dataset=dataset)
    text = network_file.source(config.network)
    if text is not None:
        return dataclasses.replace(config, network=network_file.identified(config.network, text))
    return dataclasses.replace(config, activation=custom.identified(config.activation))


def run(configs: Sequence[TrainConfig]) -> list[RunResult]:
    """Train runs that share shape and protocol to their end, each from its newest checkpoint.

    A run that cannot be begun, such as one that another process works on, is left out until the others are finished.

    Args:
        configs: resolved and prepared.

    Returns:
        the result of each run, also of those that were finished already.

    Raises:
        Interrupted: a signal arrived; every run can be resumed.
        BsnnError: see the classes of `errors`; with a line for each run that was left out.
    """
    directories = [RunDirectory(run_directory(config)) for config in configs]
    pending = []
    for config, directory in zip(configs, directories, strict=True):
        if config.force or directory.result() is None:
            pending.append(Run(config, directory))
        else:
            directory.tidy(config.checkpoint.keep)
            say(f"{directory.path}: finished already; force=true trains it again")
    if pending:
        _run_pending(pending)
    results = [directory.result() for directory in directories]
    return [result for result in results if result is not None]


def _run_pending(pending: Sequence[Run]) -> None:
    """Lock the runs, and train those at the same step as one fleet."""
    first = pending[0].config
    if choose_device(first.device).type == "cpu":
        memory.require(memory.training_bytes(first), first.model, f"optim.batch_size={first.optim.batch_size}")
    if first.threads is not None:
        torch.set_num_threads(first.threads)
    torch.set_float32_matmul_precision("high" if first.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = first.precision == "tf32"
    torch.backends.cudnn.deterministic = True
    with StopFlag() as stop, contextlib.ExitStack() as locks:
        with stop.at_once():
            dataset = data.load(first.dataset, progress=first.progress)
            samples = len(dataset.train.labels)
            if first.optim.batch_size > samples:
                limit = f"must be at most {samples}, the training samples"
                raise ConfigError(f"optim.batch_size={first.optim.batch_size}: {limit}")
            claimed, left_out = list[Run](), list[BsnnError]()
            for run in pending:
                try:
                    if locks.enter_context(_locked(run)):
                        claimed.append(run)
                except BsnnError as error:
                    left_out.append(error)
                    if len(pending) > 1:
                        say(f"warning: {error}; going on without it")
        try:
            train_together(claimed, dataset.to(choose_device(first.device)), stop)
        except Interrupted:
            raise
        except Exception as error:
            for run in claimed:
                if run.directory.result() is None:
                    _note(run, error)
            if isinstance(error, OSError):
                hint = "what was saved before is intact, and the same command goes on from it"
                raise StorageError(f"{error.filename}: cannot be written ({error.strerror}); {hint}") from error
            raise
    if left_out:
        raise type(left_out[0])("\n".join(str(error) for error in left_out)) from left_out[0]


@contextlib.contextmanager
def _locked(run: Run) -> Iterator[bool]:
    """Lock a run, and begin an attempt at it from its newest checkpoint.

    Yields:
        whether there is anything to do: another process may have finished it while this one waited.

    Raises:
        BsnnError: it cannot be locked or begun; it is not locked then.
    """
    with run.directory.lock(run.config.wait):
        if run.config.force:
            run.directory.clear()
        unfinished = run.directory.result() is None
        if unfinished:
            run.directory.claim(run.config, user_files.texts(run.config))
            try:
                run.load()
            except CheckpointError as error:
                _note(run, error)
                raise
        yield unfinished


def _note(run: Run, error: Exception) -> None:
    """Record why a run has failed."""
    with contextlib.suppress(OSError):  # the cause of the failure may prevent this too
        run.directory.fail(f"{type(error).__name__}: {error}", traceback.format_exc())


def train_together(pending: Sequence[Run], dataset: Dataset, stop: StopFlag) -> None:
    """Train the runs at each position as a fleet; a fleet that does not fit into a GPU's memory is halved.

    Raises:
        Interrupted: a signal arrived; the state is saved, where there is one.
    """
    for runs in (part for group in by_position(pending) for part in fitting(group, dataset.train.images.device)):
        try:
            _train_to_the_end(runs, dataset, stop)
        except torch.OutOfMemoryError:
            if len(runs) == 1:
                raise
            half = len(runs) // 2
            say(f"{len(runs)} networks do not fit into the memory of {dataset.train.images.device}: training {half}")
        else:
            continue
        for smaller in (runs[:half], runs[half:]):
            with stop.at_once():
                for run in smaller:
                    run.load()
            train_together(smaller, dataset, stop)


def fitting(runs: Sequence[Run], device: torch.device) -> list[Sequence[Run]]:
    """Split the runs at one position into fleets that should fit into the free memory of a GPU."""
    networks = int(GPU_SHARE * free_bytes(device) // memory.training_bytes(runs[0].config))
    size = max(1, min(networks, len(runs)))
    return [runs[first : first + size] for first in range(0, len(runs), size)]


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU; infinite for a CPU, where the launcher has bounded the size of fleets."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.float_info.max


def _train_to_the_end(runs: Sequence[Run], dataset: Dataset, stop: StopFlag) -> None:
    """Train one fleet. It is local to this function, so that nothing of it is left when the memory is too small."""
    with stop.at_once():
        session = begin(runs, dataset)
    work(session, stop)
    session.finish()


def by_position(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that are at the same epoch and batch, in the order of their positions."""
    groups: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        state = run.checkpoint
        groups.setdefault((-1, 0) if state is None else (state["epoch"], state["batch"]), []).append(run)
    return [groups[position] for position in sorted(groups)]


@dataclass
class Session:
    """A fleet that is trained in this process, with the runs of its members.

    Attributes:
        configs, directories, logs, records: one entry for each member; records are of the epochs so far, and a log is
            None where none is wanted.
        elapsed_before_s: wall time of earlier sessions.
        save_again_at: on the monotonic clock, in seconds.
    """

    configs: Sequence[TrainConfig]
    directories: Sequence[RunDirectory]
    logs: Sequence[EventLog | None]
    dataset: Dataset
    fleet: Trainer
    position: Position
    records: list[list[EpochRecord]]
    elapsed_before_s: float
    started: float
    save_again_at: float

    def elapsed_s(self) -> float:
        """Return the wall time of the runs so far in seconds, all sessions added up."""
        return self.elapsed_before_s + time.monotonic() - self.started

    def publish(self) -> None:
        """Write the epochs so far, for a user who is watching."""
        for directory, log, records in zip(self.directories, self.logs, self.records, strict=True):
            directory.write_epochs(records)
            if log is not None:
                log.write(records)

    def save(self) -> None:
        """Write checkpoint and epochs of every member, and set the time of the next save."""
        begin = time.monotonic()
        for k, directory in enumerate(self.directories):
            state = {
                "identity": identity(self.configs[k]),
                "environment": environment(self.fleet),
                "epoch": self.position.epoch,
                "batch": self.position.batch,
                "loss_sum": float(self.position.loss_sum[k]),
                "elapsed_s": self.elapsed_s(),
                "records": [dataclasses.asdict(record) for record in self.records[k]],
                "tensors": self.fleet.member_state(k),
            }
            checkpoint.rotate(directory.path, state)
            directory.write_epochs(self.records[k])
        end = time.monotonic()
        self.save_again_at = end + max(self.configs[0].checkpoint.every_s, (end - begin) / SAVING_SHARE)

    def finish(self) -> list[RunResult]:
        """Write the final files of every run, the result last."""
        results = [self.result(k) for k in range(len(self.configs))]
        for k, (config, directory, result) in enumerate(zip(self.configs, self.directories, results, strict=True)):
            directory.write_epochs(self.records[k])
            if config.checkpoint.keep != "none":
                state = self.fleet.member_state(k)
                directory.write_weights({name: state[name] for name in state if not is_buffer(name)})
            directory.end_session(provenance.now())
            directory.finish(result, config.checkpoint.keep)
        return results

    def result(self, k: int) -> RunResult:
        """Return the result of member k's run."""
        config, fleet, alive = self.configs[k], self.fleet, bool(self.fleet.alive[k])
        last = self.records[k][-1] if alive else None
        steps, model = int(fleet.steps[k]), config.model
        theirs = config.network.path is not None  # then activation and model mean nothing
        return RunResult(
            status="done" if alive else "diverged",
            train_accuracy=None if last is None else last.train_accuracy,
            test_accuracy=None if last is None else last.test_accuracy,
            train_loss=None if last is None else last.train_loss,
            test_loss=None if last is None else last.test_loss,
            epochs=len(self.records[k]),
            steps=steps,
            elapsed_s=self.elapsed_s(),
            activation=str(network_name(config.network)) if theirs else base_name(config.activation),
            gpn=not theirs and config.activation.gpn,
            root=None if theirs else building.constants(config.activation)[2],
            norm=None if theirs else model.norm,
            batch_norm=not theirs and model.norm == "batch",
            dataset=str(config.dataset.name),
            depth=None if theirs else model.depth,
            width=None if theirs else model.width,
            weights=None if theirs else model.weights,
            seed=config.seed,
            parameters=fleet.parameter_count(),
            diverged_epoch=None if alive else len(self.records[k]) + 1,
            diverged_step=None if alive else steps + 1,
            networks=len(self.configs),
            image=list(self.dataset.shape),
            classes=self.dataset.classes,
            validation_accuracy=None if last is None else last.validation_accuracy,
            validation_loss=None if last is None else last.validation_loss,
        )


def updates_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    """Return the steps that a run makes in an epoch."""
    return steps_per_epoch(config, len(dataset.train.labels))


def environment(fleet: Trainer) -> dict[str, Any]:
    """Return what must be the same for a resumed run to be equal to the byte."""
    return {
        "torch": str(torch.__version__),
        "device": fleet.device.type,
        "threads": torch.get_num_threads(),
        "arithmetic": fleet.arithmetic,
    }


def begin(runs: Sequence[Run], dataset: Dataset) -> Session:
    """Build a fleet from checkpoints of one position, or from the seeds where there are none yet."""
    configs, directories = [run.config for run in runs], [run.directory for run in runs]
    states = [run.checkpoint for run in runs if run.checkpoint is not None]
    for run in runs:
        run.checkpoint = None  # as large as the fleet, which has values of its own
    device, first = dataset.train.images.device, configs[0]
    fleet = building.trainer(
        configs,
        dataset.shape,
        dataset.classes,
        optimiser=Optimiser.of(first.optim, updates_per_epoch(first, dataset)),
        states=[state["tensors"] for state in states] or None,
        device=device,
    )
    if fleet.slow_because is not None:
        say(f"this trains more slowly than usual: {fleet.slow_because}")
    if states and states[0]["environment"] != environment(fleet):
        say(f"warning: {states[0]['environment']} has become {environment(fleet)}; results may differ in rounding")
    loss_sum = torch.tensor([state["loss_sum"] for state in states] or [0.0] * len(configs), dtype=torch.float64)
    position = Position(epoch=0, batch=0, loss_sum=loss_sum.to(device))
    if states:
        position.epoch, position.batch = states[0]["epoch"], states[0]["batch"]
        say(f"resuming after {position.epoch} epochs and {position.batch} batches ({int(fleet.steps[0])} steps)")
    origin = provenance.collect(device) | {"trainer": fleet.description, "arithmetic": fleet.arithmetic}
    if origin["commit"] is None:
        say("the commit of this program is not known, so provenance.json has none")
    for directory in directories:
        directory.begin_session(origin)
    records = [[EpochRecord(**record) for record in state["records"]] for state in states] or [[] for _ in configs]
    before = max((state["elapsed_s"] for state in states), default=0.0)
    now = time.monotonic()
    return Session(
        configs=configs,
        directories=directories,
        logs=[EventLog(directory.path, before) if first.logger == "tensorboard" else None for directory in directories],
        dataset=dataset,
        fleet=fleet,
        position=position,
        records=records,
        elapsed_before_s=before,
        started=now,
        save_again_at=now + first.checkpoint.every_s,
    )


def work(session: Session, stop: StopFlag) -> None:
    """Train to the end, saving now and then; or to the next step boundary after a signal.

    Raises:
        Interrupted: a signal arrived; the state is saved.
    """
    config, fleet = session.configs[0], session.fleet
    assert config.optim.epochs is not None  # resolved
    per_epoch = updates_per_epoch(config, session.dataset)
    events = train(
        fleet,
        session.dataset,
        session.position,
        batch_size=config.optim.batch_size,
        steps=per_epoch,
        epochs=config.optim.epochs,
        train_every=config.eval.train_every,
        elapsed_s=session.elapsed_s,
    )
    done = session.position.epoch * per_epoch + session.position.batch
    directories = [directory.path for directory in session.directories]
    shown = progress.shown(directories, fleet, done, config.optim.epochs, per_epoch) if config.progress else None
    with contextlib.nullcontext() if shown is None else contextlib.closing(shown):
        for event in events:
            if isinstance(event, Tick):
                if shown is not None:
                    shown.tick(event)
            else:
                # The epochs of a member that has diverged mean nothing.
                records = {k: record for k, record in enumerate(event) if fleet.alive[k]}
                for k, record in records.items():
                    session.records[k].append(record)
                if shown is not None and records:
                    shown.epoch(list(records.values()))
                session.publish()
            if stop.received is not None:
                session.save()
                raise Interrupted(stop.received, "stopped; the state is saved, the same command goes on from here")
            if time.monotonic() >= session.save_again_at:
                session.save()
