"""`logger=tensorboard`: the metrics of `epochs.csv`, read back as TensorBoard reads them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from bsnn_cli.errors import ConfigError
from bsnn_cli.runs import tensorboard
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.settings import validation
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.validation import resolve
from tests import forked
from tests.conftest import small

RUN = small("optim.epochs=5", "eval.train_every=2", "logger=tensorboard")


def directory(root: Path) -> Path:
    [path] = root.glob("outputs/runs/*/*/*")
    return path


def points(path: Path) -> dict[str, list[tuple[int, float]]]:
    """All points in the event files of a run, in the order in which they were written: {metric: [(step, value)]}."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(path.glob(tensorboard.EVENTS)):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def in_csv(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from `epochs.csv`."""
    table = pd.read_csv(path / "epochs.csv")
    metrics = {name: table[["step", name]].dropna() for name in table if name not in tensorboard.AXES}
    return {name: [(int(step), float(value)) for step, value in m.to_numpy()] for name, m in metrics.items() if len(m)}


def approximately(expected: dict[str, list[tuple[int, float]]]) -> dict[str, list[object]]:
    """Event files hold single precision."""
    return {name: [(step, pytest.approx(value)) for step, value in series] for name, series in expected.items()}


def after_publishing(epochs: int, end: Callable[[], object]) -> None:
    """Something happens after so many epochs have been written, and before the next checkpoint."""
    from bsnn_cli.runs.runner import Session

    publish = Session.publish

    def then(session: Session) -> None:
        publish(session)
        if len(session.records[0]) == epochs:
            end()

    Session.publish = then  # type: ignore[method-assign]


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_stopped_and_killed_has_each_epoch_once(tmp_path: Path) -> None:
    assert forked.run(tmp_path, *RUN, inject=after_publishing, extra=(2, stop_itself)).code == 128 + signal.SIGTERM
    assert [step for step, _ in points(directory(tmp_path))["test_loss"]] == [23, 46]
    assert forked.run(tmp_path, *RUN, inject=after_publishing, extra=(4, kill_itself)).code == -signal.SIGKILL
    assert [step for step, _ in points(directory(tmp_path))["test_loss"]] == [23, 46, 69, 92]
    ended = forked.run(tmp_path, *RUN)
    assert ended.code == 0, ended.output
    assert "(46 steps)" in ended.output
    expected = in_csv(directory(tmp_path))
    assert {"train_loss", "test_accuracy", "train_accuracy", "learning_rate", "orthogonality_error"} <= expected.keys()
    assert [step for step, _ in expected["train_accuracy"]] == [46, 92, 115]
    assert points(directory(tmp_path)) == approximately(expected)

    forced = forked.run(tmp_path, *RUN[:-1], "force=true")
    assert forced.code == 0, forced.output
    assert not list(directory(tmp_path).glob(tensorboard.EVENTS))


def test_a_full_disk_is_named_and_does_not_block_the_next_try(tmp_path: Path) -> None:
    ended = forked.run(tmp_path, *RUN, inject=full_disk)
    assert ended.code == 1, ended.output
    [line] = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "events.out.tfevents" in line
    assert "No space left on device" in line
    assert forked.run(tmp_path, *RUN).code == 0
    assert points(directory(tmp_path)) == approximately(in_csv(directory(tmp_path)))


def full_disk() -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = []

    def write(_: RecordWriter, event: bytes) -> None:
        written.append(event)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    RecordWriter.write = write


def test_it_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    assert forked.run(tmp_path, *RUN[:-1]).code == 0
    again = forked.run(tmp_path, *RUN)
    assert "finished already" in again.output
    assert RunDirectory(directory(tmp_path)).status() == "done"


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'^logger=tensorboard: is not installed; pip install "bsnn\[tensorboard\]"$'):
        resolve(TrainConfig(logger="tensorboard"))
    resolve(TrainConfig())
