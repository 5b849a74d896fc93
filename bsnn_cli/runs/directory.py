"""Run directories: the files of a run, and its status.

All that is known of a run is in its directory, so every launcher and every machine finds it, at any time.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bsnn_cli.common.files import read_text, write_json, write_text
from bsnn_cli.errors import RunDirectoryError, RunLockedError
from bsnn_cli.networks.records import EpochRecord
from bsnn_cli.runs import checkpoint, tensorboard, user_files
from bsnn_cli.settings import identity
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.options import expand_homes

PARAMETER = "activation.parameter"

LOCK = ".lock"
LOCK_PATIENCE_S = 1.0
"""`bsnn runs` holds a lock for an instant to see whether it is free; a run that starts just then waits this long."""

NUMERICS_VERSION = 1
"""Stamped into every result. Raise it by hand when a change moves results; tables warn where versions mix."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of `result.json`. Metrics are of the end of the run, accuracies in percent; null where diverged.

    Attributes:
        status: `done` or `diverged`.
        activation: base name, such as "selu"; the name of the function that returns a network of the user's own, of
            which depth, width, norm and weights are null.
        root: which solution b was used, null without GPN.
        batch_norm: whether `norm` is `batch`.
        parameters: number of trained values.
        networks: in the fleet that took `elapsed_s`; null in results from before this was noted.
        numerics: `NUMERICS_VERSION` of the program that made the result.
        image: (channels, height, width) of what is classified; null in results from before this was noted.
        classes: number of them; likewise.
        diverged_epoch, diverged_step: where the loss or a gradient ceased to be finite; null where done.
        validation_accuracy, validation_loss: of what `dataset.validation` sets aside; null where that is nothing.
    """

    status: str
    train_accuracy: float | None
    test_accuracy: float | None
    train_loss: float | None
    test_loss: float | None
    epochs: int
    steps: int
    elapsed_s: float
    activation: str
    gpn: bool
    root: str | None
    norm: str | None
    batch_norm: bool
    dataset: str
    depth: int | None
    width: int | None
    weights: str | None
    seed: int
    parameters: int
    numerics: int = NUMERICS_VERSION
    diverged_epoch: int | None = None
    diverged_step: int | None = None
    networks: int | None = None
    image: list[int] | None = None
    classes: int | None = None
    validation_accuracy: float | None = None
    validation_loss: float | None = None


VALIDATION = ("validation_accuracy", "validation_loss")
"""Fields that results did not have at first; `epochs.csv` has them."""


class RunDirectory:
    """The files of one run.

    Args:
        path: as `identity.run_directory` gives it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the run, so that no other process works on it.

        Raises:
            RunLockedError: another process holds it and `wait` is False.
            RunDirectoryError: it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=-1 if wait else LOCK_PATIENCE_S)
            lock.acquire()
        except Timeout:
            raise RunLockedError(
                f"{self.path}: another process is working on this run; wait=true waits for it"
            ) from None
        except OSError as error:
            raise RunDirectoryError(unwritable(self.path, error)) from None
        try:
            yield
        finally:
            lock.release()

    def config(self) -> TrainConfig:
        """Return the run's config; files of the user's are taken from their copies.

        Raises:
            RunDirectoryError: as `read_config`.
        """
        return user_files.moved(read_config(self.path / "config.yaml"), self.path)

    def verify(self, config: TrainConfig) -> None:
        """Make sure that the directory holds this run, or none.

        Raises:
            RunDirectoryError: the directory belongs to another configuration.
        """
        path = self.path / "config.yaml"
        if path.exists():
            other = read_config(path)
            if (identity.differences(other), other.seed) != (identity.differences(config), config.seed):
                raise RunDirectoryError(f"{self.path}: holds a run of another configuration ({path}); move it away")

    def claim(self, config: TrainConfig, copies: dict[str, str] | None = None) -> None:
        """Begin an attempt: write `config.yaml`, and remove the record of the last failure.

        Args:
            config: resolved.
            copies: texts of the user's own files that are to be kept here, by name.

        Raises:
            RunDirectoryError: the directory belongs to another configuration, or cannot be written to.
        """
        self.verify(config)
        try:
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
            user_files.write(self.path, copies or {})
            (self.path / "failed.json").unlink(missing_ok=True)
        except OSError as error:
            raise RunDirectoryError(unwritable(error.filename, error)) from error

    def result(self) -> RunResult | None:
        """Return the result of a finished run; None if it is not finished.

        Where it was written before it had the metrics of validation, they are those of the last epoch.
        """
        try:
            content = json.loads(read_text(self.path / "result.json"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if content.get("status") == "done" and not content.keys() >= {*VALIDATION}:
            content |= self._last_validation()
        known = {field.name for field in dataclasses.fields(RunResult)}
        return RunResult(**{key: value for key, value in content.items() if key in known})

    def _last_validation(self) -> dict[str, float]:
        try:
            *_, last = csv.DictReader(read_text(self.path / "epochs.csv").splitlines())
        except (FileNotFoundError, ValueError):  # the latter: it has no row
            return {}
        return {name: float(last[name]) for name in VALIDATION if last.get(name)}

    def status(self) -> str:
        """Return `done`, `diverged`, `running`, `failed` or `interrupted`."""
        result = self.result()
        if result is not None:
            return result.status
        if self._is_locked():
            return "running"
        return "failed" if (self.path / "failed.json").exists() else "interrupted"

    def _is_locked(self) -> bool:
        if not (self.path / LOCK).exists():
            return False
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError:
            return False  # read-only: nobody can be writing
        lock.release()
        return False

    def clear(self) -> None:
        """Remove the files of an earlier attempt; `result.json` first, so that no half run looks finished."""
        for name in ("result.json", "weights.pt", "epochs.csv", "failed.json", "provenance.json", "config.yaml"):
            (self.path / name).unlink(missing_ok=True)
        user_files.discard(self.path)
        checkpoint.discard(self.path)
        tensorboard.discard(self.path)

    def begin_session(self, provenance: dict[str, Any]) -> None:
        """Write `provenance.json`; sessions before this one stand under `earlier_sessions`."""
        path = self.path / "provenance.json"
        earlier = []
        if path.exists():
            before = json.loads(read_text(path))
            earlier = [*before.pop("earlier_sessions", []), before]
        write_json(path, provenance | {"earlier_sessions": earlier})

    def end_session(self, time: str) -> None:
        """Note the end of the present session."""
        path = self.path / "provenance.json"
        write_json(path, json.loads(read_text(path)) | {"ended": time})

    def write_epochs(self, records: list[EpochRecord]) -> None:
        """Write `epochs.csv` as a whole: it always matches the state that the run will go on from."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochRecord)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in records)
        write_text(self.path / "epochs.csv", text.getvalue())

    def write_weights(self, tensors: dict[str, Any]) -> None:
        """Write `weights.pt`, verified like a checkpoint; see `checkpoint.load`."""
        checkpoint.save(self.path / "weights.pt", tensors)

    def finish(self, result: RunResult, keep: str) -> None:
        """Write `result.json`, last of all, and remove what only a resumed run would need."""
        write_json(self.path / "result.json", dataclasses.asdict(result))
        self.tidy(keep)

    def tidy(self, keep: str) -> None:
        """Remove the files of a finished run that are not to be kept."""
        (self.path / "failed.json").unlink(missing_ok=True)
        if keep != "all":
            checkpoint.discard(self.path)

    def fail(self, error: str, trace: str) -> None:
        """Write `failed.json`."""
        write_json(self.path / "failed.json", {"error": error, "traceback": trace})


def unwritable(path: str | Path, error: OSError) -> str:
    """Return the message for an output folder that cannot be written."""
    return f"output_root: cannot write {path}: {error.strerror}; output_root=FOLDER takes another folder"


def read_config(path: Path) -> TrainConfig:
    """Read a `config.yaml`; keys that did not exist when it was written take their defaults, or what they meant then.

    Raises:
        RunDirectoryError: it is not a configuration of this program.
    """
    if not path.exists():
        inside = next(path.parent.glob("**/config.yaml"), None)
        hint = "" if inside is None else f"; give one of those in it, such as {inside.parent}"
        raise RunDirectoryError(f"{path.parent}: is no run directory, since it has no config.yaml{hint}")
    try:
        stored = OmegaConf.load(path)
        config = cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), stored)))
        if config.activation.separation is not None and OmegaConf.select(stored, PARAMETER, default="") == "":
            config.activation.parameter = None  # its default has changed what it does
    except (OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read as a configuration ({type(error).__name__})") from error
    expand_homes(config)
    return config
