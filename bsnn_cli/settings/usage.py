"""Make help texts from the declarations of the options and the choices of config groups. Imports no torch."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from bsnn_cli.settings.arguments import groups_of
from bsnn_cli.settings.config import VERBS
from bsnn_cli.settings.options import allowed

WIDTH = 110


def overview(verbs: dict[str, str]) -> str:
    """Return the text of `bsnn --help`.

    Args:
        verbs: name and one line for each.
    """
    lines = [f"  {name:10} {text}" for name, text in verbs.items()]
    return "\n".join(
        [
            "usage: bsnn VERB [KEY=VALUE ...]",
            "",
            "Train and measure very deep networks with orthogonal weights and normalised (GPN) activations.",
            "",
            *lines,
            "",
            "`bsnn VERB --help` lists the keys of a verb. Try: bsnn train dataset=digits optim.epochs=3",
            'Shell completion: eval "$(bsnn -sc install=bash)" (or zsh; fish: bsnn -sc install=fish | source)',
        ]
    )


def version() -> str:
    """Return the version of the installed package."""
    from importlib.metadata import PackageNotFoundError  # a quarter of the time that `bsnn --help` would take
    from importlib.metadata import version as installed_version

    try:
        return f"bsnn {installed_version('bsnn')}"
    except PackageNotFoundError:
        return "bsnn (not installed)"


def verb_help(verb: str, summary: str) -> str:
    """Return the text of `bsnn VERB --help`: the config groups and every option, with meaning, range and default."""
    config = VERBS[verb]()
    sections = [f"usage: bsnn {verb} [KEY=VALUE ...]", summary]
    for name, choices in groups_of(verb).items():
        listing = textwrap.fill(" ".join(choices), WIDTH, initial_indent="  ", subsequent_indent="  ")
        sections.append(f"Choices for {name}=\n{listing}")
    plain = [entry for entry in dataclasses.fields(config) if not dataclasses.is_dataclass(getattr(config, entry.name))]
    for entry in dataclasses.fields(config):
        node = getattr(config, entry.name)
        if dataclasses.is_dataclass(node):
            rows = [
                _row(f"{entry.name}.{leaf.name}", leaf, getattr(node, leaf.name)) for leaf in dataclasses.fields(node)
            ]
            sections.append(f"{entry.name}: {type(node).__doc__}\n" + "\n".join(rows))
    if plain:
        sections.append("\n".join(_row(entry.name, entry, getattr(config, entry.name)) for entry in plain))
    sections.append(FOOTNOTES.get(verb, f"`bsnn {verb} --cfg job` prints the composed config."))
    return "\n\n".join(sections)


FOOTNOTES = {
    "train": "Defaults are the paper's protocol. -m sweeps over comma-separated values: bsnn train -m activation=tanh,"
    "tanh_gpn seed=0,1,2\nexperiment=depth_aware is a sweep that is written down, in configs/experiment.\n"
    "The same command always finds the same run: finished, it is not run again; interrupted, it goes on.\n"
    "`bsnn train --cfg job` prints the composed config, --hydra-help the flags of Hydra."
}


def _row(key: str, entry: dataclasses.Field[Any], value: Any) -> str:
    """Return an option in two or more lines: key, default and unit; meaning and what is allowed."""
    unit = f" {entry.metadata['unit']}" if entry.metadata["unit"] and value is not None else ""
    default = (
        {None: "null", True: "true", False: "false"}.get(value, value)
        if isinstance(value, (bool, type(None)))
        else value
    )
    words = allowed(entry)
    meaning = entry.metadata["meaning"] + (f" [{words}]" if words else "")
    return f"  {key} = {default}{unit}\n" + textwrap.fill(
        meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
