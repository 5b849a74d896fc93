"""What tests of `bsnn reproduce` share: profiles of a few small steps, carried out at little cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

from bsnn_cli import cli
from bsnn_cli.runs import runner
from bsnn_cli.settings.composition import Composer
from bsnn_cli.settings.config import TrainConfig

TINY = "dataset=digits model.depth=3 model.width=20 optim.lr=0.01"
DEAD_MIRROR = "http://127.0.0.1:9"

composer = functools.cache(Composer)
"""What is chosen of groups is composed once for all tests."""


def profile(*steps: str) -> str:
    """A profile of these command lines, as an argument; `>` before one measures what it trains."""
    entries = [
        f'{{title: step {place}, command: "{step.lstrip(">")}", measure: {str(step.startswith(">")).lower()}}}'
        for place, step in enumerate(steps, 1)
    ]
    return f"profile.steps=[{', '.join(entries)}]"


def in_this_process(configs: Sequence[TrainConfig], *_: object) -> None:
    """Stands in for `job.supervise`, whose child takes seconds to import PyTorch."""
    runner.run([runner.prepare(config) for config in configs])


def command_in_this_process(words: Sequence[str], _flag: object, announce: Callable[[], object]) -> int:
    """Stands in for `reproduce.run_command`, whose child takes seconds to import PyTorch."""
    announce()
    state = Singleton.get_state()  # of Hydra, which is at work on the command line of `bsnn reproduce`
    GlobalHydra.instance().clear()
    try:
        return cli.dispatch(list(words))
    finally:
        Singleton.set_state(state)
