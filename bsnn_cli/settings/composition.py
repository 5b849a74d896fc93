"""Composes the typed config of a verb from its overrides by Hydra, and explains errors in one line."""

from __future__ import annotations

import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from bsnn_cli.errors import ConfigError
from bsnn_cli.settings import config_files
from bsnn_cli.settings.arguments import as_typed, checked, groups_of, refuse_repeated, spelled_out
from bsnn_cli.settings.choices import MADE_CHOICES
from bsnn_cli.settings.config import VERBS
from bsnn_cli.settings.options import allowed, complaint, expand_homes, options
from bsnn_cli.settings.suggestions import nearest
from bsnn_cli.settings.validation import check, derived

EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
"""The extra to install for a launcher: `bsnn[...]`."""

PLUGIN = "_plugin"
"""Suffix of the names under which the plugins' own declarations of launchers are kept."""


def run(verb: str, arguments: list[str], act: Callable[[DictConfig], None], program: str | None = None) -> None:
    """Hand the command line to Hydra, which calls `act` with the composed config: once, or for each job of a sweep.

    Args:
        verb: whose config is composed.
        arguments: flags of Hydra and overrides.
        act: called with each config.
        program: what a shell calls this program; None: `bsnn` and the verb, as provenance has it.

    Raises:
        ConfigError: the arguments make no config.
    """
    store = ConfigStore.instance()
    for name, schema in VERBS.items():
        store.store(group="schema", name=name, node=schema, package="_global_")
    for group, choices in MADE_CHOICES.items():
        for name, settings in choices.items():
            store.store(group=group, name=name, node=settings)
    # Hydra remarks that a user's file with the name of such a choice goes on top of it. That is meant.
    warnings.filterwarnings("ignore", message=r"\s*'.*' is validated against ConfigStore schema with the same name")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, not to Hydra's printer
    before, sys.argv = sys.argv, [program or f"bsnn {verb}", *checked(verb, arguments)]
    try:
        hydra.main(config_path="pkg://bsnn_cli.configs", config_name=verb, version_base="1.3")(act)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, verb, arguments)) from error
    except Exception as error:
        if not _raised_by_hydra(error):
            raise
        raise ConfigError(of_a_file(error, verb, arguments) or "; ".join(str(error).split("\n"))) from error
    finally:
        sys.argv = before


