"""A fleet at work on its runs: what there is of them in this process, and how it gets onto the disk."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bsnn_cli.common import provenance
from bsnn_cli.datasets.data import Dataset
from bsnn_cli.gpn.activations import normalise
from bsnn_cli.networks.training import EpochRecord, Position, Trainer
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.directory import RunDirectory, RunResult
from bsnn_cli.runs.tensorboard import EventLog
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import base_name, identity

SAVING_SHARE = 0.02
"""Saving may take this share of the time; a slow disk stretches the interval between checkpoints."""


@dataclass
class Session:
    """A fleet at work on its runs, in this process.

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
        """Wall time of the runs so far in seconds, all sessions added up."""
        return self.elapsed_before_s + time.monotonic() - self.started

    def publish(self) -> None:
        """Write the epochs so far for those who look on."""
        for directory, log, records in zip(self.directories, self.logs, self.records, strict=True):
            directory.write_epochs(records)
            if log is not None:
                log.write(records)

    def save(self) -> None:
        """Write checkpoint and epochs of every member, and fix the time of the next save."""
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
        """Write what stays of every run, the result last."""
        results = [self.result(k) for k in range(len(self.configs))]
        for k, (config, directory, result) in enumerate(zip(self.configs, self.directories, results, strict=True)):
            directory.write_epochs(self.records[k])
            if config.checkpoint.keep != "none":
                state = self.fleet.member_state(k)
                directory.write_weights({name: state[name] for name in state if not name.startswith("momentum.")})
            directory.end_session(provenance.now())
            directory.finish(result, config.checkpoint.keep)
        return results

    def result(self, k: int) -> RunResult:
        """What the run of member k came to."""
        config, fleet, alive = self.configs[k], self.fleet, bool(self.fleet.alive[k])
        last = self.records[k][-1] if alive else None
        steps, activation = int(fleet.steps[k]), config.activation
        root = normalise(fleet.members[k].activation, activation.root).root if activation.gpn else None
        return RunResult(
            status="done" if alive else "diverged",
            train_accuracy=None if last is None else last.train_accuracy,
            test_accuracy=None if last is None else last.test_accuracy,
            train_loss=None if last is None else last.train_loss,
            test_loss=None if last is None else last.test_loss,
            epochs=len(self.records[k]),
            steps=steps,
            elapsed_s=self.elapsed_s(),
            activation=base_name(activation),
            gpn=activation.gpn,
            root=root,
            norm=config.model.norm,
            batch_norm=config.model.norm == "batch",
            dataset=str(config.dataset.name),
            depth=config.model.depth,
            width=config.model.width,
            weights=config.model.weights,
            seed=config.seed,
            parameters=fleet.parameter_count(),
            diverged_epoch=None if alive else len(self.records[k]) + 1,
            diverged_step=None if alive else steps + 1,
            networks=len(self.configs),
        )


def environment(fleet: Trainer) -> dict[str, Any]:
    """What must be the same for a resumed run to be equal to the byte."""
    threads = torch.get_num_threads()
    return {
        "torch": str(torch.__version__),
        "device": fleet.device.type,
        "threads": threads,
        "arithmetic": fleet.arithmetic,
    }
