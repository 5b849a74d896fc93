"""`bsnn reproduce` as a newcomer uses it: the plan, the work, stopping and going on, and what cannot be done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from bsnn_cli import cli, reproduce
from bsnn_cli.figures import figures
from bsnn_cli.gpn import custom
from bsnn_cli.measuring import propagation_store
from bsnn_cli.report.export import export
from bsnn_cli.reproduce import Step
from bsnn_cli.results.store import Results
from bsnn_cli.runs import estimate, job, plan
from bsnn_cli.runs.directory import RunResult
from bsnn_cli.runs.estimate import Estimate, Estimator
from bsnn_cli.settings.config import ActivationConfig, PropagateConfig, TheoryConfig, TrainConfig
from bsnn_cli.settings.validation import resolve
from tests.conftest import BSNN
from tests.drawing import measured
from tests.reproducing import DEAD_MIRROR, TINY, command_in_this_process, in_this_process, profile
from tests.storage import PROVENANCE, store
from tests.test_bench_figures import benched

SOUND = (
    f">train -m {TINY} activation=tanh_gpn,selu_gpn model.weights=unit_rows,orthogonal optim.epochs=2",
    f"train -m {TINY} activation=selu_gpn,tanh_gpn optim.epochs=2",
)
ARCHIVED = ("runs", "propagation", "bench")


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("smoke", [12, 12, 12, 24]),
        ("short", [12, 12, 12, 12, 12, 24]),
        ("paper", [24] * 4),
        ("depth_aware", [12, 2, 4]),
    ],
)
def test_every_profile_composes_and_only_looks(
    name: str, runs: list[int], here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    monkeypatch.setattr(custom, "tailored", lambda base, *_: base)  # half a second each
    seeds = 2 if name == "paper" else 1
    assert cli.dispatch(["reproduce", f"profile={name}", "dry_run=true", f"seeds={seeds}", "batch_norm=true"]) == 0
    output = capfd.readouterr().out
    assert f"profile {name}: " in output
    assert "in all about" in output
    assert [int(n) for n in re.findall(r"(\d+) runs: ", output)] == runs
    assert ("MNIST is not here; it is fetched" in output) == (name != "smoke")
    assert ("CIFAR-10 is not here; it is fetched" in output) == (name in ("short", "paper"))
    assert list(here.iterdir()) == []


def test_what_is_finished_needs_no_data_and_what_is_not_waits_for_it(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSNN_DATA_MIRROR", DEAD_MIRROR)
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    monkeypatch.setattr(reproduce, "make_all", lambda *_: "")
    store(here / "outputs", "tanh_gpn", [50.0])
    assert cli.dispatch(["reproduce", profile("train activation=tanh_gpn")]) == 0
    assert "absent" not in capfd.readouterr().out
    assert cli.dispatch(["reproduce", profile("train activation=tanh_gpn", ">train activation=tanh")]) == 0
    said = capfd.readouterr()
    assert "step 1: 1 run: 1 finished" in said.out
    assert "step 2: 1 run: 1 without data" in said.out
    assert "MNIST is absent, and its cells stay dashed" in said.out
    assert "failed" not in said.err


def test_a_profile_that_contradicts_itself_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    assert cli.dispatch(["reproduce", profile("theory trials=20", "theory trials=30")]) == 2
    assert "outputs/theory holds one study, and a step above asks for another" in capfd.readouterr().err
    assert cli.dispatch(["reproduce", profile("train -m dataset=digits,mnist")]) == 2
    assert "trains on several datasets; give each a step of its own" in capfd.readouterr().err
    assert cli.dispatch(["reproduce", "export=./outputs"]) == 2
    assert "export=./outputs: is the output folder itself" in capfd.readouterr().err
    assert cli.dispatch(["reproduce", profile("bench")]) == 2
    assert "bench: must begin with one of train, propagate, theory" in capfd.readouterr().err


def test_datasets_leave_out_the_trainings_on_others(
    here: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    steps = profile(f"train {TINY}", "train dataset=cifar10", "theory")
    assert cli.dispatch(["reproduce", steps, "datasets=[digits]", "dry_run=true"]) == 0
    output = capfd.readouterr().out
    assert "step 1: 1 run: 1 to run" in output
    assert "step 2" not in output
    assert "step 3: " in output
    assert cli.dispatch(["reproduce", steps, "datasets=[cifar]"]) == 2
    assert "datasets=[cifar]: must be a list of mnist, cifar10" in capfd.readouterr().err


def test_a_step_plans_the_runs_of_its_experiment(
    here: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    step = "train experiment=depth_aware dataset=digits model.depth=3,4 model.width=6 activation.separation=0.95"
    assert cli.dispatch(["reproduce", profile(step), "dry_run=true"]) == 0
    assert "step 1: 8 runs: 8 to run" in capfd.readouterr().out  # the experiment's four activations, at two depths


def test_a_damaged_summary_is_named_and_left_out(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    measured(here / "outputs", "tanh")
    [path] = here.glob("outputs/propagation/tanh/*/summary.json")
    for text in ("{", "{}"):
        path.write_text(text)
        assert propagation_store.load_all("outputs") == []
        assert "outputs/propagation/tanh" in capfd.readouterr().err


def test_theory_is_finished_only_with_the_same_settings(here: Path) -> None:  # noqa: ARG001
    arguments = ["theory", "activation=tanh", "trials=20", "largest_width=64", "depth=3", "width=8", "networks=2"]
    assert cli.dispatch(arguments) == 0
    tanh = ActivationConfig(name="tanh", gpn=False)
    asked = TheoryConfig(activation=tanh, trials=20, largest_width=64, depth=3, width=8, networks=2)
    assert reproduce.finished(asked)
    assert reproduce.finished(dataclasses.replace(asked, output_root=str(Path("outputs").resolve())))
    assert not reproduce.finished(dataclasses.replace(asked, trials=21))
    assert not reproduce.finished(dataclasses.replace(asked, activation=None))
    Path("outputs/theory/config.yaml").unlink()
    assert not reproduce.finished(asked)


def test_what_is_no_longer_there_is_not_measured(here: Path) -> None:
    run = here / "outputs" / "runs" / "digits" / "selu_gpn" / "0123456789-s0"
    run.mkdir(parents=True)
    config = PropagateConfig(run=str(run))
    assert not reproduce.finished(config)
    result = {field.name: None for field in dataclasses.fields(RunResult)} | {"status": "done"}
    (run / "result.json").write_text(json.dumps(result))
    assert reproduce.finished(config)  # the weights were not kept
    (run / "weights.pt").touch()
    assert not reproduce.finished(config)
    measured(here / "outputs", "selu_gpn", run=str(run))
    assert reproduce.finished(dataclasses.replace(config, output_root=str(here / "outputs")))
    of_images = PropagateConfig(run=str(run), output_root=str(here / "outputs"))
    of_images.propagate.source = "dataset"
    assert not reproduce.finished(of_images)


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
    assert re.search("error: model.depth=3, model.width=1000000, .*: need about .* GB of memory", said.err)
    assert "failed: step 3: exited with code 1; its messages above say why" in said.err
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
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    monkeypatch.setattr(job, "supervise", in_this_process)
    monkeypatch.setattr(reproduce, "run_command", command_in_this_process)
    monkeypatch.setattr(reproduce, "make_all", lambda *_: "made")
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
    assert re.findall(r"(\w+) +0 +done +\d\d\.\d\d %", said.out) == ["selu_gpn", "tanh_gpn", "relu_gpn"]
    assert said.out.endswith("made\n")
    assert "needs the weights of a finished run" in said.err
    assert "failed: signals after training: step 1: exited with code 1; its messages above say why" in said.err
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

    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    monkeypatch.setattr(reproduce, "POLL_S", 0.02)
    monkeypatch.setattr(reproduce, "ANNOUNCE_S", 0.5)
    monkeypatch.setattr(reproduce, "make_all", lambda *_: "")
    command = ["reproduce", profile(f"{INTERRUPTIBLE} optim.epochs=30 checkpoint.every_s=0.05")]
    threading.Thread(target=interrupt).start()
    with pytest.raises(SystemExit) as stopped:
        cli.dispatch(command)
    assert stopped.value.code == 130
    errors = capfd.readouterr().err
    assert "the same command goes on from here" in errors
    assert errors.count("[1/1] step 1; about ") > 1  # at the start, and now and then
    monkeypatch.setattr(job, "supervise", in_this_process)
    monkeypatch.setattr(reproduce, "run_command", command_in_this_process)
    assert cli.dispatch(command) == 0
    said = capfd.readouterr()
    assert "1 run: 1 to resume" in said.out
    assert said.err.count("resuming after") == 1


@pytest.mark.torture
def test_killed_anywhere_it_leaves_nothing_at_work_and_goes_on(here: Path) -> None:
    command = [str(BSNN), "reproduce", profile(f"{INTERRUPTIBLE} optim.epochs=600 checkpoint.every_s=0")]
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


def test_small_networks_share_a_fleet_and_large_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(depth: int, width: int, *given: str) -> list[str]:
        config = TrainConfig()
        config.model.depth, config.model.width = depth, width
        return reproduce.fleet_words([resolve(config)], given)

    monkeypatch.setattr(reproduce, "choose_device", lambda _: torch.device("cpu"))
    assert words(20, 100) == ["hydra/launcher=fleet"]
    assert words(50, 300) == ["hydra/launcher=fleet", "hydra.launcher.networks=3"]
    assert words(200, 500) == []
    assert words(20, 100, "hydra/launcher=joblib") == []
    monkeypatch.setattr(reproduce, "choose_device", lambda _: torch.device("cuda"))
    assert words(200, 500) == ["hydra/launcher=fleet"]


def test_keys_of_the_reproduction_reach_the_steps_unless_a_step_gives_them(
    here: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    steps = profile(f"train {TINY} threads=2 hydra/launcher=joblib", "theory output_root=other", "propagate seed=0,1")
    places = ["output_root='a b'", "data_root=images", "device=cpu", "threads=1", "dry_run=true"]
    assert cli.dispatch(["reproduce", steps, *places]) == 0
    output = capfd.readouterr().out
    train, theory, propagate = re.findall("^    bsnn (.*)$", output, re.M)
    written = """'output_root='"'"'a b'"'"''"""
    assert train == f"train -m {TINY} threads=2 hydra/launcher=joblib {written} dataset.root=images device=cpu"
    assert theory == "theory output_root=other"
    assert propagate == f"propagate -m seed=0,1 {written} dataset.root=images device=cpu threads=1"


def test_a_measurement_of_a_run_is_not_taken_for_the_run_itself(
    here: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "timed", lambda _: Estimate(0.5, 0.5, 0.5))
    assert cli.dispatch(["reproduce", profile(f">train {TINY}"), "dry_run=true"]) == 0
    [word] = re.findall(r"run=\S*", capfd.readouterr().out.replace(",...", ""))
    assert cli.dispatch(["reproduce", profile(f"train {TINY}", f"propagate {word}"), "dry_run=true"]) == 0
    assert "step 2: 1 measurement: 1 to run" in capfd.readouterr().out


def test_time_left_is_corrected_by_what_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, done = [0.0], list[object]()
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(reproduce, "finished", lambda config: config in done)
    monkeypatch.setattr(plan, "seconds_left", lambda *_: Estimate(10.0, 10.0, 10.0))
    configs = [TrainConfig(seed=seed) for seed in range(3)]
    steps = [Step(str(config.seed), "train", [], [config], [config]) for config in configs]
    steps.append(Step("theorems", "theory", [], [TheoryConfig()], [TheoryConfig()]))

    def run_command(_words: object, _flag: object, announce: Callable[[], None]) -> int:
        announce()
        done.append(steps[len(done)].configs[0])
        now[0] += 20.0  # twice as long as estimated for a training, a third for the study
        announce()
        return 0

    monkeypatch.setattr(reproduce, "run_command", run_command)
    assert reproduce.run_steps(steps, Estimator()) == []
    told = re.findall(r"about (\d+) s left in all", capsys.readouterr().err)
    assert told == ["90", "100", "100", "80", "80", "60", "60", "0"]


def test_an_export_names_the_command_that_makes_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "make_all", lambda *arguments: str(told.append(arguments)))
    told: list[tuple[str, str, str]] = []
    keys = ["seeds=3", "batch_norm=true", "datasets=[mnist]", "extras=false", "threads=1"]
    activations = 'profile.activations="selu,selu_gpn"'
    places = [f"output_root={here}", f"data_root={here}", f"export={here}/results"]
    assert cli.dispatch(["reproduce", "profile.steps=[]", activations, *keys, *places]) == 0
    command = (
        f"bsnn reproduce 'profile.steps=[]' '{activations}' seeds=3 batch_norm=true 'datasets=[mnist]' extras=false"
    )
    assert told == [(str(here), f"{here}/results", f"{command} threads=1")]


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
