"""Data flows one way: each folder is a room, and imports only from rooms above it. This table is the package's map."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import bsnn_cli

BASE = {"errors", "common", "settings"}

ROOMS = {
    "errors": set[str](),  # the program's exceptions
    "common": {"errors"},  # files, the machine, the terminal, random streams
    "settings": {"errors"},  # every key: its default, its rule, its place in a command line
    "gpn": BASE,  # activations, their normalisation and their theory
    "theory": BASE | {"gpn"},  # what random networks do to signals, predicted and simulated: `bsnn theory`
    "datasets": BASE,
    "networks": BASE | {"gpn", "datasets"},  # what is trained, and how
    "conversion": BASE | {"gpn", "networks"},  # anybody's network into its GPN version
    "runs": BASE | {"gpn", "datasets", "networks"},  # run directories, fleets, sweeps
    "measuring": BASE | {"gpn", "datasets", "networks", "runs"},  # `bsnn propagate`
    "timing": BASE | {"datasets", "networks", "runs"},  # `bsnn bench`
    "results": BASE | {"runs", "measuring"},  # tables of what is stored
    "figures": BASE | {"gpn", "theory", "measuring", "timing", "results"},
    "report": BASE | {"gpn", "runs", "measuring", "results", "figures"},
    "reproduce": BASE | {"gpn", "datasets", "networks", "runs", "measuring", "report"},  # `bsnn reproduce`, a module
}
"""Which rooms each room may import from. The command line, `cli.py`, stands below all of them."""

PACKAGE = Path(bsnn_cli.__file__).parent
WITHOUT_TORCH = ("cli", "errors", "settings.usage", "settings.choices", "settings.config", "settings.named_activations")


def name_of(path: Path) -> str:
    """The module in a file, such as `bsnn_cli.gpn.kinks`."""
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= members & FILES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & FILES.keys()


MODULES = ("bsnn_cli.errors", "bsnn_cli.reproduce")
"""Modules that are a room by themselves."""

IN_ROOMS = [module for module in FILES if module.count(".") == 2 or module in MODULES]


def test_rooms_are_in_order() -> None:
    """A room stands below those that it imports from."""
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert allowed <= set(order[: order.index(room)]), room


def test_every_folder_is_a_room() -> None:
    assert {room_of(module) for module in IN_ROOMS} == set(ROOMS)


@pytest.mark.parametrize("module", IN_ROOMS)
def test_imports_keep_to_the_rooms(module: str) -> None:
    room = room_of(module)
    foreign = {name for name in imported(module) if name.count(".") == 0 or room_of(name) not in ROOMS[room] | {room}}
    assert not foreign, f"{module} imports {foreign}; {room} may import {ROOMS[room]}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter({module: imported(module) for module in FILES if module.count(".") > 0}).prepare()


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_the_command_starts_without_torch_and_hydra(module: str) -> None:
    tree = ast.parse(FILES[f"bsnn_cli.{module}"].read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name for name in names if name.split(".")[0] in ("torch", "hydra", "omegaconf", "pandas")}


def test_launchers_and_tables_work_without_torch() -> None:
    """Drivers of sweeps wait for hours beside their jobs; torch would take seconds of their start and much memory."""
    names = ("runs.job", "runs.plan", "runs.listing", "runs.sweep", "runs.fleet_launcher", "results.kinds")
    code = f"import sys, {', '.join(f'bsnn_cli.{name}' for name in names)}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
