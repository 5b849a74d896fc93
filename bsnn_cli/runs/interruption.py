"""Stop signals: they set a flag, and a run ends where its state can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from bsnn_cli.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals from the keyboard (INT), a scheduler or a system that shuts down (TERM), a terminal that is closed (HUP), and
early warnings of schedulers (USR1, USR2)."""


class _Stop(BaseException):
    """Leaves any code that runs when a signal arrives, also an `except Exception`."""


class StopFlag:
    """A context manager that notes stop signals in `received`, which the code inside reads between steps.

    A second SIGINT ends the process at once; a scheduler may repeat the other signals without hurting a save that is
    under way. A signal that has a handler already is left to it, such as submitit's for USR2, which queues the job
    again. Outside the main thread, where Python cannot handle signals, the flag is never set.

    Args:
        note: called with the number of the first signal, from within its handler.

    Attributes:
        received: the first signal number that arrived, or None.
    """

    def __init__(self, note: Callable[[int], object] | None = None) -> None:
        self.received: int | None = None
        self._note = note
        self._raising = False
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
        if self.received is None:
            self.received = number
            if self._note is not None:
                self._note(number)
        if self._raising:
            raise _Stop

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the code inside wherever it is; there must be nothing to save.

        Raises:
            Interrupted: a signal arrives, or has arrived before.
        """
        try:
            self._raising = True
            if self.received is None:
                yield
        except _Stop:
            pass
        finally:
            self._raising = False
        if self.received is not None:
            message = "stopped between two steps; nothing is lost, the same command goes on from here"
            raise Interrupted(self.received, message)

    def __enter__(self) -> StopFlag:
        defaults = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN  # by nohup
                if signal.getsignal(number) in defaults and not ignored:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
