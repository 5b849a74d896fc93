"""Data flows one way: a module imports only from rows above its own. This table is also the map of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bsnn_cli

ROWS = [
    # no knowledge of the project
    {"errors", "records", "files", "formats", "gaussian", "knobs", "orthogonal", "checkout"}
    | {"batch_norm", "choices", "spool", "stopwatch", "workers"},
    {"kept", "pixels", "profiles", "provenance", "signals", "streams", "verdict"},
    # every knob; files from elsewhere; states on disk
    {"config", "checkpoint", "fetch", "image_folder", "interruption", "tracking"},
    {"approaches", "arguments", "memory", "activation_file", "functions"},
    {"config_files", "kinks", "validation"},
    # what a config means
    {"identity", "composition", "usage", "activations", "data", "parameters", "summary", "plotting"},
    {"meanfield", "pivot"},
    {"tailored", "gpn_table"},
    {"custom", "module"},
    # networks
    {"members"},
    {
        "network",
        "lightning_baseline",
        "fleet",
        "fused",
        "kernels",
        "native",
        "tables",
        "approach_table",
        "baselines",
        "bench_report",
        "findings",
    },
    # what is done with them
    {"matrices"},
    {
        "training",
        "propagation",
        "theory",
        "reference_trainer",
        "captured",
        "compiled",
        "runs",
        "finding_tables",
        "floors",
    },
    # what is on disk, what a person sees
    {"progress", "listing", "propagation_store", "origins"},
    {"stored", "archive"},
    {"bench_data", "bench_figures"},
    {"signal_figures", "theory_figures", "finding_figures"},
    {"comparison_figures", "variant_figures"},
    {"depth_figures"},
    {"figures"},
    # everything on one page
    {"export", "report_tables", "report_plots"},
    {"report"},
    {"products"},
    # one run, or one fleet, from start to end
    {"session"},
    {"runner"},
    {"propagation_runner", "job", "plan", "contestants", "rerun"},
    {"projection"},
    {"bench"},
    # many runs
    {"sweep", "lockstep", "agenda"},
    {"reproduction"},
    {"cli"},
    {"__init__", "__main__"},
]

PACKAGE = Path(bsnn_cli.__file__).parent
ROW = {name: index for index, row in enumerate(ROWS) for name in row}
PATHS = {path.stem: path for path in PACKAGE.rglob("*.py") if path.parent == PACKAGE or path.stem != "__init__"}
MODULES = sorted(PATHS)


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bsnn_cli":
            found |= {str(node.module).split(".")[-1], *(alias.name for alias in node.names)} & set(MODULES)
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("bsnn_cli.")}
    return found


def test_every_module_has_its_row() -> None:
    assert sorted(ROW) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module: str) -> None:
    below = {name for name in imported(module) if ROW[name] >= ROW[module]}
    assert not below, f"{module} (row {ROW[module]}) imports {below}"


def test_the_command_starts_without_torch_and_hydra() -> None:
    for module in ("cli", "errors", "usage", "choices", "config"):
        tree = ast.parse(PATHS[module].read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("torch", "hydra", "omegaconf", "pandas")}


def test_rooms_stay_small() -> None:
    """At most 450 lines a module and 60 a function: beyond that, one is likely to hold more than one idea."""
    large = []
    for module in MODULES:
        text = PATHS[module].read_text()
        if text.count("\n") > 450:
            large.append(f"{module}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    large.append(f"{module}.{node.name}: {length} lines")
    assert not large
