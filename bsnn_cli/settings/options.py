"""An option: a field of a config dataclass that carries its meaning, unit and range. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import os.path
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bsnn_cli.settings.suggestions import nearest


@dataclass(frozen=True)
class Rule:
    """The values that an option accepts: words for a user, a test, and the names if it is a choice among names."""

    words: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Rule:
    """Accept one of the named choices."""
    return Rule("one of " + ", ".join(choices), lambda value: value in choices, choices)


def some_of(*choices: str) -> Rule:
    """Accept a list of named choices that is not empty."""
    return Rule("a list of " + ", ".join(choices), lambda names: len(names) > 0 and set(names) <= {*choices}, choices)


def at_least(bound: float) -> Rule:
    """Accept a finite number not below `bound`."""
    return Rule(f"at least {bound}", lambda value: math.isfinite(value) and value >= bound)


def above(bound: float) -> Rule:
    """Accept a finite number above `bound`."""
    return Rule(f"above {bound}", lambda value: math.isfinite(value) and value > bound)


def half_open(low: float, high: float) -> Rule:
    """Accept a number in [low, high)."""
    return Rule(f"at least {low} and below {high}", lambda value: low <= value < high)


def between(low: float, high: float) -> Rule:
    """Accept a number in (low, high)."""
    return Rule(f"above {low} and below {high}", lambda value: low < value < high)


def option(
    default: Any, meaning: str, rule: Rule | None = None, *, unit: str = "", result: bool = False, path: bool = False
) -> Any:
    """Declare a field.

    Args:
        default: the value if none is given; None means "derived", as the meaning explains. `dict`: an empty mapping,
            whose keys are the user's.
        meaning: one line for `--help`.
        rule: the values that are accepted; None if the type says it all.
        unit: of the value, if it has one.
        result: True if the value can change a result: then it is part of a run's identity.
        path: True if the value is a path: then a leading `~` stands for a home directory, on any way into the config.
    """
    metadata = {"meaning": meaning, "rule": rule, "unit": unit, "result": result, "path": path}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (dotted key, field, value) of every leaf of a config dataclass, in order of declaration."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry, value


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by key, with a key such as `network.kwargs.depth` for each entry of one that is a mapping."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def settings(config: Any) -> dict[str, Any]:
    """Return the values of a config by dotted key, as `flattened`; arguments of a network with its defaults.

    Lists are `written`, so that tables can hold them.
    """
    values = {key: value for key, _, value in options(config)}
    if "network.defaults" in values:
        values["network.kwargs"] = values.pop("network.defaults") | values["network.kwargs"]
    return {key: written(value) for key, value in flattened(values).items()}


def expand_homes(config: Any) -> None:
    """Replace a leading `~` or `~user` of each path in a config, in place. A second time changes nothing."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            expand_homes(value)
        elif entry.metadata.get("path") and value is not None:
            setattr(config, entry.name, os.path.expanduser(value))


def allowed(entry: dataclasses.Field[Any]) -> str:
    """Return in words what an option accepts."""
    rule: Rule | None = entry.metadata["rule"]
    kind = str(entry.type)
    words = [next((text for name, text in TYPE_WORDS.items() if kind.startswith(name)), "")]
    if rule is not None:
        words.append(rule.words)
    text = " ".join(word for word in words if word)
    text = text or next((text for name, text in UNRULED.items() if kind.startswith(name)), "")
    return f"{text}, or null" if text and kind.endswith("None") else text


UNRULED = {"str": "a text", "list[int]": "a list of whole numbers", "list[str]": "a list of texts"}
"""Types whose words are left out where a rule says more."""

TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "dict": "keys and values"}


def written(value: Any) -> Any:
    """Return a list as the text that a command line writes, such as `[500,400,300]`; any other value as it is."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else value


def complaint(key: str, value: Any, words: str, choices: Iterable[str] = ()) -> str:
    """Return a line that names the key, the value, what is allowed and, among names, the nearest one."""
    known = set(choices)
    wrong = [entry for entry in value if entry not in known][:1] if isinstance(value, list) else [value]
    near = [name for entry in wrong for name in nearest(str(entry), choices)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key}={written(value)}: must be {words}{hint}"
