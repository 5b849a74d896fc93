"""Compare a network with itself at several widths: how each measured quantity grows with the width.

A coordinate check, after that of microsoft/mup (Yang et al. 2022, arXiv 2203.03466): a parametrisation keeps its
signals if none of them grows or shrinks with a power of the width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from bsnn_cli.common.random_streams import stream
from bsnn_cli.errors import ConfigError
from bsnn_cli.measuring.modules import COLUMNS, Loss, measure
from bsnn_cli.measuring.preserved import randomness

PLACE = ["layer", "module", "kind", "call"]

SIGNED = ("preactivation_mean", "derivative_mean")
"""Quantities that may be negative, which have no logarithm."""


def coordinate_check(
    build: Callable[[int], nn.Module | tuple[nn.Module, Any]],
    widths: Sequence[int],
    inputs: Any = None,
    loss: Loss | None = None,
    *,
    batch_dim: int = 0,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Measure a network at several widths, and fit the power of the width that each quantity goes with.

    Args:
        build: width → the module, or the module and its inputs. Called with PyTorch's generator seeded.
        widths: at least two.
        inputs: of the module, where `build` returns none; as in `measure`.
        loss: as in `measure`.
        batch_dim: as in `measure`.
        seeds: of weights and gradients; logarithms are averaged over them.

    Returns:
        One row for each call of a layer, as in `measure`, with the slope of log quantity against log width by least
        squares: 0 where a quantity does not depend on the width, 1 where it is proportional to it. NaN where a
        quantity is not positive at all widths; quantities that may be negative are left out.

    Raises:
        ConfigError: there are less than two widths, the networks differ in more than the width, or as in `measure`.
    """
    if len(set(widths)) < 2:
        raise ConfigError(f"coordinate_check: needs at least two widths, such as (64, 128, 256), not {list(widths)}")
    tables: list[pd.DataFrame] = []
    for width in widths:
        for seed in seeds:
            with randomness(stream(seed, "network").initial_seed(), []):
                made = build(width)
            module, given = made if isinstance(made, tuple) else (made, inputs)
            tables.append(measure(module, given, loss, batch_dim=batch_dim, seed=seed))
            if not tables[-1][PLACE].equals(tables[0][PLACE]):
                raise ConfigError(f"coordinate_check: at width {width} other layers are called than at {widths[0]}")
    quantities = [name for name in tables[0] if name not in (*COLUMNS, *SIGNED)]
    values = np.stack([table[quantities].to_numpy(dtype=float) for table in tables])
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(values)
    logarithms[~np.isfinite(logarithms)] = np.nan
    x = np.log(np.repeat(np.asarray(widths, dtype=float), len(seeds)))
    x -= x.mean()
    slopes = np.tensordot(x / (x @ x), logarithms, axes=1)
    return tables[0][PLACE].join(pd.DataFrame(slopes, columns=quantities))