def _raised_by_hydra(error: Exception) -> bool:
    """Return whether Hydra has failed without a message of its own: a number for a group, a file that is no YAML."""
    frames = [str(frame.f_globals["__name__"]).split(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, UnicodeDecodeError):  # raised by a codec, below Hydra that reads
        return "bsnn_cli" not in frames[-2:] and "hydra" in frames[-3:]
    return frames[-1] in ("hydra", "omegaconf", "antlr4", "yaml")


def typed(verb: str, composed: DictConfig) -> Any:
    """Return the composed config as the verb's dataclass.

    Raises:
        ConfigError: a key that does not exist (Hydra lets `+key=value` pass), or an interpolation that fails.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, verb, [])) from error
    known = {key: value for key, _, value in options(config)}
    mappings = tuple(f"{key}." for key, value in known.items() if isinstance(value, dict))
    for key in _leaves(composed):
        if key not in known and not key.startswith(mappings):
            raise ConfigError(_unknown(key, verb))
    expand_homes(config)
    check(config)
    return derived(config)


class Composer:
    """Composes many configs of a verb while Hydra is at work, as `hydra.compose` would, in a fraction of its time.

    Hydra takes long over the choices of groups. Each set of choices is composed once, and single values are filled in
    after it.

    Args:
        verb: whose config is composed.
        config_name: the primary config, which `--config-name` may have changed; None: that of the verb.
        settings: overrides of `hydra` itself, such as `hydra.searchpath`, that the jobs share.
    """

    def __init__(self, verb: str, config_name: str | None = None, settings: Sequence[str] = ()) -> None:
        self.verb = verb
        self._config_name = config_name or verb
        self._settings = list(settings)
        loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=loader)
        self._groups = set(loader.list_groups(""))
        self._keys = {key for key, _, _ in options(VERBS[verb]())}
        self._chosen: dict[tuple[tuple[str, str], ...], DictConfig] = {}

    def with_experiment(self, arguments: Sequence[str]) -> list[str]:
        """Return the arguments after the values that an experiment among them gives to other keys.

        An experiment such as `configs/experiment/depth_aware.yaml` states them as parameters of the sweeper.

        Raises:
            HydraException, OmegaConfBaseException: the experiment cannot be composed.
        """
        groups = self._groups - {key.partition(".")[0] for key in self._keys}
        parsed = self._parser.parse_overrides(list(arguments))
        chosen = [
            str(word.input_line) for word in parsed if word.key_or_group in groups and not word.is_sweep_override()
        ]
        if not chosen:
            return list(arguments)
        composed = hydra.compose(self._config_name, overrides=[*self._settings, *chosen], return_hydra_config=True)
        return with_parameters(arguments, composed.hydra.sweeper.get("params"))

    def combinations(self, arguments: Sequence[str]) -> list[list[str]]:
        """The overrides of each job of a command line with lists of values, as Hydra's own sweeper makes them.

        Raises:
            ConfigError: a key is given twice, is to be sampled from an interval, or has a pattern without a match.
            HydraException: a word cannot be read.
        """
        arguments = [spelled_out(self.verb, word) for word in arguments]
        refuse_repeated(arguments)
        lists = []
        for word, override in zip(arguments, self._parser.parse_overrides(list(arguments)), strict=True):
            if not override.is_sweep_override():
                lists.append([as_typed(self.verb, word)])
            elif override.is_discrete_sweep():
                [typed] = self._parser.parse_overrides([as_typed(self.verb, word)])
                values = [f"{typed.get_key_element()}={value}" for value in typed.sweep_string_iterator()]
                lists.append([spelled_out(self.verb, value) for value in values])
                if not lists[-1]:
                    raise ConfigError(f"{word}: matches no choice; `bsnn {self.verb} --help` lists them")
            else:
                raise ConfigError(f"{word}: is an interval; give the values, such as {override.key_or_group}=1,2,3")
        return [list(jobs) for jobs in itertools.product(*lists)]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config with these overrides, without `hydra`.

        Raises:
            HydraException, OmegaConfBaseException: they make none.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        choices = [(word.key_or_group, word.value()) for word in parsed if word.key_or_group in self._groups]
        names = [(group, name) for group, name in choices if isinstance(name, str)]
        plain = all(
            word.type == OverrideType.CHANGE and word.package is None and word.key_or_group in self._groups | self._keys
            for word in parsed
        )
        if not plain or len(names) < len(choices):
            return self._composed(overrides)
        config = self._with_choices(tuple(names)).copy()
        for word in parsed:
            if word.key_or_group not in self._groups:
                OmegaConf.update(config, word.key_or_group, word.value(), merge=True)
        return config

    def _with_choices(self, choices: tuple[tuple[str, str], ...]) -> DictConfig:
        if choices not in self._chosen:
            self._chosen[choices] = self._composed([f"{group}={name}" for group, name in choices])
        return self._chosen[choices]

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        return hydra.compose(self._config_name, overrides=[*self._settings, *overrides])


def with_parameters(arguments: Sequence[str], parameters: Mapping[str, Any] | None) -> list[str]:
    """Return the arguments after the parameters of a sweeper, without those whose keys the arguments give."""
    given = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    return [*(f"{key}={value}" for key, value in (parameters or {}).items() if key not in given), *arguments]


def expand(arguments: Sequence[str], composer: Composer) -> list[Any]:
    """Return the typed configs of a command line with lists of values, one for each combination.

    Args:
        arguments: without `-m`.
        composer: of the verb.

    Raises:
        ConfigError: the arguments make no config.
    """
    try:
        combinations = composer.combinations(composer.with_experiment(arguments))
        return [typed(composer.verb, composer.compose(overrides)) for overrides in combinations]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, composer.verb, list(arguments))) from error


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _leaves(child, f"{prefix}{key!s}.")
        else:
            yield f"{prefix}{key!s}"


def explain(error: Exception, verb: str, arguments: list[str]) -> str:
    """Explain an error of Hydra or OmegaConf in one line that names the key, the value and what is allowed."""
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        engine = choice.removesuffix(PLUGIN)
        if choice != engine in EXTRAS:
            return f'hydra/launcher={engine}: is not installed; pip install "bsnn[{EXTRAS[engine]}]"'
        if error.options is not None:
            choices = sorted(name for name in error.options if not name.endswith(PLUGIN))
            file = " or FILE.py:FUNCTION" if group == "network" else ""
            return complaint(group, choice, f"one of {', '.join(choices)}{file}", choices)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote what is not plain, as in \"key='a b'\""
    of_file = of_a_file(error, verb, arguments)
    if of_file is not None:
        return of_file
    source = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(source, "full_key", None)
    key = None if key is None else re.sub(r"\[\d+\]$", "", key)  # an entry of a list
    if isinstance(source, (ConfigAttributeError, ConfigKeyError)) and key:
        given = [name for name in (word.partition("=")[0] for word in arguments) if name.startswith(f"{key}.")]
        return _unknown(given[-1] if given else key, verb, arguments)
    entries = {name: entry for name, entry, _ in options(VERBS[verb]())}
    if key in entries:
        words = [spelled_out(verb, argument).partition("=") for argument in arguments]
        given = [value for name, _, value in words if name == key]
        if given:
            return complaint(key, given[-1], allowed(entries[key]))
    absent = re.match("Could not override '([^'@]+)'", str(source))
    if absent:
        return _unknown(absent[1], verb, arguments)
    ambiguous = re.match("Ambiguous value for argument '(.*)'", str(source))
    if ambiguous:
        return f"{ambiguous[1]}: several values make a sweep; add -m (a text with a comma needs quotes)"
    lines = [line.strip() for line in str(source).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(("See ", "object_type", "reference_type")))


def of_a_file(error: Exception, verb: str, arguments: Sequence[str]) -> str | None:
    """Explain a fault of a user's own config file in one line; None if no such file has caused the error."""
    entries = {name: entry for name, entry, _ in options(VERBS[verb]())}

    def refused(key: str, value: str) -> str:
        return complaint(key, value, allowed(entries[key]) if key in entries else "a mapping of keys to values")

    return config_files.explain(error, arguments, lambda key: _unknown(key, verb), refused)


def _unknown(key: str, verb: str, arguments: Sequence[str] = ()) -> str:
    entries = {name: entry for name, entry, _ in options(VERBS[verb]())}
    choices = groups_of(verb)
    near = nearest(key, [*entries, *choices])
    value = _value_for(entries.get(near[0]), choices.get(near[0], ()), key, arguments) if near else ""
    hint = f"did you mean {near[0]}{value}? " if near else ""
    return f"{key}: no such key; {hint}`bsnn {verb} --help` lists all"


def _value_for(entry: Any, choices: Sequence[str], key: str, arguments: Sequence[str]) -> str:
    """Return `=VALUE` as an argument gives it to an unknown key, if the key that is meant may have it, else nothing.

    Args:
        entry: the option that is meant; None if it is a config group.
        choices: of this group.
        key: that does not exist.
        arguments: of the command line.
    """
    value = next((text for name, _, text in (word.partition("=") for word in arguments) if name == key), "")
    if entry is None:
        return "".join(f"={choice}" for choice in nearest(value, choices))
    rule = entry.metadata["rule"]
    if rule is not None and rule.choices and value not in rule.choices:
        return "".join(f"={choice}" for choice in nearest(value, rule.choices))
    if str(entry.type).startswith(("int", "float")):
        fits = re.fullmatch(r"[0-9.,e+-]+", value) is not None
    else:
        fits = value != "" and (rule is None or rule.accepts(value))
    return f"={value}" if fits else ""
