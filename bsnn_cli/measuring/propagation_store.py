"""Directories of measured signals under `outputs/propagation`: the same command always finds the same one.

A directory holds `config.yaml`, `layers.csv`, `histogram.csv`, `provenance.json` and, written last, `summary.json`.
That of a network of the user's own also holds `network.py`, and a histogram only if the network has activations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from bsnn_cli.common.files import read_text, write_json, write_text
from bsnn_cli.measuring.records import CallRecord, LayerRecord, Measurement, summarise, summarise_calls, with_weights
from bsnn_cli.runs import user_files
from bsnn_cli.runs.directory import NUMERICS_VERSION
from bsnn_cli.settings import identity
from bsnn_cli.settings.choices import ACTIVATION_LABELS, FORMS
from bsnn_cli.settings.config import ActivationConfig, PropagateConfig
from bsnn_cli.settings.widths import changing, in_words, widths

BINS = 100
"""Bins of each histogram of f'(h), equally wide, over the range of all values at the chosen layers."""

QUANTITIES = tuple(field.name for field in dataclasses.fields(LayerRecord) if field.name != "layer")
PLACES = tuple(entry.name for entry in dataclasses.fields(CallRecord) if entry.name not in ("layer", *QUANTITIES))


def directory(config: PropagateConfig) -> Path:
    """Return `<output_root>/propagation/<function of a network, approach, or activation[-bn]>/<identity>-s<seed>`."""
    label = identity.network_name(config.network) or config.approach or identity.activation_label(config)
    return Path(config.output_root) / "propagation" / label / f"{identity.identity(config)}-s{config.seed}"


def finished(path: Path) -> dict[str, Any] | None:
    """Return the summary of a finished measurement; None if there is none."""
    try:
        return dict(json.loads(read_text(path / "summary.json")))
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(
    path: Path,
    config: PropagateConfig,
    measurements: Sequence[Measurement],
    provenance: dict[str, Any],
    network: str | None = None,
) -> dict[str, Any]:
    """Write the files of a measurement, the summary last, and return the summary.

    Args:
        path: as `directory` gives it.
        config: resolved.
        measurements: one for each repeat, of seeds seed, seed + 1, …
        provenance: of this process.
        network: text of the file of a network of the user's own, to be kept here.
    """
    (path / "summary.json").unlink(missing_ok=True)
    if network is not None:
        user_files.write(path, {user_files.COPIES["network"]: network})
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
    write_text(path / "layers.csv", layers_table(measurements).to_csv(index=False))
    if measurements[0].derivatives:
        write_text(path / "histogram.csv", histogram_table(measurements).to_csv(index=False))
    write_json(path / "provenance.json", provenance)
    summary = summary_of(config, measurements)
    write_json(path / "summary.json", summary)
    return summary


