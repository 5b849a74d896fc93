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
"""A function from a key that does not exist to the words for it."""

Refused = Callable[[str, str], str]
"""A function from a key and a value that it does not take to the words for them."""


def explain(error: Exception, arguments: Sequence[str], unknown: Unknown, refused: Refused) -> str | None:
    """Explain an error in a config file; None if no config file has caused it.

    Args:
        error: raised by composing.
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
    match = re.match(r"In '(.+)': (?:(\w+) raised|Could not override '.+@(\w+)\.)", str(error))
    if match is None or not isinstance(error, ConfigCompositionException):
        return None
    path = next((path for path in _files(arguments) if path.as_posix().endswith(f"/{match[1]}.yaml")), None)
    if path is None or not _is_text(path):
        return None
    full_key = re.search(r"full_key: (\S+)", str(error))
    key = match[3] or (full_key[1] if full_key else "")
    for_unknown = unknown if str(match[2]).endswith("KeyError") else None
    return f"{path}{_fault(path, match[1].partition('/')[0], key, for_unknown, refused)}"


def _fault(path: Path, group: str, key: str, unknown: Unknown | None, refused: Refused) -> str:
    """Return what follows the file's name in the message, for a file that is YAML but makes no config.

    Args:
        path: of the file.
        group: of which the file is a choice.
        key: named in Hydra's message, with dots; empty if the message is about the whole file.
        unknown: None if the key exists.
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
    """Return `:N` for the line of a key with dots; an empty text if the key is absent."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), ""
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        pair = next(((name, inner) for name, inner in pairs if name.value == part), None)
        if pair is None:
            break
        line, node = f":{pair[0].start_mark.line + 1}", pair[1]
    return line


def _files(arguments: Sequence[str]) -> list[Path]:
    """Return the YAML files in the folders that a command line adds to the search path."""
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
