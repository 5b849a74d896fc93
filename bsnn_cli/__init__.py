"""Bidirectionally self-normalising neural networks: train them, measure them, use them.

`GPN`, `gpn_coefficients` and `load_run` are loaded on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsnn_cli.activations import GPN, gpn_coefficients
    from bsnn_cli.runs import load_run

__all__ = ["GPN", "gpn_coefficients", "load_run"]


def __getattr__(name: str) -> Any:
    if name in ("GPN", "gpn_coefficients"):
        from bsnn_cli import activations

        return getattr(activations, name)
    if name == "load_run":
        from bsnn_cli import runs

        return runs.load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
