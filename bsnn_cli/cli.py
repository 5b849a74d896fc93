"""The command line: verbs, Hydra, exit codes. A verb's modules are imported inside the verb."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bsnn_cli.common import streams
from bsnn_cli.errors import BsnnError, Interrupted

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bsnn_cli.settings.config import (
        BenchConfig,
        DataConfig,
        FiguresConfig,
        GpnConfig,
        PropagateConfig,
        RerunConfig,
        RunsConfig,
        TableConfig,
        TheoryConfig,
        TrainConfig,
    )
    from bsnn_cli.settings.profiles import ReportConfig, ReproduceConfig


def train(config: TrainConfig) -> None:
    """Train a network and write its run directory; -m sweeps."""
    from bsnn_cli.settings.identity import activation_label, run_directory
    from bsnn_cli.settings.validation import resolve

    config = resolve(config)  # before torch is loaded: a mistake is answered at once
    from bsnn_cli.runs import runner

    config = runner.prepare(config)
    if config.dry_run:
        from bsnn_cli.runs import plan

        print(plan.preview([config]))
        return
    [result] = runner.run([config])
    name = f"{activation_label(config)} on {result.dataset}"
    if result.status == "diverged":
        outcome = f"diverged in epoch {result.diverged_epoch}, step {result.diverged_step}"
    else:
        outcome = f"test {result.test_accuracy:.2f} %, train {result.train_accuracy:.2f} %"
        if result.validation_accuracy is not None:
            outcome += f", validation {result.validation_accuracy:.2f} %"
    print(f"{name}: {outcome}; {result.epochs} epochs, {result.steps} steps, {result.elapsed_s:.0f} s")
    print(f"  {run_directory(config)}")


def propagate(config: PropagateConfig) -> None:
    """Measure signals and gradients of every layer, at the start or of a trained network; -m sweeps."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch then uses huge pages: a tenth faster
    from bsnn_cli.measuring.propagation_runner import run
    from bsnn_cli.measuring.verdict import judge, title

    path, summary = run(config)
    print(f"{title(summary)}: " + "; ".join(judge(summary)))
    print(f"  {path}")


def table(config: TableConfig) -> None:
    """Print tables of finished runs or measurements, and write those of all of them, beside the paper's."""
    from pathlib import Path

    from bsnn_cli.results.kinds import KINDS
    from bsnn_cli.results.question import ask
    from bsnn_cli.results.store import Results

    results = Results(config.output_root, config.where or ())
    folder = None if config.where else Path(config.output_root) / "tables"  # where the tables are of all runs
    if config.kind != "accuracy":
        print(KINDS[config.kind](results, folder))
        return
    answer = ask(results, folder, config)
    if config.format == "text":
        print(answer)
        return
    print(answer.text)
    for remark in answer.remarks:  # the output may go into a file
        print(remark, file=sys.stderr)


def figures(config: FiguresConfig) -> None:
    """Draw the paper's figures from stored numbers."""
    from bsnn_cli.figures.figures import draw

    print(draw(config).text)


def gpn(config: GpnConfig) -> None:
    """Print the constants a, b that make activations Gaussian-Poincaré normalised."""
    from bsnn_cli.common.table import render
    from bsnn_cli.gpn import custom
    from bsnn_cli.gpn.gpn_table import gpn_table
    from bsnn_cli.settings.choices import AUTO_ROOT

    if config.activation is None:
        solutions = gpn_table(AUTO_ROOT, config.root)
    else:
        solutions = gpn_table([custom.activation(config.activation)], config.activation.root)
    print(render(solutions, config.format, digits=10))


def theory(config: TheoryConfig) -> None:
    """Check the theorems numerically, and predict and measure signals and gradients over depth."""
    from pathlib import Path

    from omegaconf import OmegaConf

    from bsnn_cli.common.files import write_text
    from bsnn_cli.networks.workers import intra_op_threads
    from bsnn_cli.theory import study

    path = Path(config.output_root) / "theory" / "theory.csv"
    path.with_name("config.yaml").unlink(missing_ok=True)
    with intra_op_threads(1):  # tensors are small: several threads would mostly wait for each other
        results, summary = study.study(config), study.summary(config)
    write_text(path, results.to_csv(index=False))
    write_text(path.with_name("config.yaml"), OmegaConf.to_yaml(OmegaConf.structured(config)))  # last: all is there
    print("\n\n".join([study.describe(results), *summary]))
    print(f"  {path}")


def runs(config: RunsConfig) -> None:
    """List runs with their status and metrics; free disk space."""
    import shutil

    from bsnn_cli.runs import listing

    if config.help is not None:
        from bsnn_cli.report.stored_files import explained

        print(explained(config.format))
    elif config.prune:
        print(listing.prune(config.output_root, delete=config.yes))
    elif config.watch:
        listing.watch(config.output_root, config.status, config.where or [])
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(listing.listing(config, width))


def rerun(config: RerunConfig) -> None:
    """Repeat a finished run and say whether the result is identical."""
    from pathlib import Path

    from bsnn_cli.runs.rerun import repeat

    print(repeat(Path(config.directory)))


