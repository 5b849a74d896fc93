"""The paper's theorems by Monte Carlo, their assumptions by counter-example.

A vector x of n units is *thin-shell concentrated* (TSC) if P(|‖x‖²/n − 1| ≥ ε) → 0 as n → ∞ (Lu, Gould and Ajanthan
2020, arXiv 2006.12169). For TSC x, Haar-uniform W and a normalised activation f, Theorem 1 says that f(Wx) is TSC,
Theorem 2 that the backward signal Dy with D_ii = f'((Wx)_i) has ‖Dy‖²/n − ‖y‖²/n → 0 in probability, for y with bounded
entries. No W is drawn: Wx is uniform on the sphere of radius ‖x‖ (`simulation`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from bsnn_cli.common.random_streams import stream
from bsnn_cli.gpn.activations import Activation, normalise
from bsnn_cli.gpn.meanfield import Transfer, transfer
from bsnn_cli.settings.config import TheoryConfig
from bsnn_cli.theory.simulation import norm, on_sphere, per_unit

OFF_SHELL = 2.0
"""‖x‖²/n of inputs off the shell."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """An activation as it is (root is None) or normalised with one of its roots, "upper" or "lower"."""

    phi: Activation
    root: str | None

    def labels(self) -> Row:
        """Return the values of its columns."""
        return {"activation": self.phi.name, "gpn": self.root is not None, "root": self.root}

    def constants(self) -> tuple[float, float]:
        """Return (a, b) of f = aφ + b."""
        if self.root is None:
            return 1.0, 0.0
        solution = normalise(self.phi, self.root)
        return solution.a, solution.b

    def transfer(self) -> Transfer:
        """Return its mean-field maps."""
        return transfer(self.phi, gpn=self.root is not None, root=self.root or "auto")


def widths(config: TheoryConfig) -> list[int]:
    """Return the widths, doubling from the smallest to the largest."""
    doublings = int(math.log2(config.largest_width / config.smallest_width))
    return [config.smallest_width << k for k in range(doublings + 1)]


def deviation(config: TheoryConfig) -> float:
    """Return ε: 2/√n₀ with n₀ the geometric mean of the widths, unless chosen.

    A squared length per unit fluctuates by 1 to 2 over √n: so at the smallest width the probability is near ½, at the
    largest it is small but seen.
    """
    if config.epsilon is not None:
        return config.epsilon
    return 2 / math.sqrt(math.sqrt(widths(config)[0] * widths(config)[-1]))


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a probability from the number of hits (Wilson 1927); sound for 0 hits as well."""
    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def probabilities(activations: Sequence[Activation], root: str, config: TheoryConfig) -> Iterator[Row]:
    """Yield rows of TSC and of both theorems, with their counter-examples, over all widths."""
    epsilon, trials = deviation(config), config.trials
    forms = [Form(phi, normalise(phi, root).root) for phi in activations]

    def row(what: str, case: str, form: Form | None, n: int, difference: Tensor) -> Row:
        hits = int((difference.abs() >= epsilon).sum())
        low, high = wilson(hits, trials)
        counted = {"width": n, "epsilon": epsilon, "estimate": hits / trials, "low": low, "high": high}
        return {"what": what, "case": case} | (form.labels() if form else {}) | counted | {"trials": trials}

    for n in widths(config):
        generator = stream(config.seed, "theory", n)
        x = torch.randn(trials, n, generator=generator, dtype=torch.float64)
        norms = norm(x)
        y = (torch.rand(trials, n, generator=generator, dtype=torch.float64) - 0.5) * math.sqrt(12)
        yield row("tsc", "none", None, n, per_unit(x) - 1)
        yield row("tsc", "shell", None, n, torch.full((trials,), OFF_SHELL - 1))
        spiky = torch.zeros_like(x)
        spiky[:, 0] = math.sqrt(n) * x[:, 0].sign()
        off_shell = on_sphere(torch.full_like(norms, math.sqrt(OFF_SHELL * n)), generator, n)
        for case, h in (("none", on_sphere(norms, generator, n)), ("haar", spiky), ("shell", off_shell)):
            for form in forms:
                value, backward = form.phi.phi(h), form.phi.pull_back(y, h)
                for label, f in ((case, form), *([("gpn", Form(form.phi, None))] if case == "none" else [])):
                    a, b = f.constants()
                    yield row("theorem_1", label, f, n, per_unit(a * value + b) - 1)
                    yield row("theorem_2", label, f, n, per_unit(a * backward) - per_unit(y))
