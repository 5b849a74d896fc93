"""The provenance of stored results: the command that makes each, versions, commit, hardware and time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bsnn_cli.common import provenance
from bsnn_cli.common.files import read_text
from bsnn_cli.common.table import DASH, Table
from bsnn_cli.common.table import table as text_table
from bsnn_cli.runs.directory import read_config
from bsnn_cli.settings.choices import TAILORED_BY, tailored_as_usual
from bsnn_cli.settings.config import TrainConfig
from bsnn_cli.settings.identity import canonical, differences, form

FIELDS = ("version", "commit", "dirty", "python", "torch", "cuda", "device", "threads", "trainer", "started", "ended")
"""Fields of `provenance.json` that are shown to others; the machine's name and its paths are not."""

ALIKE = ["version", "commit", "dirty", "python", "torch", "cuda", "device", "threads"]
"""Results that share these come from one place."""


def command(config: TrainConfig) -> str:
    """Return the command line that makes a run, without folders and device; rounding depends on the threads."""
    threads = [] if config.threads is None else [f"threads={config.threads}"]
    config = canonical(config)
    words = [f"activation={config.activation.name}{form(config.activation)}"]
    if config.activation.path is not None:
        words.append(f"activation.path={Path(config.activation.path).name}")
    words.append(f"dataset={config.dataset.kind}")
    named = {"activation.name", "activation.gpn", "activation.fingerprint", "dataset.kind", "dataset.fingerprint"}
    activation = config.activation
    if activation.separation is not None and activation.name in TAILORED_BY:
        named.add("activation.parameter")  # whose default has not always meant the same
        if not tailored_as_usual(activation.name, activation.parameter):
            words.append(f"activation.parameter={activation.parameter}")
    words += [f"{key}={value}" for key, value in differences(config).items() if key not in named]
    return " ".join(["bsnn train", *words, f"seed={config.seed}", *threads])


def of_run(directory: str | Path) -> dict[str, Any]:
    """Return `command` and `FIELDS` of a run directory; fields are None where they are not known."""
    return {"command": command(read_config(Path(directory) / "config.yaml")), **of_directory(directory)}


def of_directory(directory: str | Path) -> dict[str, Any]:
    """Return `FIELDS` of a directory with a `provenance.json`."""
    path = Path(directory) / "provenance.json"
    return fields(json.loads(read_text(path)) if path.exists() else {})


def fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `FIELDS` of a `provenance.json`: those of the last session, but `started` of the first one."""
    first = next(iter(content.get("earlier_sessions", [])), content)
    return {name: content.get(name) for name in FIELDS} | {"started": first.get("started")}


def table(provenances: Iterable[Mapping[Any, Any]]) -> Table:
    """Return a row for each place that results come from: `ALIKE`, how many results, and when."""
    header = ["commit", "bsnn", "torch", "python", "device", "threads", "results", "begun (UTC)", "ended"]
    frame = pd.DataFrame([{name: row.get(name) for name in FIELDS} for row in provenances], dtype=object)
    rows = []
    for _, group in frame.groupby(ALIKE, dropna=False, sort=False) if len(frame) else ():
        first = {name: None if pd.isna(value) else value for name, value in group.iloc[0].items()}
        rows.append(
            [
                provenance.commit(first),
                str(first["version"] or DASH),
                str(first["torch"] or DASH) + (f", CUDA {first['cuda']}" if first["cuda"] else ""),
                *(str(first[name] or DASH) for name in ("python", "device", "threads")),
                str(len(group)),
                minute(group["started"].dropna().min()),
                minute(group["ended"].dropna().max()),
            ]
        )
    return text_table(header, rows)


def minute(time: Any) -> str:
    """Return a time of `provenance.now` to the minute, for people; a dash where there is none."""
    return time[:16].replace("T", " ") if isinstance(time, str) else DASH