def data(config: DataConfig) -> None:
    """Fetch and verify a dataset, and print what is in it."""
    from bsnn_cli.datasets import data as datasets

    print(datasets.describe(config.dataset))


def bench(config: BenchConfig) -> None:
    """Time a training step beside plain PyTorch and the matrix products alone."""
    from bsnn_cli.timing.bench import run

    print(run(config))


def reproduce(config: ReproduceConfig) -> None:
    """Make the paper's results from start to end: trainings, measurements, tables, figures, report."""
    from bsnn_cli.reproduce import run

    run(config)


def report(config: ReportConfig) -> None:
    """Write one HTML page of everything that is stored."""
    if config.export is not None:
        from bsnn_cli.report.export import require_another_folder
        from bsnn_cli.report.products import make_all

        require_another_folder(config.export, config.output_root)
        print(make_all(config.output_root, config.export, f"bsnn report export={config.export}"))
        return
    from bsnn_cli.report.report import write_report
    from bsnn_cli.results.store import Results

    print(write_report(Results(config.output_root)))


VERBS: dict[str, Callable[[Any], None]] = {
    "train": train,
    "propagate": propagate,
    "table": table,
    "figures": figures,
    "gpn": gpn,
    "theory": theory,
    "runs": runs,
    "rerun": rerun,
    "data": data,
    "bench": bench,
    "reproduce": reproduce,
    "report": report,
}


def main() -> None:
    """Entry point of `bsnn`; ends the process with the exit code."""
    streams.prepare()
    os.environ["MPLBACKEND"] = "agg"  # a notebook hands down its own, which need not exist here
    try:
        sys.exit(dispatch(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(reader_gone())


def reader_gone() -> int:
    """End the output of which the reader, such as `head`, has seen enough; returns the exit code."""
    streams.silence_output()
    return 128 + signal.SIGPIPE


def dispatch(arguments: list[str]) -> int:
    """Take the verb off the arguments and run it; returns the exit code."""
    from bsnn_cli.settings import usage
    from bsnn_cli.settings.suggestions import nearest

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage.overview({name: str(verb.__doc__) for name, verb in VERBS.items()}))
        return 0
    if arguments[0] == "--version":
        print(usage.version())
        return 0
    if arguments[0] in ("-sc", "--shell-completion", "--shell_completion"):
        return complete(arguments)
    verb, *rest = arguments
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {verb}: must be one of {', '.join(VERBS)}{hint}", file=sys.stderr)
        return 2
    if "-h" in rest or "--help" in rest:
        print(usage.verb_help(verb, str(VERBS[verb].__doc__)))
        return 0
    if verb == "rerun" and len(rest) == 1 and not rest[0].startswith(("directory=", "-")):  # a path needs no key
        from bsnn_cli.settings.arguments import quoted

        rest = [f"directory={quoted(rest[0])}"]
    return run_verb(verb, rest)


def run_verb(verb: str, arguments: list[str]) -> int:
    """Compose the verb's config and act on it, once or for each job of a sweep; returns the exit code."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working directory is gone; change to one that exists", file=sys.stderr)
        return 2
    from bsnn_cli.settings import composition
    from bsnn_cli.settings.arguments import filters

    codes: list[int] = []
    register_plugins(verb)

    def job(composed: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        os.chdir(HydraConfig.get().runtime.cwd)  # with hydra.job.chdir=true, paths would not be what was typed
        codes.append(attempt(lambda: VERBS[verb](composition.typed(verb, composed))))

    composing = attempt(lambda: composition.run(verb, filters(verb, arguments), job))
    if composing != 0 or not codes:
        return composing
    return codes[0] if len(codes) == 1 else int(any(codes))


def register_plugins(verb: str) -> None:
    """Make our sweeper and launcher known to Hydra, for the verbs whose runs they know."""
    if verb in ("train", "reproduce"):
        from bsnn_cli.runs import fleet_launcher, sweep

        sweep.register()
        fleet_launcher.register()


def attempt(act: Callable[[], None]) -> int:
    """Act, and turn a failure into lines on standard error and an exit code. A stop signal ends the process."""
    try:
        act()
        sys.stdout.flush()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)  # also out of a sweep
    except BsnnError as error:
        for line in str(error).splitlines():
            print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)  # indented: more on the same
        return error.exit_code
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:
        if error.filename is None:
            traceback.print_exc()
        else:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - a defect; the user needs the traceback, a sweep its other jobs
        traceback.print_exc()
        return 1
    return 0


def complete(arguments: list[str]) -> int:
    """Shell completion: print Hydra's script for a shell, or answer a query from it."""
    from bsnn_cli.settings import composition

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        if any(argument.startswith("query=") for argument in arguments):
            print(" ".join(verb for verb in VERBS if len(words) < 2 or verb.startswith(words[1])))
            return 0
        words = ["bsnn", "train"]
    verb = words[1] if words[1] in VERBS else "train"
    os.environ["COMP_LINE"] = line.replace(f" {verb}", "", 1)
    register_plugins(verb)
    return attempt(lambda: composition.run(verb, arguments, lambda _: None, program="bsnn"))
