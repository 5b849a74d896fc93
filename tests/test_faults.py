"""What a machine can do to a run, done to it: each fault is real, and each run ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bsnn_cli.common import files
from bsnn_cli.datasets import data
from bsnn_cli.networks import fleet, training
from bsnn_cli.runs import checkpoint, runner
from bsnn_cli.runs.checkpoint import CURRENT, PREVIOUS
from bsnn_cli.runs.directory import RunDirectory
from tests import forked
from tests.conftest import small

RUN = small("optim.epochs=12", "model.norm=batch", "dataset.validation=0.1", "checkpoint.every_s=0")
"""A run of less than a second with everything in its state that a state can have."""

STEPS = 21 * 12


def directory(root: Path) -> Path:
    [path] = root.glob("outputs/runs/*/*/*")
    return path


def ending(path: Path) -> tuple[str, list[str]]:
    """What must not depend on what has happened: the weights, and the metrics without the times."""
    rows = [line.split(",") for line in (path / "epochs.csv").read_text().splitlines()]
    timing = rows[0].index("elapsed_s")
    return checkpoint.digest(checkpoint.load(path / "weights.pt")), [
        ",".join(r[:timing] + r[timing + 1 :]) for r in rows
    ]


def resumed_at(output: str) -> list[int]:
    return [int(steps) for steps in re.findall(r"^resuming after .*\((\d+) steps\)", output, re.MULTILINE)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A working directory that any user may enter and write to."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    root = tmp_path_factory.mktemp("uninterrupted")
    ended = forked.run(root, *RUN)
    assert ended.code == 0, ended.output
    return ending(directory(root))


def save_all_the_time() -> None:
    """Half of the time goes into saving, so that random moments find saves."""
    runner.SAVING_SHARE = 1.0


def saved_at(folder: Path) -> dict[Path, int]:
    """When each newest checkpoint was written, in ns; without one that is just being replaced."""
    times = {}
    for path in folder.glob(f"outputs/runs/*/*/*/{CURRENT}"):
        with contextlib.suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime_ns
    return times


def killed_at_random(folder: Path, arguments: list[str], kills: int, seed: int) -> None:
    """Kill a run so often: every other time in the middle of a save; each process goes on from a step above 0."""
    moments = random.Random(seed)
    pending = ".checkpoint.next.pt.tmp"
    at = 0
    for kill in range(kills):
        known = saved_at(folder)
        (folder / "output.txt").unlink(missing_ok=True)
        process = forked.start(folder, *arguments, inject=save_all_the_time)
        deadline = time.monotonic() + 60
        while all(known.get(path) == moment for path, moment in saved_at(folder).items()):  # until it has made headway
            assert process.is_alive(), (folder / "output.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if kill % 2:
            while process.is_alive() and not (directory(folder) / pending).exists():
                pass
        else:
            time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run has ended before it could be killed"
        steps = resumed_at((folder / "output.txt").read_text())
        assert len(steps) == (kill > 0)
        assert all(step >= max(at, 1) for step in steps)  # equal where it was killed while evaluating
        at = max([at, *steps])


def test_killed_again_and_again_it_ends_the_same_to_the_byte(folder: Path) -> None:
    arguments = [*RUN, "optim.epochs=100"]
    killed_at_random(folder, arguments, kills=4, seed=0)
    last = forked.run(folder, *arguments)
    assert last.code == 0, last.output
    assert resumed_at(last.output)[0] > 0
    reached = ending(directory(folder))
    forked.run(folder, *arguments, "force=true")
    assert ending(directory(folder)) == reached


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
def test_hundreds_of_kills(seed: int, folder: Path) -> None:
    arguments = [*RUN, "optim.epochs=100", f"seed={seed}"]
    killed_at_random(folder, arguments, kills=12, seed=seed)
    last = forked.run(folder, *arguments)
    assert last.code == 0, last.output
    reached = ending(directory(folder))
    forked.run(folder, *arguments, "force=true")
    assert ending(directory(folder)) == reached


def stop_in_epoch(epoch: int, number: int) -> None:
    """Send this process a signal after the second step of an epoch."""
    original = training.train

    def train(fleet: object, data: object, position: training.Position, **options: object) -> Iterator[object]:
        for event in original(fleet, data, position, **options):  # type: ignore[arg-type]
            if (position.epoch, position.batch) == (epoch, 2):
                os.kill(os.getpid(), number)
            yield event

    runner.train = train  # type: ignore[assignment]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of a run that was stopped in its eighth epoch, with an older checkpoint beside the newest."""
    root = tmp_path_factory.mktemp("interrupted")
    for epoch in (4, 8):
        ended = forked.run(root, *RUN, "checkpoint.every_s=3600", inject=stop_in_epoch, extra=(epoch, signal.SIGTERM))
        assert ended.code == 128 + signal.SIGTERM, ended.output
    assert (directory(root) / PREVIOUS).exists()
    return root


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "bit flipped": flip_a_bit,
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    damage: str, interrupted: Path, folder: Path, expected: tuple[str, list[str]]
) -> None:
    shutil.copytree(interrupted / "outputs", folder / "outputs")
    newest = directory(folder) / CURRENT
    DAMAGE[damage](newest)
    ended = forked.run(folder, *RUN)
    assert ended.code == 0, ended.output
    assert resumed_at(ended.output) == [21 * 4 + 2]
    assert (f"warning: {newest.relative_to(folder)}" in ended.output) == (damage != "deleted")
    assert ending(directory(folder)) == expected


