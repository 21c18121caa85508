"""A command's flags, made from the signature of its function, and their help, from its docstring.

A parameter is a flag, a list takes the words without one, and a dataclass gives a flag for each field. Values are read
and checked like those in a file, and an experiment's flags win over its files wherever they stand.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from docstring_parser import parse_from_object

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import user_path
from lora_study.base.plain_yaml import dump_yaml, load_yaml
from lora_study.base.settings import fitted, is_section
from lora_study.config import ExperimentConfig, check_source, local_folder, to_dict
from lora_study.config_files import experiment_from, layered, nested, overlay

TYPED = "command"  # the parameter that is not a flag but the command as typed


class Once(argparse.Action):
    """Keeps a flag's value, and refuses a second one: the first would be lost."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Keep it."""
        if hasattr(namespace, self.dest):
            parser.error(f"{option} is given twice; leave one out")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse's parser, with `ConfigError` in place of a usage text and an exit; flags are written in full."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise, naming the flag that is closest to an unknown one."""
        hint = ""
        if message.startswith("unrecognized"):
            word, _, _ = message.removeprefix("unrecognized arguments: ").partition(" ")
            flag, message = word.partition("=")[0], message if word else "an argument is empty"
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; see {self.prog} --help"
        raise ConfigError(one_line(message) + hint)


def parse(function: Callable[..., int], prog: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The arguments to call a command's function with.

    Raises:
        ConfigError: a flag is unknown or missing, or has a value that it cannot have.
        SystemExit: help or the config was asked for, and was printed.
    """
    parser = Parser(prog=prog, description=short_help(function), argument_default=argparse.SUPPRESS)
    parameters, words = inspect.signature(function).parameters, _words(function)
    for name, parameter in parameters.items():
        _add_parameter(parser, name, parameter, words.get(name, ""))
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.annotation
        if kind is ExperimentConfig:
            values[name] = _experiment(given)
        elif dataclasses.is_dataclass(kind):
            found = {n: _checked(of, given[n], _flag(n)) for n, of in _types(kind).items() if n in given}
            values[name] = kind(**found)  # type: ignore[operator]
        elif name == TYPED:
            # A record holds it: a file's name need not be valid UTF-8, but a record has to be.
            values[name] = f"{prog} {shlex.join(arguments)}".encode(errors="backslashreplace").decode()
        elif name in given:
            values[name] = _checked(kind, given[name], _flag(name))
    return values


def short_help(function: Callable[..., int]) -> str:
    """What a command does, in a line."""
    return parse_from_object(function).short_description or ""


def _add_parameter(parser: Parser, name: str, parameter: inspect.Parameter, words: str) -> None:
    kind, required = parameter.annotation, parameter.default is inspect.Parameter.empty
    if kind is ExperimentConfig:
        parser.add_argument("--config", action="append", help="Experiment file; later files and flags win.")
        parser.add_argument("--print_config", action="store_true", help="Print what would be run, and stop.")
    if dataclasses.is_dataclass(kind):
        _add_fields(parser, kind, parse_from_object(kind).short_description)
    elif kind is bool:
        parser.add_argument(_flag(name), action="store_true", help=words)
    elif get_origin(kind) is list:
        parser.add_argument(name, nargs="*", default=[], help=words)
    elif name != TYPED:
        shown = "" if required or parameter.default is None else f" (default: {parameter.default})"
        metavar = _metavar(name, kind)
        parser.add_argument(_flag(name), action=Once, required=required, metavar=metavar, help=words + shown)


def _add_fields(parser: Parser, kind: Any, title: str | None, prefix: str = "") -> None:
    """A group of flags for the fields of a dataclass, and one for each of its sections."""
    group, words, defaults = parser.add_argument_group((title or "").removesuffix(".")), _words(kind), to_dict(kind())
    if prefix:
        several = "Several of these at once, as a YAML mapping."
        group.add_argument(f"--{prefix[:-1]}", action=Once, metavar="{...}", help=several)
    for f in dataclasses.fields(kind):
        name, default = f"{prefix}{f.name}", defaults[f.name]
        if is_section(f.type):
            _add_fields(parser, f.type, words[f.name], f"{name}.")
            continue
        shown = default if isinstance(default, str) else json.dumps(default).replace('"', "")
        help = f"{words[f.name]} (default: {shown})"
        group.add_argument(f"--{name}", action=Once, metavar=_metavar(f.name, f.type), help=help)


def _words(of: Any) -> dict[str, str]:
    """What a docstring says about each parameter or field; % is doubled, as argparse wants it."""
    found = parse_from_object(of).params
    return {p.arg_name: " ".join((p.description or "").split()).replace("%", "%%") for p in found}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str, kind: Any) -> str:
    choices = get_args(kind) if get_origin(kind) is Literal else ("true", "false") if kind is bool else ()
    return f"{{{','.join(choices)}}}" if choices else name.upper()


def _types(kind: Any, prefix: str = "") -> dict[str, Any]:
    """The type of each field of a dataclass, by its dotted name; a section comes before its fields."""
    types = {}
    for f in dataclasses.fields(kind):
        types[f"{prefix}{f.name}"] = f.type
        types |= _types(f.type, f"{prefix}{f.name}.") if is_section(f.type) else {}
    return types


def _checked(kind: Any, given: Any, name: str) -> Any:
    """The value of a parameter: a flag's, the words without a flag, or true."""
    return fitted(_value(kind, given, name), kind, name) if isinstance(given, str) else given


def _value(kind: Any, given: str, name: str) -> Any:
    """A flag's value, read like a file's unless it is a text."""
    check(given != "", name, given, "it is empty; give it a value, or leave it out")
    kinds = get_args(kind) if NoneType in get_args(kind) else (kind,)
    if NoneType in kinds and given == "null":
        return None
    if Path in kinds:
        return user_path(given)
    if str in kinds or get_origin(kind) is Literal:
        return given
    if get_origin(kind) is tuple and not given.lstrip().startswith("["):
        return given.split(",")
    try:
        return load_yaml(given)
    except Exception as error:  # PyYAML's own, and others if a tag does not fit its value
        problem = one_line(getattr(error, "problem", None) or error)
        raise ConfigError(f"{name}: {given!r} is not YAML: {problem}") from error


def _experiment(given: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment from its files and flags; with --print_config, print it and stop."""
    flags: dict[str, Any] = {}
    for name, kind in _types(ExperimentConfig).items():
        if name in given:
            flags = overlay(flags, nested(name, _value(kind, given[name], f"--{name}")))
    files = given.get("config", ())
    check("" not in files, "--config", "", "it is empty; give it a file, or leave it out")
    below = layered(files)
    try:
        config = experiment_from(overlay(below, flags))
    except ConfigError as error:
        try:  # a mistake that is theirs is said with their names
            experiment_from(below, ", ".join(files))
        except ConfigError as theirs:
            if str(theirs).endswith(str(error)):
                raise theirs from error
        raise
    if "print_config" in given:
        check_source(config.data.source)
        local_folder(config.model.backbone)
        print(dump_yaml(to_dict(config)), end="")
        sys.exit(0)
    return config
