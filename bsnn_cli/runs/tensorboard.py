"""The event file of `logger=tensorboard`: the metrics of `epochs.csv`, for TensorBoard.

TensorBoard is an extra, and is imported where a file is written. Each process writes a new file with all epochs that
the checkpoint holds, and removes the file before it. So no epoch is there twice, however often a run was killed between
an epoch and the next checkpoint.

PyTorch's `SummaryWriter` promises less: its `purge_step` leaves the purged points in their file, and it writes in a
thread, which on a full disk prints a traceback and names no file.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsnn_cli.networks.records import EpochRecord

EVENTS = "events.out.tfevents.*"
"""The pattern of file names that TensorBoard looks for."""

AXES = ("epoch", "step", "elapsed_s")
"""Fields of a record that are no curves: TensorBoard shows metrics against step and time."""


class EventLog:
    """The event file of one run in this process.

    Args:
        directory: of the run; event files of earlier processes in it are removed.
        elapsed_s: wall time of earlier processes, so that the time axis is that of the training.

    Raises:
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, elapsed_s: float) -> None:
        now = time.time()
        discard(directory)
        # TensorBoard goes on to the next file in the order of names.
        self.path = directory / EVENTS.replace("*", f"{int(now):010}.{socket.gethostname()}.{os.getpid()}")
        self._begin = now - elapsed_s
        self._written = 0
        # The second event tells a TensorBoard that is watching to drop the points of the file before.
        self._append([_event(now, file_version="brain.Event:2"), _event(now, session_log={"status": "START"})])

    def write(self, records: Sequence[EpochRecord]) -> None:
        """Append the records that are not there yet.

        Args:
            records: of all epochs so far.

        Raises:
            OSError: it cannot be written; `filename` is the file's name.
        """
        events = []
        for record in records[self._written :]:
            metrics = {name: value for name, value in dataclasses.asdict(record).items() if name not in AXES}
            values = [{"tag": name, "simple_value": value} for name, value in metrics.items() if value is not None]
            events.append(_event(self._begin + record.elapsed_s, step=record.step, summary={"value": values}))
        self._append(events)
        self._written = len(records)

    def _append(self, events: Sequence[bytes]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        try:
            with self.path.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(event)
        except OSError as error:  # a write that fails does not say of which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def discard(directory: Path) -> None:
    """Remove the event files of a run."""
    for path in directory.glob(EVENTS):
        path.unlink()


def _event(wall_time: float, **content: Any) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return bytes(Event(wall_time=wall_time, **content).SerializeToString())
