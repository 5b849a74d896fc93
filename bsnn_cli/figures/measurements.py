"""Selects the measurements that `bsnn propagate` has stored for the figures, and says their sizes in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from bsnn_cli.figures.figure import Missing, dataset_label, extent
from bsnn_cli.results.store import Results
from bsnn_cli.settings.choices import AUTO_ROOT, DEFAULT_SEPARATION, tailored_as_usual
from bsnn_cli.settings.config import FiguresConfig, ModelConfig

Summary = dict[str, Any]
"""Content of a `summary.json`, with its `directory`."""


def fresh(stored: Results) -> list[Summary]:
    """Return the summaries of untrained networks on Gaussian signals."""
    return [summary for summary in stored.measured if summary["source"] == "gaussian" and summary["trained"] is None]


def of_paper(stored: Results, depth: int) -> list[Summary]:
    """Return the paper's networks of this depth, with either root of b; of depth-aware ones those of the default."""
    return [
        summary
        for summary in fresh(stored)
        if summary["depth"] == depth
        and summary["approach"] is None
        and _is_usual(summary["config"]["activation"], depth)
        and asdict(ModelConfig(depth=depth, width=summary["width"])) == asdict(ModelConfig()) | _model(summary)
    ]


def _is_usual(activation: dict[str, Any], depth: int) -> bool:
    """Return whether it is not tailored, or as `activation=NAME_gpn_d` does it; older summaries know neither key."""
    separation, layers = activation.get("separation"), activation.get("tailored_depth")
    usual = tailored_as_usual(activation["name"], activation.get("parameter"))
    return separation is None or (usual and (separation, layers) == (DEFAULT_SEPARATION, depth))


def _model(summary: Summary) -> dict[str, Any]:
    """Return its config of the network, without what Gaussian signals do not pass."""
    return {name: value for name, value in summary["config"]["model"].items() if name != "input_init"}


def with_usual_root(summaries: Iterable[Summary]) -> list[Summary]:
    """Return the summaries of networks with the published root of b."""
    activations = [(summary, summary["config"]["activation"]) for summary in summaries]
    return [summary for summary, chosen in activations if chosen["root"] in ("auto", AUTO_ROOT.get(chosen["name"]))]


def preferred(summaries: Iterable[Summary]) -> dict[tuple[str, int], Summary]:
    """Return, by (activation, width), the measurement with the most inputs, then the most repeats."""
    order = sorted(summaries, key=lambda summary: (summary["inputs"], summary["repeats"], -summary["seed"]))
    return {(summary["activation"], summary["width"]): summary for summary in order}


def of_size(
    stored: Results, config: FiguresConfig, name: str, wanted: Sequence[str]
) -> tuple[dict[str, Summary], list[Missing]]:
    """Return the wanted activations at the wanted depth and width, as far as they are stored, and what is missing.

    Of several measurements those are taken whose inputs and repeats most of the networks have in common.
    """
    usual = with_usual_root(of_paper(stored, config.depth))
    chosen = [summary for summary in usual if summary["width"] == config.width and summary["activation"] in wanted]
    common = Counter((summary["inputs"], summary["repeats"]) for summary in chosen)
    chosen.sort(key=lambda row: (common[row["inputs"], row["repeats"]], row["repeats"], -row["seed"]))
    last = {summary["activation"]: summary for summary in chosen}
    absent = [activation for activation in wanted if activation not in last]
    many = "-m " if len(absent) > 1 else ""
    command = f"bsnn propagate {many}activation={','.join(absent)}" + size_arguments(config)
    missing = [Missing(name, f"signals of {len(absent)} of {len(wanted)} networks", command)] if absent else []
    return {activation: last[activation] for activation in wanted if activation in last}, missing


def size_arguments(config: FiguresConfig, *names: str) -> str:
    """Return what a command must say of depth and width, or of these alone, where they are not the usual ones."""
    usual = FiguresConfig()
    sizes = {name: getattr(config, name) for name in names or ("depth", "width")}
    return "".join(f" model.{name}={size}" for name, size in sizes.items() if size != getattr(usual, name))


def sizes(summaries: Iterable[Summary], networks: str = "") -> tuple[str, str]:
    """Return sizes and n of some measurements, for the small print and for the caption.

    Args:
        summaries: of the measurements.
        networks: says n in its own words, where repeats do not tell it.
    """
    rows = list(summaries)
    depth, width, inputs, repeats = (
        extent(row[name] for row in rows) for name in ("depth", "width", "inputs", "repeats")
    )
    names = {row["dataset"] or "standard Gaussian" for row in rows}
    kind = " or ".join(sorted(map(dataset_label, names)))
    short = f"L = {depth}, n = {width}, {inputs} inputs, {networks or f'repeats: {repeats}'}"
    long = f"L = {depth} layers, n = {width} units, {inputs} {kind} inputs"
    return short, f"{long}, {networks or f'repeats (seeds): {repeats}'}"
