"""Checks and quotes the words of a command line before Hydra composes them.

Hydra is imported where it is needed, so that help texts start without it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NoReturn

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings.choices import MADE_CHOICES
from bsnn_cli.settings.config import VERBS
from bsnn_cli.settings.options import complaint, options
from bsnn_cli.settings.suggestions import nearest


def groups() -> dict[str, list[str]]:
    """Return the config groups and their choices: those that are made from tables, and those of the shipped folder."""
    choices = {group: set(made) for group, made in MADE_CHOICES.items()}
    for folder in files("bsnn_cli.configs").iterdir():
        if folder.is_dir() and not folder.name.startswith("_") and folder.name != "hydra":
            names = {entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")}
            choices[folder.name] = choices.get(folder.name, set()) | names
    return {group: sorted(names) for group, names in sorted(choices.items()) if names}


def groups_of(verb: str) -> dict[str, list[str]]:
    """Return the config groups of a verb and their choices: those that are a node or a key of its config.

    The settings of an optimiser are a group for training, and plain keys for timing, which knows one optimiser.
    """
    config = VERBS[verb]()
    known = {key for key, _, _ in options(config)}
    nodes = {entry.name for entry in dataclasses.fields(config)}
    made = {
        group: {f"{group}.{key}" for settings in choices.values() for key in settings}
        for group, choices in MADE_CHOICES.items()
    }
    return {
        name: choices
        for name, choices in groups().items()
        if name in nodes and (getattr(config, name) is None or made.get(name, set()) <= known)
    }


def checked(verb: str, words: Sequence[str]) -> list[str]:
    """Return the command line in the form that Hydra takes: flags first, and no `group=null` where null is the default.

    Raises:
        ConfigError: an unknown flag, a word without `=`, or a group or node that is given something else than a choice.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; `bsnn {verb} --help` lists the keys, --hydra-help the flags")

    words = [spelled_out(verb, word) for word in words]
    overrides = [word for word in words if word.startswith("~") or ("=" in word and not word.startswith(("-", "=")))]
    flags = [word for word in words if word not in overrides]
    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    if flags[-1:] in (["--info"], ["-i"]):  # or it would take the first override as its argument
        flags.append("all")
    stray = parser.parse_args(flags).overrides
    if stray:
        refuse(f"{stray[0]}: must be KEY=VALUE")
    refuse_repeated(overrides)
    return flags + [as_typed(verb, word) for word in overrides if not _spells_out_null(verb, word)]


def refuse_repeated(words: Sequence[str]) -> None:
    """Refuse a key that is given twice, as a shell expands `seed={0,1,2}`; Hydra would take the last.

    Raises:
        ConfigError: naming the key, with all its values as one list.
    """
    given: dict[str, list[str]] = {}
    for word in words:
        key, _, value = word.partition("=")
        given.setdefault(key.lstrip("+"), []).append(value)
    for key, values in given.items():
        if len(values) > 1:
            raise ConfigError(f"{key}: is given {len(values)} times; for a sweep, give -m and {key}={','.join(values)}")


def spelled_out(verb: str, word: str) -> str:
    """Return the word as Hydra wants it, where that is longer than what a user types.

    `network=my.py:build` is short for `network.path=my.py:build`. What `network.kwargs.depth=20` adds to a mapping,
    Hydra takes with `++` only. A key that takes a list takes its entries without brackets:
    `metric=train_loss,test_loss`. `model.width=[500,400,300]` is short for `model.widths=[500,400,300]`.
    """
    defaults = {key: default for key, _, default in options(VERBS[verb]())}
    lists = [key for key, entry, _ in options(VERBS[verb]()) if str(entry.type).startswith("list")]
    key, _, text = word.partition("=")
    if key in lists and re.fullmatch(r"[^\[({'\"]+", text) and text != "null":
        return f"{key}=[{','.join(quoted(entry) if '=' in entry else entry for entry in text.split(','))}]"
    if key == "model.width":
        return _widths_spelled_out(word)
    if key == "network" and "network.path" in defaults and (".py" in text or text == "null"):
        return word.replace("network", "network.path", 1)
    mappings = tuple(f"{key}{end}" for key, default in defaults.items() if isinstance(default, dict) for end in ".=")
    return f"++{word}" if word.startswith(mappings) else word


def _widths_spelled_out(word: str) -> str:
    lists = re.fullmatch(r"model\.width=(\[[^\]]*\](?:,\[[^\]]*\])*)", word)
    return word if lists is None else f"model.widths={lists[1]}"


def as_typed(verb: str, word: str) -> str:
    """Return the word with quotes where its key takes a text and Hydra would read something else.

    `output_root=2024_01` would become 202401, and `~/results` cannot be read.
    """
    key, _, text = word.lstrip("+").partition("=")
    kinds = {name: str(entry.type) for name, entry, _ in options(VERBS[verb]())}
    if not kinds.get(key, "").startswith("str") or re.search(r"[(\[{]", text):  # a call or a list of Hydra
        return word
    values = re.split(r"""((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,'"])+)""", text)  # and what is between them
    values[1::2] = [value if _is_text(value) else quoted(value) for value in values[1::2]]
    return f"{word.partition('=')[0]}={''.join(values)}"


def _is_text(word: str) -> bool:
    """Return whether Hydra reads this word, which may be quoted already, as a text or null."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"key={word}").value()
    except HydraException:
        return False
    return value is None or isinstance(value, str)


def quoted(text: str) -> str:
    """Return the text in quotes. Hydra takes a backslash as it is, except before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def filters(verb: str, arguments: list[str]) -> list[str]:
    """Return the command line with keys of runs, such as `seed=0,1`, gathered under `where`, if the verb has that key.

    A key that is almost one of the verb's, such as `row` or `fromat`, is left to Hydra, which suggests that one.
    """
    verb_keys = [key for key, _, _ in options(VERBS[verb]())]
    if "where" not in verb_keys:
        return arguments
    run_keys = [key for key, _, _ in options(VERBS["train"]())]
    keys = {argument: match[1] for argument in arguments if (match := re.match(r"(\w[\w.]*)=.", argument))}
    refuse_repeated(list(keys))
    settings = [
        argument
        for argument, key in keys.items()
        if key not in verb_keys
        and not key.startswith("hydra")
        and (key in run_keys or not nearest(key, verb_keys, cutoff=0.7))
    ]
    if not settings:
        return arguments
    where = ",".join(quoted(_widths_spelled_out(argument)) for argument in settings)
    return [*(argument for argument in arguments if argument not in settings), f"where=[{where}]"]


def _spells_out_null(verb: str, word: str) -> bool:
    """Return whether a word sets a group to null, its default.

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
    choices = groups_of(verb).get(key)
    if choices is not None:
        if value is None and getattr(config, key) is None:
            return True
        if not isinstance(value, str):
            raise ConfigError(complaint(key, text, "one of " + ", ".join(choices)))
    elif dataclasses.is_dataclass(getattr(config, key)) and not isinstance(value, dict):
        leaf = dataclasses.fields(getattr(config, key))[0].name
        raise ConfigError(f"{word}: must name one of its keys, such as {key}.{leaf}=…; `bsnn {verb} --help` lists them")
    return False