KINDS = ["config.yaml", "provenance.json", "epochs.csv", "checkpoint.next.pt", "weights.pt", "result.json"]
"""Everything that a run writes, but for `failed.json`, which meets the same fault after each of these."""


def fail_to_write(kind: str, fault: str) -> None:
    """From the first write of this kind on, the disk is full or the folder is closed to this user."""
    original = files.write_atomically

    def write(path: Path, content: Callable[..., object]) -> None:
        if path.name == kind:
            if fault == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            else:
                path.parent.chmod(0o555)
                if os.geteuid() == 0:
                    os.setuid(65534)  # root may write anywhere
        try:
            original(path, content)
        except OSError:
            if fault == "full":  # the report goes into a file too
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            raise

    files.write_atomically = write
    checkpoint.write_atomically = write


@pytest.mark.parametrize("fault", ["full", "denied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_is_loud_and_costs_nothing_that_was_saved(
    kind: str, fault: str, folder: Path, expected: tuple[str, list[str]]
) -> None:
    ended = forked.run(folder, *RUN, inject=fail_to_write, extra=(kind, fault))
    assert ended.code == (2 if kind == "config.yaml" else 1), ended.output
    [line] = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert kind in line
    assert ("File too large" if fault == "full" else "Permission denied") in line
    assert "Traceback" not in ended.output
    path = directory(folder)
    path.chmod(0o777)
    assert not list(path.glob(".*.tmp")) or fault == "denied"
    assert not (path / "result.json").exists()
    for state in path.glob("checkpoint*.pt"):
        checkpoint.load(state)
    again = forked.run(folder, *RUN)
    assert again.code == 0, again.output
    assert ending(path) == expected


def signal_when_called(owner: object, name: str, number: int) -> None:
    """Send this process a signal whenever it gets to a function, and make it slow where that must not matter."""
    original = getattr(owner, name)

    def function(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), number)
        if owner is data:
            time.sleep(3600)
        return original(*arguments, **options)

    setattr(owner, name, function)


PHASES = {
    "fetching": (data, "load", signal.SIGTERM),
    "locking": (RunDirectory, "claim", signal.SIGUSR1),
    "drawing the initial weights": (fleet.Fleet, "_start", signal.SIGINT),
    "first step": (fleet.Fleet, "step", signal.SIGUSR2),
    "evaluation": (fleet.Fleet, "logits", signal.SIGTERM),
    "saving": (checkpoint, "rotate", signal.SIGUSR1),
}


def by_name(phase: str) -> None:
    signal_when_called(*PHASES[phase])


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_is_heard_in_every_phase(phase: str, folder: Path, expected: tuple[str, list[str]]) -> None:
    number = PHASES[phase][2]
    ended = forked.run(folder, *RUN, inject=by_name, extra=(phase,))
    assert ended.code == 128 + number, ended.output
    assert "the same command goes on from here" in ended.output
    assert "Traceback" not in ended.output
    again = forked.run(folder, *RUN)
    assert again.code == 0, again.output
    assert bool(resumed_at(again.output)) == (phase in ("first step", "evaluation", "saving"))
    assert all(step > 0 for step in resumed_at(again.output))
    assert ending(directory(folder)) == expected


def test_a_signal_while_the_end_is_written_comes_too_late_to_matter(
    folder: Path, expected: tuple[str, list[str]]
) -> None:
    ended = forked.run(folder, *RUN, inject=signal_when_called, extra=(RunDirectory, "finish", signal.SIGTERM))
    assert ended.code == 0, ended.output
    assert ending(directory(folder)) == expected


def test_who_waits_for_another_process_takes_over_its_result(folder: Path, expected: tuple[str, list[str]]) -> None:
    first = forked.start(folder, *RUN, "optim.epochs=12")
    deadline = time.monotonic() + 60
    while not list(folder.glob("outputs/runs/*/*/*/epochs.csv")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = forked.run(folder, *RUN, "wait=true")
    first.join()
    assert first.exitcode == second.code == 0, second.output
    assert ending(directory(folder)) == expected
    sessions = json.loads((directory(folder) / "provenance.json").read_text())
    assert sessions["earlier_sessions"] == []


def backwards() -> None:
    """The time of day runs backwards, an hour a look."""
    start = iter(range(10**9, 0, -3600))
    time.time = lambda: float(next(start))
    time.time_ns = lambda: next(start) * 10**9


def test_a_clock_that_goes_backwards_changes_nothing(
    interrupted: Path, folder: Path, expected: tuple[str, list[str]]
) -> None:
    shutil.copytree(interrupted / "outputs", folder / "outputs")
    for path in directory(folder).iterdir():
        os.utime(path, (4e9, 4e9))  # in the year 2096
    ended = forked.run(folder, *RUN, inject=backwards)
    assert ended.code == 0, ended.output
    assert resumed_at(ended.output) == [21 * 8 + 2]
    assert ending(directory(folder)) == expected


def test_outputs_may_lie_on_another_file_system(folder: Path, expected: tuple[str, list[str]]) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == folder.stat().st_dev:
        pytest.skip("needs two file systems")
    with tempfile.TemporaryDirectory(dir=shared) as other:
        ended = forked.run(folder, *RUN, f"output_root={other}/outputs")
        assert ended.code == 0, ended.output
        assert ending(directory(Path(other))) == expected
    assert not (folder / "outputs").exists()
