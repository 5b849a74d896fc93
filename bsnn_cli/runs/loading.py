"""Loading finished runs: the trained network, its dataset, and tables over many runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsnn_cli.common.files import read_text
from bsnn_cli.errors import RunDirectoryError
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.runs import checkpoint
from bsnn_cli.runs.directory import RunDirectory, RunResult, read_config
from bsnn_cli.settings import identity
from bsnn_cli.settings.choices import CUSTOM
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.options import settings

if TYPE_CHECKING:
    import pandas as pd

    from bsnn_cli.datasets.data import Dataset
    from bsnn_cli.networks.trainable import Trainable


def load_run(path: str | Path) -> Trainable:
    """Load the trained network of a finished run, in evaluation mode, on the CPU.

    It takes inputs as `load_dataset(path).standardise` gives them, (batch, inputs) float32, and returns logits. Where
    the run has an activation or a network of a user's own, the copy of its Python file in the run directory is
    executed; nothing else is. The user's own module is the attribute `module`.

    Args:
        path: a run directory.

    Raises:
        RunDirectoryError: not a run directory, or its weights have not been kept.
        CheckpointError: the weights are damaged.
    """
    from bsnn_cli.networks import building

    directory = Path(path)
    run = RunDirectory(directory)
    config, result = run.config(), run.result()
    if not (directory / "weights.pt").exists():
        raise RunDirectoryError(f"{directory}: has no weights.pt; checkpoint.keep=weights keeps it at the end of a run")
    weights = checkpoint.load(directory / "weights.pt")
    if result is not None and result.image is not None and result.classes is not None:
        channels, height, width = result.image
        image, classes = (channels, height, width), result.classes
    else:  # of a version that knew perceptrons only
        image, classes = (1, 1, weights["input.weight"].shape[1]), weights["output.weight"].shape[0]
    return building.network(config, image, classes).load(weights).eval()


def load_dataset(path: str | Path) -> Dataset:
    """Load the dataset that a run was trained on, with its split and scaling; it is fetched if it is not there.

    Args:
        path: a run directory.

    Raises:
        RunDirectoryError: not a run directory, or the images of its folder are not those of then.
        DataError: the files are absent or damaged.
    """
    from bsnn_cli.datasets import data

    config = read_config(Path(path) / "config.yaml").dataset
    if data.fingerprint(config) != config.fingerprint:
        raise RunDirectoryError(f"dataset.root={config.root}: its content is not what {path} was trained on")
    return data.load(config)


def directories(output_root: str | Path) -> list[RunDirectory]:
    """Return all run directories, sorted by path."""
    return [RunDirectory(path.parent) for path in sorted((Path(output_root) / "runs").glob("*/*/*/config.yaml"))]


def load_all(output_root: str | Path) -> pd.DataFrame:
    """Return a row for each run: `directory`, `status`, `identity`, `epoch`, every key, every field of `RunResult`.

    `protocol` says in words what `settings`, an `identity.Protocol`, holds. `epoch` counts the epochs in `epochs.csv`;
    result fields are missing where a run is not finished. A directory that cannot be read is named on standard error
    and left out.
    """
    import pandas as pd

    rows = []
    for directory in directories(output_root):
        try:
            rows.append(describe(directory))
        except (RunDirectoryError, ValueError, TypeError, KeyError, OSError) as error:
            print(f"warning: {directory.path} is left out: {error}", file=sys.stderr)
    return pd.DataFrame(rows)


def describe(directory: RunDirectory) -> dict[str, Any]:
    """Return the row of one run in `load_all`."""
    config = read_config(directory.path / "config.yaml")
    protocol = identity.protocol(config)
    result = directory.result()
    fields = [field.name for field in dataclasses.fields(RunResult)]
    epochs = directory.path / "epochs.csv"
    return (
        {field: None if result is None else getattr(result, field) for field in fields}
        | _settings(config)
        | {
            "directory": str(directory.path),
            "status": directory.status(),
            "identity": identity.identity(config),
            "protocol": str(protocol),
            "settings": protocol,
            "label": identity.activation_label(config),
            "epoch": max(0, len(read_text(epochs).splitlines()) - 1) if epochs.exists() else 0,
        }
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return every key of a run with its value.

    A network of the user's own has no `model`; its function stands as a custom activation does, so that tables, whose
    rows are activations, have a row for it.
    """
    values = settings(config)
    if config.network.path is not None:
        values |= {key: None for key in values if key.startswith(("activation.", "model."))}
        values |= {"activation.name": CUSTOM, "activation.gpn": False, "network.kind": None}
        values |= {f"activation.{key}": values[f"network.{key}"] for key in ("path", "fingerprint")}
    return values


def load_epochs(runs: pd.DataFrame) -> pd.DataFrame:
    """Load `epochs.csv` of all runs of a frame, a row for each epoch: `directory` and the fields of `EpochRecord`."""
    import pandas as pd

    paths = [Path(directory) / "epochs.csv" for directory in runs["directory"]]
    frames = [pd.read_csv(path).assign(directory=str(path.parent)) for path in paths if path.exists()]
    frames = [frame for frame in frames if len(frame) > 0]  # columns without rows have no type, and spoil the others'
    if frames:
        return pd.concat(frames, ignore_index=True)
    return pd.DataFrame(columns=["directory", *(field.name for field in dataclasses.fields(EpochRecord))])
