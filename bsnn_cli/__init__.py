"""Bidirectionally self-normalising neural networks: train them, measure them, use them.

What stands here is loaded on first use, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsnn_cli.conversion.normalise import normalise
    from bsnn_cli.figures.predictions import plot
    from bsnn_cli.gpn.activations import gpn_coefficients
    from bsnn_cli.gpn.module import GPN
    from bsnn_cli.gpn.shaped import dks, tat
    from bsnn_cli.measuring.coordinates import coordinate_check
    from bsnn_cli.measuring.modules import measure, verdict
    from bsnn_cli.networks.network import UnitRows
    from bsnn_cli.runs.loading import load_all as load_runs
    from bsnn_cli.runs.loading import load_dataset, load_run
    from bsnn_cli.theory.moments import gaussian_moments
    from bsnn_cli.theory.prediction import Prediction, predict

__all__ = [
    "GPN",
    "Prediction",
    "UnitRows",
    "coordinate_check",
    "dks",
    "gaussian_moments",
    "gpn_coefficients",
    "load_dataset",
    "load_run",
    "load_runs",
    "measure",
    "normalise",
    "plot",
    "predict",
    "tat",
    "verdict",
]

_HOMES = {
    "GPN": ("gpn.module", "GPN"),
    "Prediction": ("theory.prediction", "Prediction"),
    "UnitRows": ("networks.network", "UnitRows"),
    "coordinate_check": ("measuring.coordinates", "coordinate_check"),
    "dks": ("gpn.shaped", "dks"),
    "gaussian_moments": ("theory.moments", "gaussian_moments"),
    "gpn_coefficients": ("gpn.activations", "gpn_coefficients"),
    "load_dataset": ("runs.loading", "load_dataset"),
    "load_run": ("runs.loading", "load_run"),
    "load_runs": ("runs.loading", "load_all"),
    "measure": ("measuring.modules", "measure"),
    "normalise": ("conversion.normalise", "normalise"),
    "verdict": ("measuring.modules", "verdict"),
    "plot": ("figures.predictions", "plot"),
    "predict": ("theory.prediction", "predict"),
    "tat": ("gpn.shaped", "tat"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"bsnn_cli.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
