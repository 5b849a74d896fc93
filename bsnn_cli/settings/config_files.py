"""Explain faults of a user's own YAML files: one line with the file, the line in it and a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException

from bsnn_cli.settings.arguments import groups

HEADER = "# @package _global_"
"""First line of an experiment, whose keys are those of the command line."""

Unknown = Callable[[str], str]
"""Returns the words for a key that does not exist."""

Refused = Callable[[str, str], str]
"""Returns the words for a key and a value that it does not take."""


def explain(error: Exception, arguments: Sequence[str], unknown: Unknown, refused: Refused) -> str | None:
    """Explain an error that a config file has caused; None if none has.

    Args:
        error: that composing has ended with.
        arguments: of the command line, which tells where a user's own files are.
        unknown: the words for a key that does not exist.
        refused: the words for a value that is not taken.
    """
    marked = error if isinstance(error, yaml.MarkedYAMLError) else error.__cause__
    if isinstance(marked, yaml.MarkedYAMLError) and marked.problem_mark is not None:
        mark = marked.problem_mark
        problem = f"{marked.problem}, {marked.context}" if marked.context else str(marked.problem)
        remedy = "; indent with spaces" if r"'\t'" in problem else "; close it" if "end>" in problem else ""
        return f"{mark.name}:{mark.line + 1}: is no YAML: {problem}{remedy}"
    if isinstance(error, UnicodeDecodeError):
        broken = next((path for path in _files(arguments) if not _is_text(path)), None)
        return None if broken is None else f"{broken}: is no text; save it as UTF-8"
    told = re.match(r"In '(.+)': (?:(\w+) raised|Could not override '.+@(\w+)\.)", str(error))
    if told is None or not isinstance(error, ConfigCompositionException):
        return None
    path = next((path for path in _files(arguments) if path.as_posix().endswith(f"/{told[1]}.yaml")), None)
    if path is None or not _is_text(path):
        return None
    found = re.search(r"full_key: (\S+)", str(error))
    key = told[3] or (found[1] if found else "")
    wrong = unknown if str(told[2]).endswith("KeyError") else None
    return f"{path}{_fault(path, told[1].partition('/')[0], key, wrong, refused)}"


def _fault(path: Path, group: str, key: str, unknown: Unknown | None, refused: Refused) -> str:
    """Return what follows the file's name in the message, for a file that is YAML but makes no config.

    Args:
        path: of the file.
        group: that it is a choice of.
        key: that Hydra complains of, with dots; empty where it complains of the whole.
        unknown: None where the key exists.
        refused: see `explain`.
    """
    text = path.read_text(encoding="utf-8")
    if text.startswith("\ufeff"):
        return ":1: begins with a byte-order mark, which hides its first line; save it as UTF-8 without one"
    content = yaml.safe_load(text) or {}
    if not isinstance(content, dict):
        return ":1: has to consist of keys and values"
    if key == group:
        return f":1: has to begin with the line `{HEADER}`, or its keys are taken for those of {key}"
    for name in groups():
        chosen = content.get(name)
        if isinstance(chosen, str):
            remedy = f"choose it by `defaults: [{{override /{name}: {chosen}}}]`"
            return f"{_line(text, name)}: {name}: {chosen}: is the name of a choice; {remedy}"
    value: Any = content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return f"{_line(text, key)}: {refused(key, str(value)) if unknown is None else unknown(key)}"


def _line(text: str, key: str) -> str:
    """`:N` for the line of a key with dots; nothing if it does not stand there."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), ""
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, inner) for name, inner in pairs if name.value == part), None)
        if found is None:
            break
        line, node = f":{found[0].start_mark.line + 1}", found[1]
    return line


def _files(arguments: Sequence[str]) -> list[Path]:
    """The YAML files in the folders that a command line adds to the search path."""
    words = "\n".join(arguments)
    roots = re.findall(r"^(?:--config-(?:dir|path)|-c[dp])[=\n](.+)$", words, re.M)
    roots += re.findall(r"file://([^,\]\n]+)", words)
    return [path for root in roots for path in sorted(Path(root).rglob("*.yaml"))]


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True
