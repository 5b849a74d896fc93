"""Runs and measurements without weights, in the layout of an output folder: small enough for a repository.

Copied back into an output folder they count as done, so that a reproduction goes on where another machine has ended.
What belongs to a machine, its folders and its name, stays behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bsnn_cli.common.files import as_json, read_text, write_text
from bsnn_cli.measuring import propagation_store
from bsnn_cli.report import provenance_table
from bsnn_cli.runs.user_files import COPIES

PLACES = ("output_root", "dataset.root", "run")
"""Keys that say where something lies; without them a config takes the reader's own."""

RUN_FILES = ("provenance.json", "epochs.csv", *COPIES.values(), "config.yaml", "result.json")
MEASUREMENT_FILES = (
    "provenance.json", "layers.csv", "histogram.csv", COPIES["network"], "config.yaml", "summary.json"
)  # fmt: skip
BENCH_FILES = ("bench.md", "bench.csv")
"""Files that are copied, in this order: the last one says that all are there."""


def archive(output_root: Path, runs: Iterable[str], folder: Path) -> None:
    """Copy runs, measurements and times; what `bsnn theory` makes is large and made again in a minute.

    Args:
        output_root: where they are.
        runs: directories of finished runs in it.
        folder: where they go, to `runs`, `propagation` and `bench` in it.

    Raises:
        OSError: a file cannot be read or written.
    """
    for run in map(Path, runs):
        copy(run, folder / run.relative_to(output_root), RUN_FILES)
    for summary in propagation_store.load_all(output_root):
        measurement = Path(summary["directory"])
        copy(measurement, folder / measurement.relative_to(output_root), MEASUREMENT_FILES)
    if (output_root / "bench").is_dir():  # an older one is kept where nothing has been timed
        copy(output_root / "bench", folder / "bench", BENCH_FILES)


def copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy the files of these names that there are, in this order, without what belongs to this machine."""
    (target / names[-1]).unlink(missing_ok=True)
    for name in names:
        if (source / name).exists():
            write_text(target / name, NEUTRAL.get(name, str)(read_text(source / name)))


def neutral_config(text: str) -> str:
    """Return a `config.yaml` without places."""
    return OmegaConf.to_yaml(without_places(OmegaConf.create(text)))


def neutral_provenance(text: str) -> str:
    """Return a `provenance.json` with `provenance_table.FIELDS` only."""
    return as_json(provenance_table.fields(json.loads(text)))


def neutral_summary(text: str) -> str:
    """Return a `summary.json` without places; the run that was measured goes by the end of its path."""
    content = json.loads(text)
    content["config"] = without_places(OmegaConf.create(content["config"]))
    if content["trained"] is not None:
        parts = Path(content["trained"]).parts[-4:]
        content["trained"] = "/".join(parts if parts[0] == "runs" else parts[-1:])
    return as_json(content)


NEUTRAL: dict[str, Callable[[str], str]] = {
    "config.yaml": neutral_config,
    "provenance.json": neutral_provenance,
    "summary.json": neutral_summary,
}
"""Files that say something of a machine, and what takes it out of their text."""


def without_places(config: Any) -> Any:
    """Return a config as plain containers, without `PLACES`; of a file only the name and the function."""
    for key in PLACES:
        owner, _, name = key.rpartition(".")
        node = OmegaConf.select(config, owner) if owner else config
        if node is not None:
            node.pop(name, None)
    for key in ("activation.path", "network.path"):
        path = OmegaConf.select(config, key)
        if path is not None:
            OmegaConf.update(config, key, Path(path).name)
    return OmegaConf.to_container(config)
