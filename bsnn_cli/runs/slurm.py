"""The jobs that `hydra/launcher=submitit_slurm` would submit, told without a cluster."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bsnn_cli.common.terminal import aligned

FLAGS = {
    "name": "job-name",
    "partition": "partition",
    "qos": "qos",
    "account": "account",
    "constraint": "constraint",
    "exclude": "exclude",
    "nodes": "nodes",
    "tasks_per_node": "ntasks-per-node",
    "cpus_per_task": "cpus-per-task",
    "cpus_per_gpu": "cpus-per-gpu",
    "gpus_per_node": "gpus-per-node",
    "gpus_per_task": "gpus-per-task",
    "gres": "gres",
    "mem_gb": "mem",
    "mem_per_cpu": "mem-per-cpu",
    "mem_per_gpu": "mem-per-gpu",
    "timeout_min": "time",
    "comment": "comment",
}
"""Keys of `hydra.launcher`, and the options of sbatch that submitit makes of them."""


def rehearsal(launcher: Mapping[str, Any], jobs: int, at_a_time: int | None, command: Sequence[str]) -> str:
    """Describe what would be submitted: options of sbatch, setup, logs, command, and what becomes of a job at its end.

    Args:
        launcher: the settings `hydra.launcher`.
        jobs: to be submitted.
        at_a_time: jobs in one array; None: all.
        command: the command line of the sweep.
    """
    size = min(jobs, at_a_time or jobs)
    flags = {FLAGS[key]: value for key, value in launcher.items() if key in FLAGS and value is not None}
    if "mem" in flags:
        flags["mem"] = f"{flags['mem']}GB"
    flags["signal"] = f"USR2@{launcher['signal_delay_s']}"
    flags["array"] = f"0-{size - 1}%{min(size, launcher['array_parallelism'])}"
    flags |= launcher.get("additional_parameters") or {}
    arrays = -(-jobs // size)
    many = f"{arrays} arrays of up to {size} jobs, one after the other" if arrays > 1 else f"an array of {jobs} jobs"
    many = "one job" if jobs == 1 else many
    default = "" if "partition" in flags else "; hydra.launcher.partition=NAME takes another partition than the default"
    lines = [f"would be submitted to SLURM: {many}{default}"]
    lines += [f"  #SBATCH --{flag}={shlex.quote(str(value))}" for flag, value in sorted(flags.items())]
    lines += [f"  {line}" for line in launcher.get("setup") or []]
    retries = launcher["max_num_timeout"]
    rows = [
        ["  each job:", f"one run of `{shlex.join(command)}`, in a process of its own"],
        ["  at the end of its time:", f"it saves its state and is queued again, at most {retries} times"],
        ["  logs:", f"{launcher['submitit_folder']}, and log.txt in each run's directory"],
    ]
    return "\n".join([*lines, aligned(rows)])
