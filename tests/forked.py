"""`bsnn` in processes that are forked from one which has imported everything: a start takes milliseconds.

What runs in such a process can be given a fault, which is injected there and nowhere else.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import given_once

MODULES = ("cli", "settings.composition", "runs.sweep", "runs.runner")
PRELOADED = [*(f"bsnn_cli.{name}" for name in MODULES), "sklearn.datasets"]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


class Ended(NamedTuple):
    """How a process has ended.

    Attributes:
        code: exit code, or minus a signal number.
        output: standard output and standard error.
    """

    code: int | None
    output: str


def _main(folder: Path, output: Path, arguments: list[str], inject: Callable[..., None] | None, extra: Any) -> None:
    from bsnn_cli import cli

    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    code = 1
    try:
        if inject is not None:
            inject(*extra)
        code = cli.dispatch(["train", *given_once(["threads=1", "progress=false", *arguments])])
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:  # noqa: BLE001 - a traceback is what some tests look for
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(
    folder: Path, *arguments: str, inject: Callable[..., None] | None = None, extra: tuple[Any, ...] = ()
) -> ForkServerProcess:
    """Start `bsnn train` in a folder; its output goes to `output.txt` there."""
    process = context.Process(target=_main, args=(folder, folder / "output.txt", list(arguments), inject, extra))
    process.start()
    return process


def run(folder: Path, *arguments: str, inject: Callable[..., None] | None = None, extra: tuple[Any, ...] = ()) -> Ended:
    """Run `bsnn train` in a folder, with a fault if `inject(*extra)` makes one, to its end."""
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    process = start(folder, *arguments, inject=inject, extra=extra)
    process.join(120)
    assert process.exitcode is not None, output.read_text()
    return Ended(process.exitcode, output.read_text())
