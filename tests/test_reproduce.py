"""`bsnn reproduce` as a newcomer uses it: the work, stopping and going on, and what cannot be done."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from bsnn_cli import cli
from bsnn_cli.figures import figures
from bsnn_cli.report.export import export
from bsnn_cli.reproducing import agenda, reproduction
from bsnn_cli.results.store import Results
from bsnn_cli.runs import job
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.profiles import ReproduceConfig
from bsnn_cli.settings.validation import resolve
from tests.conftest import BSNN
from tests.drawing import measured
from tests.reproducing import DEAD_MIRROR, TINY, in_this_process, profile
from tests.storage import PROVENANCE, store
from tests.test_bench_figures import benched

SOUND = (
    f">train -m {TINY} activation=tanh_gpn,selu_gpn model.weights=unit_rows,orthogonal optim.epochs=2",
    f"train -m {TINY} activation=selu_gpn,tanh_gpn optim.epochs=2",
)
ARCHIVED = ("runs", "propagation", "bench")


@pytest.mark.torture
def test_it_runs_what_is_missing_makes_everything_and_goes_on_from_the_copy(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unsound = [
        "propagate -m activation=relu_gpn model.depth=3 model.width=20,1000000 activation.root=upper,lower",
        "train -m dataset=cifar10",
    ]
    monkeypatch.setenv("BSNN_DATA_MIRROR", DEAD_MIRROR)
    places = [f"output_root={here}/outputs", f"data_root={here}/data"]
    timed(here / "outputs")
    assert cli.dispatch(["reproduce", profile(*SOUND, *unsound), "export=results", *places]) == 1
    said = capfd.readouterr()
    assert "step 1: 4 runs: 4 to run" in said.out
    assert "step 2: 2 runs: 2 shared with a step above" in said.out
    assert f"CIFAR-10 is absent, and its cells stay dashed: dataset.root={here}/data" in said.out
    assert f"failed: step 3: see {here}/outputs/sweeps/" in said.err
    assert "1 failed; the same command tries them again" in said.err

    runs = pd.read_csv("results/runs.csv")
    assert len(runs) == 4
    assert set(runs["networks"]) == {2}  # alike in all but activation and seed: trained together
    constraint = pd.read_csv("outputs/tables/constraint.csv")
    assert list(constraint["measured"]) == [1] * 4
    exact = constraint[constraint["weights"] == "orthogonal"]["orthogonality_error"]
    assert (exact < 1e-5).all()
    for name in ("README.md", "constraint.csv", "roots.png", "test_accuracy.csv", "captions.md"):
        assert (Path("results") / name).exists() == (name != "captions.md")
    assert telling(here, f'"{socket.gethostname()}"') == []
    monkeypatch.setattr(figures, "FIGURES", ("constraint",))  # as before
    assert otherwise_from_a_copy(capfd) == []


def test_a_copy_of_all_results_makes_the_same_again(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", ("constraint",))
    for activation in ("tanh_gpn", "selu_gpn"):
        for weights in ("unit_rows", "orthogonal"):
            run = trained(here, activation, weights)
            measured(here / "outputs", activation, run=str(run), depth=3, width=20, weights=weights)
    timed(here / "outputs")
    assert cli.dispatch(["reproduce", profile(*SOUND), "export=results", f"output_root={here}/outputs"]) == 0
    output = capfd.readouterr().out
    assert "step 1: 4 runs: 4 finished" in output
    assert "signals after training: step 1: 4 measurements: 4 finished" in output
    assert "step 2: 2 runs: 2 shared with a step above" in output

    runs = pd.read_csv("results/runs.csv")
    command = runs[(runs["activation"] == "tanh") & (runs["weights"] == "orthogonal")]["command"].item()
    assert command == (
        "bsnn train activation=tanh_gpn dataset=digits model.depth=3 model.width=20 model.weights=orthogonal "
        "optim.lr=0.01 optim.epochs=2 seed=0"
    )
    constraint = pd.read_csv("results/constraint.csv")
    assert list(constraint["weights"]) == ["unit_rows", "orthogonal"] * 2
    assert list(constraint["measured"]) == [1] * 4
    assert list(constraint["step_ms"].dropna()) == [2.0, 2.5]  # of SELU-GPN
    assert Path("outputs/report/index.html").stat().st_size > 1e6
    assert Path("results/test_accuracy.csv").exists()
    page = Path("results/README.md").read_text()
    assert "| SELU" in page
    assert "## Speed\n\n`bsnn bench`: on paper" in page
    assert "![constraint](constraint.png)\n" in page
    assert telling(here, str(PROVENANCE["host"]), str(PROVENANCE["command"])) == []
    assert otherwise_from_a_copy(capfd) == []


def trained(here: Path, activation: str, weights: str = "unit_rows") -> Path:
    """Store a run of `SOUND`, and a file for its weights."""
    values = {"model__depth": 3, "model__width": 20, "model__weights": weights, "optim__lr": 0.01, "optim__epochs": 2}
    places = {"dataset__root": f"{here}/data"}
    run = store(here / "outputs", activation, [70.0, 80.0], dataset="digits", **values, **places)
    (run.path / "weights.pt").touch()
    return run.path


def telling(*words: object) -> list[Path]:
    """The files in `results` that hold one of these words, or weights."""
    files = [path for path in Path("results").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".yaml", ".csv", ".md"}
    found = [path for path in files if any(str(word).encode() in path.read_bytes() for word in words)]
    return [*found, *Path("results").rglob("*.pt")]


def otherwise_from_a_copy(capfd: pytest.CaptureFixture[str]) -> list[Path]:
    """The tables and the archived files that come out otherwise from a copy of what is archived, where all is done."""
    for name in ARCHIVED:
        shutil.copytree(f"results/{name}", f"elsewhere/{name}")
    capfd.readouterr()
    assert cli.dispatch(["reproduce", profile(*SOUND), "output_root=elsewhere", "export=again"]) == 0
    assert "all is done" in capfd.readouterr().out
    pairs = {path: Path("elsewhere/tables") / path.name for path in Path("outputs/tables").iterdir()}
    archived = [path for name in ARCHIVED for path in Path("results", name).rglob("*") if path.is_file()]
    pairs |= {path: "again" / path.relative_to("results") for path in archived}
    return [first for first, second in pairs.items() if first.read_bytes() != second.read_bytes()]


def test_what_fails_is_named_and_all_else_is_done(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSNN_DATA_MIRROR", DEAD_MIRROR)
    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    monkeypatch.setattr(job, "supervise", in_this_process)
    monkeypatch.setattr(reproduction, "make_all", lambda *_: "made")
    trained(here, "selu_gpn")
    steps = profile(
        f">train -m {TINY} activation=selu_gpn,tanh_gpn optim.epochs=2",
        "train dataset=cifar10",
        f"train {TINY} activation=relu_gpn optim.epochs=1",
    )
    assert cli.dispatch(["reproduce", steps]) == 1
    said = capfd.readouterr()
    assert "step 1: 2 runs: 1 finished, 1 to run" in said.out
    assert "step 2: 1 run: 1 without data" in said.out
    assert "CIFAR-10 is absent, and its cells stay dashed: dataset.root=data" in said.out
    assert "left in all" in said.err
    assert re.findall(r"(\w+), seed 0: test \d\d\.\d\d %", said.err) == ["tanh_gpn", "relu_gpn"]
    assert said.out.endswith("made\n")
    [log] = re.findall(r"failed: signals after training: step 1: see (outputs/sweeps/.*)", said.err)
    assert "needs the weights of a finished run" in Path(log).read_text()
    assert "1 failed; the same command tries them again" in said.err
    assert cli.dispatch(["reproduce", steps, "dry_run=true"]) == 0
    output = capfd.readouterr().out
    assert "step 1: 2 measurements: 1 to run, 1 finished" in output
    assert "step 3: 1 run: 1 finished" in output


def timed(root: Path) -> None:
    """Store a benchmark with networks like those of `TINY`."""
    table = benched(root, growth=False)
    ours = table[table["implementation"] == "bsnn"].assign(comparison="weights=orthogonal", depth=3, width=20)
    both = [ours.assign(weights=weights, step_ms=ms) for weights, ms in (("unit_rows", 2.0), ("orthogonal", 2.5))]
    pd.concat([table, *both]).to_csv(root / "bench" / "bench.csv", index=False)
    (root / "bench" / "bench.md").write_text("on paper\n")


INTERRUPTIBLE = f"train -m {TINY} activation=selu_gpn"


def test_interrupted_it_says_so_and_the_same_command_goes_on(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while changed(here) == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    monkeypatch.setattr(job, "POLL_S", 0.02)
    monkeypatch.setattr(reproduction, "make_all", lambda *_: "")
    command = ["reproduce", profile(f"{INTERRUPTIBLE} optim.epochs=30 checkpoint.every_s=0.05")]
    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stopped:
        cli.dispatch(command)
    assert stopped.value.code == 130
    assert "the same command goes on from here" in capfd.readouterr().err
    monkeypatch.setattr(job, "supervise", in_this_process)
    assert cli.dispatch(command) == 0
    said = capfd.readouterr()
    assert "1 run: 1 to resume" in said.out
    assert said.err.count("resuming after") == 1


@pytest.mark.torture
def test_killed_anywhere_it_leaves_nothing_at_work_and_goes_on(here: Path) -> None:
    command = [str(BSNN), "reproduce", profile(f"{INTERRUPTIBLE} optim.epochs=60 checkpoint.every_s=0")]
    seen = -1
    for number in [signal.SIGINT, signal.SIGKILL] * 3:
        process = subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while (saved := changed(here)) in (0, seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -9)
        assert ("the same command goes on from here" in errors) == (number == signal.SIGINT)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert alive == []
        seen = max(saved, changed(here))
    again = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "1 run: 1 to resume" in again.stdout
    [log] = here.glob("outputs/runs/*/*/*/log.txt")
    assert log.read_text().count("resuming after") == 6


def changed(folder: Path) -> int:
    """When a checkpoint was written last; 0 if there is none, or one is just being replaced."""
    with contextlib.suppress(FileNotFoundError):
        return max((path.stat().st_mtime_ns for path in folder.glob("outputs/runs/*/*/*/checkpoint.pt")), default=0)
    return 0


def test_small_networks_share_a_fleet_and_large_ones_do_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(agenda.plan, "step_seconds", lambda _: 0.5)
    config = reproduction.ReproduceConfig(device="cpu")

    def sizes(depth: int, width: int) -> list[int]:
        configs = [TrainConfig(seed=seed) for seed in range(30)]
        for each in configs:
            each.model.depth, each.model.width = depth, width
        step = agenda.Step("", "train", [""], configs, [resolve(each) for each in configs])
        return [len(job.configs) for job in reproduction.jobs(config, [step], {})]

    assert sizes(20, 100) == [24, 6]
    assert sizes(200, 500) == [1] * 30


def test_time_left_is_corrected_by_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reproduction.time, "monotonic", lambda: now[0])
    step = agenda.Step("", "train", [""], [], [])
    other = agenda.Step("", "propagate", ["activation=tanh"], [], [])
    todo = [reproduction.Job(step, [], 10.0)] * 3 + [reproduction.Job(other, [], 7.0)]
    monkeypatch.setattr(reproduction.Job, "name", "")
    outlook = reproduction.Outlook(todo)
    outlook.begin(1, todo[0])
    assert outlook.seconds() == 37
    now[0] = 4.0
    assert outlook.seconds() == 33
    now[0] = 20.0  # twice as long as estimated
    outlook.end()
    outlook.begin(2, todo[1])
    assert outlook.seconds() == 20 + 20 + 7
    outlook.close()


def test_an_export_names_the_command_that_makes_it() -> None:
    config = ReproduceConfig(seeds=3, batch_norm=True, datasets=["mnist"], extras=False, threads=1)
    config.profile.name, config.profile.activations = "short", "selu,selu_gpn"
    told = "seeds=3 batch_norm=true datasets=[mnist] extras=false threads=1"
    assert reproduction.command_line(config) == (
        f"bsnn reproduce profile=short 'profile.activations=\"selu,selu_gpn\"' {told}"
    )


def test_a_report_exports_what_is_stored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So results of another machine, copied into an output folder, become tables and figures of a repository."""
    run = store(here / "outputs", "tanh_gpn", [50.0, 60.0])
    (run.path / "weights.pt").touch()
    assert cli.dispatch(["report", "export=results"]) == 0
    assert "Copied to results" in capsys.readouterr().out
    assert "bsnn report export=results" in Path("results/README.md").read_text()
    assert len(pd.read_csv("results/runs.csv")) == 1
    for name in ("test_accuracy.csv", "curves_mnist.png", f"{run.path.relative_to(here / 'outputs')}/epochs.csv"):
        assert Path("results", name).exists()
    assert telling(here) == []
    assert cli.dispatch(["report", "export=outputs"]) == 2
    assert "is the output folder itself" in capsys.readouterr().err


def test_an_export_without_a_benchmark_keeps_an_older_one(tmp_path: Path) -> None:
    store(tmp_path / "outputs", "tanh_gpn", [50.0])
    older = tmp_path / "results" / "bench" / "bench.csv"
    older.parent.mkdir(parents=True)
    older.write_text("step_ms\n")
    export(Results(tmp_path / "outputs"), tmp_path / "results", "bsnn reproduce")
    assert older.read_text() == "step_ms\n"
