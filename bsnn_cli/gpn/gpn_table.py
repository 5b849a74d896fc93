"""Tabulate the constants of GPN, for people to read."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from bsnn_cli.gpn import meanfield
from bsnn_cli.gpn.activations import Activation, get, normalise
from bsnn_cli.settings.named_activations import NAMED_ACTIVATIONS


def gpn_table(activations: Iterable[str | Activation], root: str = "auto") -> pd.DataFrame:
    """Return the constants of activations, a row for each.

    `chi` and `basin` are about lengths: by what factor a layer shrinks a small deviation of ‖x‖²/n from 1, and from
    what value on it grows instead (`meanfield.basin`; inf where there is none).

    E[φ], E[φ²] and E[φ'²] are of φ before normalisation, E[f²] and E[f'²] of f = aφ + b after it, to be seen as 1.
    Published constants and the differences ours − published are NaN where the paper has none for this root.
    """
    rows = []
    for activation in activations:
        known = get(activation) if isinstance(activation, str) else activation
        name, solution = known.name, normalise(known, root)
        published = NAMED_ACTIVATIONS[name].published if name in NAMED_ACTIVATIONS else None
        if published is None or solution != normalise(known, "auto"):
            published = (math.nan, math.nan)
        a, b = published
        rows.append(
            {
                "activation": name,
                **known.parameters,
                "a": solution.a,
                "b": solution.b,
                "root": solution.root,
                "chi": solution.chi,
                "basin": meanfield.basin(meanfield.transfer(known, root=root)),
                "E[φ²]": solution.second_moment,
                "E[φ'²]": solution.derivative_second_moment,
                "E[φ]": solution.mean,
                "E[f²]": solution.normalised_second_moment,
                "E[f'²]": solution.normalised_derivative_second_moment,
                "published a": a,
                "published b": b,
                "difference a": solution.a - a,
                "difference b": solution.b - b,
            }
        )
    return pd.DataFrame(rows)