def layers_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Return a row for each layer: `layer`, `repeats`, and each quantity of `LayerRecord` as `<name>` and `<name>_std`.

    Mean and sample standard deviation over the repeats; the deviation is NaN where there is one repeat. Of a network of
    the user's own, the columns of `CallRecord` that say which call of which layer it is stand after `repeats`.
    """
    rows = pd.DataFrame([dataclasses.asdict(row) for measurement in measurements for row in measurement.layers])
    groups = rows.groupby("layer")
    values = groups[list(QUANTITIES)]
    mean, spread = values.mean(), values.std().add_suffix("_std")
    columns = [column for name in QUANTITIES for column in (name, f"{name}_std")]
    table = pd.concat([mean, spread], axis=1)[columns].reset_index()
    table.insert(1, "repeats", len(measurements))
    for place, name in enumerate(PLACES, 2):
        if name in rows:
            table.insert(place, name, groups[name].first().to_numpy())
    return table


def histogram_table(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Return a row for each bin of f'(h) at a layer, over all repeats: `layer`, `left`, `right`, `count`, `density`."""
    import torch  # a table of stored measurements needs none

    layers = sorted(measurements[0].derivatives)
    values = {layer: torch.cat([m.derivatives[layer] for m in measurements]).double() for layer in layers}
    low = min(float(value.nan_to_num().min()) for value in values.values())
    high = max(float(value.nan_to_num().max()) for value in values.values())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    tables = []
    for layer, value in values.items():
        count = torch.histc(value, bins=BINS, min=low, max=high)
        tables.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "left": edges[:-1].numpy(),
                    "right": edges[1:].numpy(),
                    "count": count.long().numpy(),
                    "density": (count / len(value) / (edges[1] - edges[0])).numpy(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def summary_of(config: PropagateConfig, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the content of `summary.json`: the network, and each number of `Summary` as its mean and `<name>_std`.

    Mean and sample standard deviation are over the repeats; null where a number is not finite in some of them.
    """
    calls = [[row for row in measurement.layers if isinstance(row, CallRecord)] for measurement in measurements]
    name = identity.network_name(config.network) or (None if config.network.kind == "mlp" else config.network.kind)
    repeats = [
        dataclasses.asdict(summarise(measurement.layers) if name is None else summarise_calls(rows))
        for measurement, rows in zip(measurements, calls, strict=True)
    ]
    numbers: dict[str, Any] = {}
    for key in repeats[0]:
        values = [repeat[key] for repeat in repeats]
        numbers[key] = _finite(math.fsum(values) / len(values))
        numbers[f"{key}_std"] = _finite(float(pd.Series(values).std())) if len(values) > 1 else None
    inputs = measurements[0].inputs
    return {
        **(_of_model(config) if name is None else _of_network(config, name, calls[0])),
        "approach": config.approach,
        "seed": config.seed,
        "repeats": len(measurements),
        "inputs": config.propagate.inputs if inputs is None else inputs,
        "source": config.propagate.source,
        "dataset": config.dataset.name or config.dataset.kind if config.propagate.source == "dataset" else None,
        "trained": config.run,
        **numbers,
        "each_repeat": [{key: _finite(value) for key, value in repeat.items()} for repeat in repeats],
        "numerics": NUMERICS_VERSION,
        "config": OmegaConf.to_container(OmegaConf.structured(config)),
    }


def _of_model(config: PropagateConfig) -> dict[str, Any]:
    label, sizes = _label(config.activation), widths(config.model)
    differ = changing(config.model)
    return {
        "activation": identity.activation_label(config),
        "label": f"{label}, {in_words(sizes)} units" if differ else label,
        "depth": config.model.depth,
        "width": config.model.width,
        **({"widths": list(sizes)} if differ else {}),
    }


def _label(activation: ActivationConfig) -> str:
    base = identity.base_name(activation)
    return ACTIVATION_LABELS.get(base, base) + FORMS[identity.form(activation)]


def _of_network(config: PropagateConfig, name: str, calls: Sequence[CallRecord]) -> dict[str, Any]:
    """Return what a summary says of a network that is no perceptron; its depth counts the layers with weights."""
    if config.network.path is None:
        label = f"{_label(config.activation)} {name}, {config.model.width} channels"
    else:
        arguments = ", ".join(f"{key}={value}" for key, value in config.network.kwargs.items())
        label = f"{name}({arguments})" if arguments else name
    return {
        "network": name,
        "label": label,
        "depth": len(with_weights(calls)),
        "calls": len(calls) - 1,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def load_all(output_root: str | Path) -> list[dict[str, Any]]:
    """Return the summaries of all finished measurements, sorted by directory, each with its `directory`.

    Results may have been moved since: `trained` is the run's directory under this `output_root` if it is there. A
    summary that cannot be read is named on standard error and left out.
    """
    summaries = []
    for path in sorted((Path(output_root) / "propagation").glob("*/*/summary.json")):
        try:
            content = json.loads(read_text(path))
            content["trained"] = _present(content["trained"], output_root)
            summaries.append({"directory": str(path.parent), **content})
        except (ValueError, KeyError, OSError) as error:
            print(f"warning: {path.parent} is left out: {error}", file=sys.stderr)
    return summaries


def _present(run: str | None, output_root: str | Path) -> str | None:
    if run is None:
        return None
    moved = Path(output_root).joinpath(*Path(run).parts[-4:])  # runs/<dataset>/<activation>/<identity>-s<seed>
    return str(moved) if moved.exists() else run
