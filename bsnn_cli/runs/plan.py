"""The plan for a set of runs, its cost in time and disk, and the outcome: all read off the run directories."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from bsnn_cli.common.files import read_text
from bsnn_cli.common.terminal import aligned, duration
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.checkpoint import CURRENT, PREVIOUS
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.settings.choices import DATASETS
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label, run_directory
from bsnn_cli.settings.options import options

UNNAMED = {"activation.name", "activation.gpn", "dataset.kind", "dataset.name", "seed"}
"""Keys that have their own column, or none, in the table of outcomes."""

INTENTS = ("finished", "to resume", "to run")
OUTCOMES = ("done", "diverged", "failed", "running", "not finished")

PROBE_LAYERS = 8
"""Depth of the network that is timed for an estimate."""

PROBE_WIDTH = 2000
"""The network that is timed has at most this width, since a wider one may not fit into the memory."""

PROBE_S = 0.2
"""Seconds that are spent on timing it."""


def finished(config: TrainConfig) -> bool:
    """Return whether a run is done or has diverged."""
    return RunDirectory(run_directory(config)).result() is not None


def resumable(config: TrainConfig) -> bool:
    """Return whether a run has a checkpoint to go on from."""
    path = run_directory(config)
    return any((path / name).exists() for name in (CURRENT, PREVIOUS))


def untried(config: TrainConfig) -> bool:
    """Return whether nothing is known of how a run has ended, or will end."""
    return RunDirectory(run_directory(config)).status() == "interrupted"


def summary(configs: Sequence[TrainConfig]) -> str:
    """Return the plan in one line, such as "24 runs: 3 finished, 1 to resume, 20 to run"."""
    return count([intent(config) for config in configs], INTENTS)


def count(words: Sequence[str], kinds: Sequence[str], unit: str = "run") -> str:
    """Count each kind, such as "3 runs: 2 done, 1 failed"."""
    counts = ", ".join(f"{words.count(kind)} {kind}" for kind in kinds if kind in words)
    return f"{len(words)} {unit}{'' if len(words) == 1 else 's'}: {counts}"


def intent(config: TrainConfig) -> str:
    """Return what a command for this run will do: nothing (`finished`), `to resume` or `to run`."""
    if config.force:
        return "to run"
    return "finished" if finished(config) else "to resume" if resumable(config) else "to run"


def varied(configs: Sequence[TrainConfig]) -> list[str]:
    """Return the result-changing keys that differ between runs, without those that a table names in any case."""
    values = [{key: value for key, entry, value in options(config) if entry.metadata["result"]} for config in configs]
    return [key for key in values[0] if key not in UNNAMED and len({row[key] for row in values}) > 1]


def columns(configs: Sequence[TrainConfig]) -> list[tuple[str, ...]]:
    """Return the columns that distinguish runs, a header first: dataset, activation, what else is varied, seed."""
    keys = varied(configs)
    rows = [("dataset", "activation", *keys, "seed")]
    for config in configs:
        values = {key: value for key, _, value in options(config)}
        label = activation_label(config)
        rows.append((str(config.dataset.name), label, *(str(values[key]) for key in keys), str(config.seed)))
    return rows


def outcome(configs: Sequence[TrainConfig]) -> str:
    """Describe the outcome of runs: a table, a count of each kind, reason and log of each that has failed."""
    rows = columns(configs)
    table, words, notes = [(*rows[0], "outcome", "test", "directory")], [], []
    for config, row in zip(configs, rows[1:], strict=True):
        directory = RunDirectory(run_directory(config))
        result, status = directory.result(), directory.status()
        accuracy = "" if result is None or result.test_accuracy is None else f"{result.test_accuracy:.2f} %"
        words.append("not finished" if status == "interrupted" else status)
        table.append((*row, words[-1], accuracy, str(directory.path)))
        if status == "failed":
            notes.append(f"failed: {' '.join(row)}: {reason(directory.path)}; see {directory.path / 'log.txt'}")
    return "\n".join([aligned(table), count(words, OUTCOMES), *notes])


def reason(directory: Path) -> str:
    """Return in one line why a run has failed."""
    lines = str(json.loads(read_text(directory / "failed.json"))["error"]).splitlines()
    return lines[0] if lines else ""


def preview(configs: Sequence[TrainConfig]) -> str:
    """Describe for `dry_run=true`, run by run, what the command would do, with its time and disk space.

    Times are of one run after the other on this machine.
    """
    rows = columns(configs)
    speeds: dict[str, float] = {}
    table, seconds, kept, peak = [(*rows[0], "plan", "time", "directory")], 0.0, 0, 0
    for config, row in zip(configs, rows[1:], strict=True):
        word = intent(config)
        left = word != "finished"
        if word == "to resume":
            word = f"resume at epoch {checkpoint.epoch(run_directory(config)) + 1}"
        estimate = seconds_left(config, speeds) if left else 0.0
        seconds += estimate
        size = 4 * values(config)
        kept += size if left and config.checkpoint.keep != "none" else 0
        peak = max(peak, 3 * 2 * size if left else 0)  # two checkpoints and the next, of weights and momentum
        table.append((*row, word, duration(estimate) if left else "", str(run_directory(config))))
    return "\n".join(
        [
            aligned(table),
            summary(configs),
            f"time: about {duration(seconds)} of training, one after the other on this machine",
            f"disk: {kept / 1e6:.1f} MB to keep; {peak / 1e6:.1f} MB while a run is going on",
        ]
    )


def seconds_left(config: TrainConfig, speeds: dict[str, float]) -> float:
    """Estimate the seconds that a run still takes on this machine, alone.

    Args:
        config: resolved, of a run that is not finished.
        speeds: seconds of a training step by what it depends on; what is absent is timed and added.
    """
    key = f"{config.model} {config.optim.batch_size} {config.device} {config.precision} {config.threads}"
    if key not in speeds:
        speeds[key] = step_seconds(config)
    done = checkpoint.epoch(run_directory(config)) if intent(config) == "to resume" else 0
    return (1 - done / epochs(config)) * steps_equivalent(config) * speeds[key]


def epochs(config: TrainConfig) -> int:
    """Return the epochs of a resolved config."""
    assert config.optim.epochs is not None
    return config.optim.epochs


def samples(config: TrainConfig) -> tuple[int, int]:
    """Return the numbers of samples in the training and the test split; those of an image folder are counted."""
    known = DATASETS[config.dataset.kind].samples
    if known is not None:
        return known
    from bsnn_cli.datasets import image_folder

    files = image_folder.scan(Path(config.dataset.root))
    return len(files.train), len(files.test)


def steps_equivalent(config: TrainConfig) -> float:
    """Return the steps of a whole run, with evaluations counted as the share of a step that they take.

    The products of a step are 6·L·n² floating-point operations a sample, those of an evaluation 2·L·n².
    """
    train, test = samples(config)
    validation = config.dataset.validation * train
    every = config.eval.train_every
    whole = 1 if every is None else epochs(config) / every
    evaluated = epochs(config) * (test + validation) + whole * (train - validation)
    return (epochs(config) * (train - validation) + evaluated / 3) / config.optim.batch_size


def values(config: TrainConfig) -> int:
    """Return the number of trained values in the hidden layers, which are nearly all there are."""
    return config.model.depth * config.model.width**2


def step_seconds(config: TrainConfig) -> float:
    """Return the seconds of an update, from a few updates on random data in a network of a few layers."""
    import torch

    from bsnn_cli.common import machine
    from bsnn_cli.runs import runner

    depth, width = min(config.model.depth, PROBE_LAYERS), min(config.model.width, PROBE_WIDTH)
    batch = config.optim.batch_size
    device = machine.choose_device(config.device)
    trainer = runner.trainer(config.model)(
        dataclasses.replace(config.model, depth=depth, width=width),
        [runner.member(config)[0]],
        inputs=width,
        classes=10,
        momentum=config.optim.momentum,
        device=device,
    )
    inputs = torch.randn(1, batch, width, device=device)
    labels = torch.zeros(1, batch, dtype=torch.int64, device=device)
    trainer.step(inputs, labels)  # the first one is slow
    begin, steps = time.monotonic(), 0
    while steps < 3 or time.monotonic() - begin < PROBE_S:
        float(trainer.step(inputs, labels).sum())  # reading the loss waits for a GPU
        steps += 1
    larger = config.model.depth * config.model.width**2 / (depth * width**2)
    return (time.monotonic() - begin) / steps * larger
