"""Runs, measurements and theory without weights, in the layout of an output folder: small enough for a repository.

Copied back into an output folder they count as done, so that a reproduction goes on where another machine has ended.
What belongs to a machine, its folders and its name, stays behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bsnn_cli.gpn import activation_file
from bsnn_cli.measuring import propagation_store
from bsnn_cli.storage import origins
from bsnn_cli.storage.files import write_json, write_text

PLACES = ("output_root", "dataset.root", "run")
"""Knobs that say where something lies; without them a config takes the reader's own."""

RUN_FILES = ("result.json", "epochs.csv", activation_file.COPY)
MEASUREMENT_FILES = ("layers.csv", "histogram.csv")


def archive(output_root: Path, runs: Iterable[str], folder: Path) -> None:
    """Copy runs, all measurements and the theory.

    Args:
        output_root: where they are.
        runs: directories of finished runs in it.
        folder: where they go, to `runs`, `propagation` and `theory` in it.

    Raises:
        OSError: a file cannot be read or written.
    """
    for run in map(Path, runs):
        copy(run, folder / run.relative_to(output_root), RUN_FILES)
    for each in propagation_store.load_all(output_root):
        source = Path(each.pop("directory"))
        target = folder / source.relative_to(output_root)
        copy(source, target, MEASUREMENT_FILES)
        write_json(target / "summary.json", each | {
            "config": without_places(OmegaConf.create(each["config"])),
            "trained": each["trained"] and str(Path(*Path(each["trained"]).parts[-4:])),
        })  # fmt: skip
    if (output_root / "theory" / "theory.csv").exists():
        copy(output_root / "theory", folder / "theory", ["theory.csv"])


def copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """A directory's config and provenance, without what belongs to this machine, and the files of these names."""
    config = OmegaConf.load(source / "config.yaml")
    assert isinstance(config, DictConfig)
    write_text(target / "config.yaml", OmegaConf.to_yaml(without_places(config)))
    if (source / "provenance.json").exists():
        write_json(target / "provenance.json", origins.of_directory(source))
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def without_places(config: DictConfig) -> Any:
    """The config as plain containers, without `PLACES`; of the file of an activation only its name and the function."""
    for key in PLACES:
        owner, _, name = key.rpartition(".")
        found = OmegaConf.select(config, owner) if owner else config
        if found is not None:
            found.pop(name, None)
    path = OmegaConf.select(config, "activation.path")
    if path is not None:
        config.activation.path = Path(path).name
    return OmegaConf.to_container(config)
