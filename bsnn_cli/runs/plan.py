"""The plan for a set of runs, its cost in time and disk, and the outcome: all read off the run directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bsnn_cli.common.files import read_text
from bsnn_cli.common.terminal import aligned, duration
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.checkpoint import CURRENT, PREVIOUS
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.estimate import Estimate, Estimator, epochs, steps_equivalent, total
from bsnn_cli.settings.choices import OPTIMISERS
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import activation_label, run_directory
from bsnn_cli.settings.options import options, settings
from bsnn_cli.settings.widths import matrix_entries

UNNAMED = {"activation.name", "activation.gpn", "dataset.kind", "dataset.name", "network.fingerprint", "seed"}
"""Keys that have their own column, or none, in the table of outcomes."""

INTENTS = ("finished", "to resume", "to run")
OUTCOMES = ("done", "diverged", "failed", "running", "not finished")


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
    results = {key for key, entry, _ in options(configs[0]) if entry.metadata["result"]}
    values = [
        {key: value for key, value in settings(config).items() if key in results or key.startswith("network.kwargs.")}
        for config in configs
    ]
    keys = dict.fromkeys(key for row in values for key in row if key not in UNNAMED)
    return [key for key in keys if len({str(row.get(key)) for row in values}) > 1]


def columns(configs: Sequence[TrainConfig]) -> list[tuple[str, ...]]:
    """Return the columns that distinguish runs, a header first: dataset, activation, what else is varied, seed."""
    keys = varied(configs)
    rows = [("dataset", "activation", *keys, "seed")]
    for config in configs:
        values = settings(config)
        label = activation_label(config)
        rows.append((str(config.dataset.name), label, *(str(values.get(key, "")) for key in keys), str(config.seed)))
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
    estimator, kept, peak = Estimator(), 0, 0
    table, times = [(*rows[0], "plan", "time", "directory")], []
    for config, row in zip(configs, rows[1:], strict=True):
        word = intent(config)
        left = word != "finished"
        if word == "to resume":
            word = f"resume at epoch {checkpoint.epoch(run_directory(config)) + 1}"
        estimate = seconds_left(config, estimator) if left else Estimate(0.0, 0.0, 0.0)
        times.append(estimate)
        size = 4 * values(config)
        kept += size if left and config.checkpoint.keep != "none" else 0
        state = (1 + len(OPTIMISERS[config.optim.kind].buffers)) * size
        peak = max(peak, 3 * state if left else 0)  # two checkpoints and the next
        table.append((*row, word, duration(estimate.typical) if left else "", str(run_directory(config))))
    return "\n".join(
        [
            aligned(table),
            summary(configs),
            f"time: {total(times)} of training, one after the other on this machine; {estimator.source()}",
            f"disk: {kept / 1e6:.1f} MB to keep; {peak / 1e6:.1f} MB while a run is going on",
        ]
    )


def values(config: TrainConfig) -> int:
    """Return the number of trained values of a network: of the hidden layers, which are nearly all there are.

    Those of a user's own module are counted.
    """
    if config.network.path is None:
        return matrix_entries(config.model) * (9 if config.network.kind == "cnn" else 1)
    from bsnn_cli.networks import network_file

    module, _ = network_file.build(config.network, str(network_file.source(config.network)), config.seed)
    return sum(parameter.numel() for parameter in module.parameters())


def seconds_left(config: TrainConfig, estimator: Estimator) -> Estimate:
    """Estimate the seconds that a run which is not finished still takes, alone on this machine."""
    done = checkpoint.epoch(run_directory(config)) if intent(config) == "to resume" else 0
    steps = (1 - done / epochs(config)) * steps_equivalent(config)
    step = estimator.step(config)
    return Estimate(steps * step.typical, steps * step.low, steps * step.high)
