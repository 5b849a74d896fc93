"""The words of a command line before Hydra composes them: in an order that it takes, and each that it would misread.

Hydra is imported where it is needed, so that help texts do without it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NoReturn

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.config import VERBS
from bsnn_cli.settings.knobs import complaint, knobs


def groups() -> dict[str, list[str]]:
    """Config groups and their choices, read off the shipped folder."""
    found = {}
    for folder in sorted(files("bsnn_cli.configs").iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_") and folder.name != "hydra":
            choices = sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))
            if choices:
                found[folder.name] = choices
    return found


def checked(verb: str, words: Sequence[str]) -> list[str]:
    """The same command line as Hydra understands it: flags first, and no `group=null` where null is the default.

    Raises:
        ConfigError: an unknown flag, a word without `=`, or a group or node that is given something else than a choice.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; `bsnn {verb} --help` lists the keys, --hydra-help the flags")

    overrides = [word for word in words if word.startswith("~") or ("=" in word and not word.startswith(("-", "=")))]
    flags = [word for word in words if word not in overrides]
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    stray = parser.parse_args(flags).overrides
    if stray:
        refuse(f"{stray[0]}: must be KEY=VALUE")
    return flags + [word for word in overrides if not _spells_out_null(verb, word)]


def filters(arguments: list[str]) -> list[str]:
    """The command line of `bsnn runs`, with what is no key of its own, such as `seed=0,1`, gathered under `where`."""
    own = [key for key, _, _ in knobs(VERBS["runs"]())]
    keys = {argument: match[1] for argument in arguments if (match := re.match(r"(\w[\w.]*)=.", argument))}
    settings = [argument for argument, key in keys.items() if key not in own and not key.startswith("hydra")]
    if not settings:
        return arguments
    quoted = ",".join("'" + setting.replace("'", "\\'") + "'" for setting in settings)
    return [*(argument for argument in arguments if argument not in settings), f"where=[{quoted}]"]


def _spells_out_null(verb: str, word: str) -> bool:
    """Whether a word sets a group to null, its default.

    Raises:
        ConfigError: it gives a group, or another node of the config, a value that is not one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    config = VERBS[verb]()
    key, _, text = word.lstrip("+").partition("=")
    if word.startswith("~") or "." in key or not hasattr(config, key):
        return False
    try:
        [override] = OverridesParser.create().parse_overrides([word])
    except OverrideParseException:  # Hydra will say why
        return False
    if override.is_sweep_override():
        return False
    value = override.value()
    choices = groups().get(key)
    if choices is not None:
        if value is None and getattr(config, key) is None:
            return True
        if not isinstance(value, str):
            raise ConfigError(complaint(key, text, "one of " + ", ".join(choices)))
    elif dataclasses.is_dataclass(getattr(config, key)) and not isinstance(value, dict):
        leaf = dataclasses.fields(getattr(config, key))[0].name
        raise ConfigError(f"{word}: must name one of its keys, such as {key}.{leaf}=…; `bsnn {verb} --help` lists them")
    return False
