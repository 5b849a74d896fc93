"""A copy of all results for a repository: tables, figures, and runs, measurements and times without weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd

from bsnn_cli.common.files import read_text, write_text
from bsnn_cli.common.table import to_markdown
from bsnn_cli.errors import ConfigError, RunDirectoryError
from bsnn_cli.report import provenance_table
from bsnn_cli.report.archive import archive
from bsnn_cli.results import pivot, variation
from bsnn_cli.results.captions import captions
from bsnn_cli.results.question import ask
from bsnn_cli.results.store import Results
from bsnn_cli.results.tables import PAPER_DATASETS, paper_layout
from bsnn_cli.settings.config import TableConfig
from bsnn_cli.settings.identity import Protocol

COLUMNS = [
    "dataset", "activation", "gpn", "separation", "root", "batch_norm", "weights", "depth", "width", "epochs", "seed",
    "status", "test_accuracy", "train_accuracy", "test_loss", "train_loss", "validation_accuracy", "validation_loss",
    "steps", "elapsed_s", "networks", "diverged_epoch", "diverged_step", "numerics", "identity", "protocol",
]  # fmt: skip
"""Columns of `runs.csv`, before those of `provenance_table`."""

OF_RUNS = ("test_accuracy", "train_accuracy", "comparison", "paired")
TABLES = ("tuned", *OF_RUNS, "constraint", "roots", "approaches")
"""In the order in which the page shows them; other tables are copied too."""

TUNED = ("validation_accuracy", "test_accuracy", "epochs_to_90")
"""Metrics of the table of runs that try values of a setting."""

MADE = "What has been run so far. This command has made the page, its tables and its figures:"

WITHOUT_RESULTS = {"activations", "phase_diagram"}
"""Figures that are the same whatever has been run, and say nothing of it."""

FIGURES = ("constraint", "roots", "propagation", "propagation_all", "derivatives", "width", "approaches", "theorems")


def require_another_folder(folder: str | None, output_root: str) -> None:
    """Refuse to copy results onto themselves.

    Raises:
        ConfigError: both are the same folder.
    """
    if folder is not None and Path(folder).resolve() == Path(output_root).resolve():
        raise ConfigError(f"export={folder}: is the output folder itself; choose another one")


def export(stored: Results, folder: Path, command: str) -> Path:
    """Copy what is in `tables` and `figures`, `archive` the rest, and write `runs.csv` and a page; returns the page.

    Args:
        stored: results.
        folder: for the copy; made if needed.
        command: that makes them all.

    Raises:
        RunDirectoryError: a file cannot be written.
    """
    try:
        runs = all_runs(stored)
        write_text(folder / "runs.csv", runs.to_csv(index=False))
        for source in sorted((stored.root / "tables").glob("*")):
            if source.suffix in (".csv", ".md"):
                shutil.copyfile(source, folder / source.name)
        for source in drawn(stored):
            shutil.copyfile(source, folder / source.name)
        archive(stored.root, [] if runs.empty else stored.finished["directory"], folder)
        write_text(folder / "README.md", page(stored, command, runs))
    except OSError as error:
        raise RunDirectoryError(f"export={folder}: cannot be written ({error.strerror})") from error
    return folder / "README.md"


def drawn(stored: Results) -> list[Path]:
    """Return the pictures of results that `captions.md` names, in the order in which the page shows them."""
    folder = stored.root / "figures"
    names = sorted(
        captions(folder).keys() - WITHOUT_RESULTS,
        key=lambda name: (FIGURES.index(name) if name in FIGURES else len(FIGURES), name),
    )
    return [path for path in (folder / f"{name}.png" for name in names) if path.exists()]


def all_runs(stored: Results) -> pd.DataFrame:
    """Return a row for each finished run: what it is, what it came to, where it comes from."""
    runs = stored.finished
    if runs.empty:
        return pd.DataFrame(columns=[*COLUMNS, "command", *provenance_table.FIELDS])
    origins = pd.DataFrame([provenance_table.of_run(directory) for directory in runs["directory"]], index=runs.index)
    return pd.concat([runs.reindex(columns=COLUMNS), origins], axis=1)


def page(stored: Results, command: str, runs: pd.DataFrame) -> str:
    """Return the page: what was run where, all tables, all figures with their captions."""
    parts = ["# Results", MADE, f"<!-- long -->\n```sh\n{command}\n```", made(stored, runs)]
    published = (runs["protocol"] == Protocol()) & runs["dataset"].isin(PAPER_DATASETS) & (runs["separation"] == "")
    texts = tables_of(stored)
    for name in TABLES:
        if name in texts and (name != "comparison" or published.any()):
            parts.append(re.sub(r"^#", "##", texts[name], flags=re.MULTILINE).strip())
    speed = stored.root / "bench" / "bench.md"
    if speed.exists():
        parts.append(f"## Speed\n\n`bsnn bench`: {read_text(speed).strip()}")
    told = captions(stored.root / "figures")
    for source in drawn(stored):
        parts.append(f"![{source.stem}]({source.name})\n\n{told[source.stem]}")
    parts.append(
        "Every run with its accuracies, the command that repeats it, commit, versions and hardware is in"
        " [runs.csv](runs.csv); `elapsed_s` is time by the clock, other work of the machine included. The folders"
        " `runs` and `propagation` hold the files of each, without weights; copied into `outputs` they are finished."
    )
    return "\n\n".join(parts) + "\n"


def tables_of(stored: Results) -> dict[str, str]:
    """Return the tables of the page in Markdown, as they are in the folder `tables`.

    Runs that try values of a setting make a table of their own, `tuned`, in place of one for each value.
    """
    paths = {name: stored.root / "tables" / f"{name}.md" for name in TABLES}
    texts = {name: read_text(path) for name, path in paths.items() if path.exists()}
    if stored.finished.empty:
        return texts
    key, tried = variation.tried(stored.finished)
    if not tried.any():
        return texts
    texts = {name: text for name, text in texts.items() if name not in OF_RUNS}
    if not tried.all():
        layout = paper_layout(stored.finished[~tried])
        texts |= {name: layout[f"{name}.md"] for name in OF_RUNS}
    return texts | {"tuned": f"# Each at its best\n\n{tuned_table(stored, key)}"}


def tuned_table(stored: Results, key: str) -> str:
    """Return the table of runs at the value of a key that validation chooses."""
    approaches = pivot.axis_values(stored.finished, "approach", named=False)
    rows = "activation" if approaches.isin(variation.BY_THEMSELVES).all() else "approach"
    asked = TableConfig(tune=[key], rows=rows, metric=list(TUNED), split="test", format="markdown")
    words = f"bsnn table tune={key} rows={rows} metric={','.join(TUNED)} split=test"
    return f"{ask(stored, None, asked).text}\n\n`{words}`"


def made(results: Results, runs: pd.DataFrame) -> str:
    """Return commit, versions, hardware and time of everything, a row for each that differs."""
    measured = [provenance_table.of_directory(summary["directory"]) for summary in results.summaries]
    places = provenance_table.table([*runs.to_dict("records"), *measured])
    return to_markdown(places) if places.rows else "Nothing has been run."
