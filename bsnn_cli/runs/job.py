"""Jobs: child processes that train runs. The parent's side starts and watches a child; `main` is the child's side.

Whatever happens to a job (an exception, `sys.exit`, a crash, the out-of-memory killer), happens to its process alone;
the parent records it in the run's directory. Nothing here imports torch before a job needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from bsnn_cli.common import streams
from bsnn_cli.common.files import read_text, write_json, write_text
from bsnn_cli.errors import BsnnError, RunLockedError
from bsnn_cli.runs.directory import RunDirectory
from bsnn_cli.runs.interruption import STOP_SIGNALS, StopFlag
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import run_directory

LOG = "log.txt"
BEGUN = "begun"
POLL_S = 0.2
TAIL = 4000
"""Characters of a child's output that its parent quotes."""


@dataclass(frozen=True)
class Manifest:
    """The jobs of a sweep, written by its driver into a folder that all workers see, on whatever machine they are.

    Attributes:
        folder: of the sweep.
        argv: command line of the driver.
        host, pid: of the driver.
        gpus: of the driver's machine, to be given out one to a job; empty where the launcher sees to that, or none.
        configs: resolved; job number i of the launcher is configs[i].
        queued: whether the jobs wait in a queue of their own and go on without the driver.
    """

    folder: Path
    argv: list[str]
    host: str
    pid: int
    gpus: list[str]
    configs: list[TrainConfig]
    queued: bool = False

    @classmethod
    def of_this_process(
        cls, folder: Path, gpus: Sequence[str], configs: Sequence[TrainConfig], *, queued: bool = False
    ) -> Manifest:
        """Return a manifest with this process as the driver."""
        return cls(folder, sys.argv, socket.gethostname(), os.getpid(), list(gpus), list(configs), queued)

    def write(self) -> None:
        """Write `orders.json` for `read`."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "folder"}
        write_json(self.folder / "orders.json", content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read what the driver has written."""
        content = json.loads(read_text(folder / "orders.json"))
        configs = [from_plain(config) for config in content.pop("configs")]
        return cls(folder=folder, configs=configs, **content)

    def note_start(self, config: TrainConfig) -> None:
        """Mark a run as started by this sweep, for `has_started`."""
        (self.folder / BEGUN).mkdir(exist_ok=True)
        (self.folder / BEGUN / run_directory(config).name).touch()

    def resuming(self, config: TrainConfig) -> TrainConfig:
        """Let a run that a queue starts again go on: `force` has had its effect, and the first job may still save."""
        return (
            dataclasses.replace(config, force=False, wait=True)
            if has_started(self.folder, run_directory(config))
            else config
        )

    def stop(self, number: int) -> None:
        """Ask all workers to stop their jobs with this signal, and to start no others."""
        write_text(self.folder / "stop", str(number))

    def stopped(self) -> int | None:
        """Return the signal that jobs shall stop with: that of `stop`, SIGTERM if the driver has ended, or None."""
        with contextlib.suppress(FileNotFoundError):
            return int(read_text(self.folder / "stop"))
        return int(signal.SIGTERM) if self.driver_has_ended() else None

    def driver_has_ended(self) -> bool:
        """Return whether the driver has ended; False for jobs on other machines and in a queue, which outlive it."""
        return not self.queued and self.host == socket.gethostname() and not _exists(self.pid)

    @contextlib.contextmanager
    def gpu(self, device: str) -> Iterator[dict[str, str]]:
        """Hold a GPU for one job, waiting until one is free, and yield the environment that shows the job no other GPU.

        Args:
            device: as configured; a job for the CPU, or for a certain GPU, takes none.
        """
        if not self.gpus or device not in ("auto", "cuda"):
            yield {}
            return
        while self.stopped() is None:
            for gpu in self.gpus:
                with contextlib.suppress(Timeout), FileLock(self.folder / f"gpu-{gpu}.lock", timeout=0):
                    yield {"CUDA_VISIBLE_DEVICES": gpu}
                    return
            time.sleep(POLL_S)
        yield {}


def has_started(folder: Path, directory: Path) -> bool:
    """Return whether the sweep of this folder has started the run of a directory."""
    return (folder / BEGUN / directory.name).exists()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def from_plain(content: dict[str, Any]) -> TrainConfig:
    """Return the config that `dataclasses.asdict` has made a dict of."""
    return cast(TrainConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), content)))


def supervise(configs: Sequence[TrainConfig], manifest: Manifest, tick: Callable[[], object] = int) -> None:
    """Train runs in one child process, unless they are finished already or the sweep has been stopped.

    Returns when the child has ended, in whatever way; the run directories tell the outcome. Should something end this
    process instead, the child saves its state and ends too.

    Args:
        configs: resolved; several share shape and protocol and are trained as a fleet. The child writes to `log.txt`
            in the first directory there is.
        manifest: of the sweep they belong to.
        tick: called several times a second while the child is at work.

    Raises:
        OSError: a directory cannot be written.
    """
    configs = [manifest.resuming(config) for config in configs]
    directories = [RunDirectory(run_directory(config)) for config in configs]
    finished = [
        directory.result() is not None and not config.force
        for config, directory in zip(configs, directories, strict=True)
    ]
    if all(finished) or manifest.stopped() is not None:
        return
    for directory in directories:
        with contextlib.suppress(OSError):  # the child will meet the same error, and leave this run out
            directory.path.mkdir(parents=True, exist_ok=True)
            (directory.path / "failed.json").unlink(missing_ok=True)
    log = next((made for made in directories if made.path.is_dir()), directories[0]).path / LOG
    with StopFlag() as flag, manifest.gpu(configs[0].device) as environment, log.open("ab") as stream:
        if manifest.stopped() is not None:
            return
        stream.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} {socket.gethostname()}\n".encode())
        stream.flush()
        begin = stream.tell()
        for config in configs:
            manifest.note_start(config)
        code = watch(_start(configs, manifest, stream, environment), manifest, flag, tick)
        stopped = flag.received is not None or manifest.stopped() is not None
    interrupted = code in [128 + number for number in STOP_SIGNALS] or (stopped and code < 0)
    output = log.read_bytes()[begin:].decode(errors="replace")
    for config, directory in zip(configs, directories, strict=True):
        if not interrupted and directory.result() is None and not (directory.path / "failed.json").exists():
            _record_failure(config, directory, ending(code), output)
        if manifest.queued:  # of other jobs the driver of the sweep says so
            print(f"{directory.status()}: {directory.path}", file=sys.stderr, flush=True)


def _start(
    configs: Sequence[TrainConfig], manifest: Manifest, stream: IO[bytes], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a child on the runs, in a session of its own, so that Ctrl-C reaches it through its parent alone."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bsnn_cli.runs.job", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # The working directory is a user's: no file in it may stand in for a module. A crash leaves a traceback.
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONFAULTHANDLER": "1"} | environment,
    )
    content = {"argv": manifest.argv, "configs": [dataclasses.asdict(config) for config in configs]}
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its exit code tells
        assert child.stdin is not None
        with child.stdin:
            child.stdin.write(json.dumps(content).encode())
    return child


def watch(child: subprocess.Popen[bytes], manifest: Manifest, flag: StopFlag, tick: Callable[[], object] = int) -> int:
    """Wait for the child, pass the first stop signal on to it, and return its exit code, or minus a signal number."""
    try:
        signalled = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_S)
            tick()
            number = flag.received if flag.received is not None else manifest.stopped()
            if number is not None and not signalled:
                child.send_signal(number)
                signalled = True
    finally:  # also when a scheduler's signal handler ends this process with an exception
        if child.poll() is None:
            child.terminate()
            child.wait()


def ending(code: int) -> str:
    """Say how a child has ended.

    Args:
        code: exit code, or minus a signal number.
    """
    if code >= 0:
        return f"exited with code {code} before the end of the run"
    guess = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{guess}"


def _record_failure(config: TrainConfig, directory: RunDirectory, reason: str, output: str) -> None:
    """Write `failed.json` for a child that could not do it itself."""
    errors = [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]
    errors_of_run = [error for error in errors if error.startswith(f"{directory.path}:")]
    reason = next(reversed(errors_of_run or errors), reason)
    try:
        with directory.lock():
            directory.claim(config)
            directory.fail(reason, output[-TAIL:])
    except RunLockedError:
        pass  # another process is working on this run, and that is why the child has ended
    except (BsnnError, OSError) as problem:
        print(f"error: {directory.path}: {reason}; and that could not be noted: {problem}", file=sys.stderr)


def main() -> None:
    """Read configs from standard input, train them, and end with an exit code: the child's whole work."""
    streams.prepare()
    die_with_parent(int(sys.argv[1]))
    content = json.load(sys.stdin)
    sys.argv = content["argv"]  # for the provenance of the runs
    from bsnn_cli.runs import runner

    try:
        runner.run([runner.prepare(from_plain(config)) for config in content["configs"]])
    except BsnnError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the parent ends, even if it is killed. Linux; elsewhere the run goes on."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended before that
            sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
