"""From YAML files and flags to configs.

A file may name the files it is laid over under ``extends``; the files on the command line are laid over one
another from left to right, and flags win over files. Unknown keys are errors at every level.
"""

import dataclasses
import difflib
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, _loaders_dumpers, set_dumper

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import read_text, user_path
from lora_study.base.plain_yaml import Loader, dump_yaml, load_yaml
from lora_study.base.settings import fitted
from lora_study.config import RETIRED, ExperimentConfig, check_source, flatten, local_folder, to_dict, without_retired
from lora_study.config_studies import StudyConfig, SweepConfig

Config = TypeVar("Config", StudyConfig, SweepConfig)

# jsonargparse reads flags with a loader of its own, and has no public way to change how it reads a single number.
_loaders_dumpers.yaml_default_loader = Loader  # type: ignore[assignment]
set_dumper("yaml", dump_yaml)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a `ConfigError` that names the file and the place."""
    try:
        content = load_yaml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    except Exception as error:  # PyYAML has a YAMLError, but raises others too where a tag does not fit its value
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = one_line(getattr(error, "problem", None) or error)
        raise ConfigError(f"config file {path} is not YAML{place}: {problem}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds no mapping of fields to values")
    return content


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another: mappings merge, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def check_fields(content: Mapping[str, Any], kind: type, origin: str, prefix: str = "") -> None:
    """Refuse a field that a config of this kind does not have, or that has no value, naming the file and the field."""
    known = {f.name: f.type for f in dataclasses.fields(kind)}
    for name, value in content.items():
        first, _, rest = str(name).partition(".")
        if first in known and rest:
            raise ConfigError(f"{origin}: {prefix}{name} is no field here; write it as {first}: {{{rest}: ...}}")
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the fields are {', '.join(known)}"
            raise ConfigError(f"{origin}: unknown field {prefix}{name}; {hint}")
        if isinstance(nested := known[name], type) and dataclasses.is_dataclass(nested):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {prefix}{name}: {value!r} is not valid; it takes fields of its own")
            check_fields(value, nested, origin, f"{prefix}{name}.")
        elif value is None and type(None) not in get_args(known[name]):
            raise ConfigError(f"{origin}: {prefix}{name} has no value; give it one, or leave it out")


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file laid over the files its ``extends`` names (one or a list, relative to the file)."""
    content = read_yaml(path)
    if path.resolve() in above:
        raise ConfigError(f"config file {path} extends itself")
    return lay_over_extended(content, path, (*above, path.resolve()))


def beside(path: Path, name: str) -> Path:
    """The file that a config file names, relative to itself.

    Of a symbolic link, relative to the file it links to; or, where there is none, to the link.
    """
    folders = [path.resolve().parent, path.parent] if path.is_symlink() else [path.parent]
    files = [folder / user_path(name) for folder in folders]
    return next((file for file in files if file.exists()), files[0])


def lay_over_extended(content: dict[str, Any], path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Content of a config file laid over the files its ``extends`` names; see `beside`."""
    extends = content.get("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(valid, "extends", extends, "name a file, or list some")
    below: dict[str, Any] = {}
    for name in names:
        below = overlay(below, read_layers(beside(path, name), above))
    return overlay(below, {key: value for key, value in content.items() if key != "extends"})


def experiment_fields(content: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Content of an experiment's files, whose fields are those of today; see `check_fields` and `RETIRED`."""
    found = flatten(content)
    for name, only in RETIRED.items():
        value = found.get(name, only)
        check(value == only, f"{origin}: {name}", value, "this setting is gone; leave it out")
    content = without_retired(content)
    check_fields(content, ExperimentConfig, origin)
    return content


class ConfigParser(ArgumentParser):
    """jsonargparse's parser, with `ConfigError` instead of a usage text and an exit."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise instead of printing the usage and exiting."""
        hint = f"; see {self.prog} --help" if message.startswith("unrecognized") else ""
        raise ConfigError(one_line(message) + hint) from ex


class ExperimentParser(ConfigParser):
    """The flags of an experiment over its files, in whatever order they are given."""

    def parse_args(self, args: Sequence[str] = (), *more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parse the files first, so that flags win; 'query,value' is a list where the field is one."""
        files, flags = [], []
        arguments = iter(args)
        for argument in arguments:
            flag, equals, value = argument.partition("=")
            if len(flag) > 2 and "--config".startswith(flag):
                files += [argument] if equals else [argument, *itertools.islice(arguments, 1)]
            elif flag.removeprefix("--") in _lists(ExperimentConfig):
                value = value if equals else next(arguments, "")
                flags.append(f"{flag}={value if value.lstrip().startswith('[') else json.dumps(value.split(','))}")
            else:
                flags.append(argument)
        return super().parse_args([*files, *flags], *more, **kwargs)

    def parse_path(self, cfg_path: Any, **kwargs: Any) -> Any:
        """Parse one experiment file after resolving what it extends."""
        kwargs.pop("_fail_no_subcommand", None)  # known to parse_path alone
        content = experiment_fields(read_layers(user_path(cfg_path)), f"config file {cfg_path}")
        return self.parse_object(content, **kwargs)

    def dump(self, cfg: Any, **kwargs: Any) -> str:
        """What --print_config prints: a file of the experiment that a run would run, or its refusal."""
        fields = [f.name for f in dataclasses.fields(ExperimentConfig)]
        config = experiment_from({name: value for name, value in cfg.as_dict().items() if name in fields})
        check_source(config.data.source)
        local_folder(config.model.backbone)
        printed = load_yaml(super().dump(self.parse_object(to_dict(config)), **kwargs))
        return dump_yaml({name: value for name, value in printed.items() if name in fields})


def _lists(kind: type, prefix: str = "") -> set[str]:
    """The dotted names of the fields that hold several values."""
    names = set()
    for f in dataclasses.fields(kind):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            names |= _lists(f.type, f"{prefix}{f.name}.")
        elif get_origin(f.type) is tuple:
            names.add(f"{prefix}{f.name}")
    return names


def experiment_parser() -> ConfigParser:
    """The flags of one experiment: ``--config FILE`` (repeatable) and one flag per field."""
    parser = ExperimentParser(prog="lora-study run", exit_on_error=False)
    parser.add_argument("--config", action="config", help="Experiment file; later files and flags win.")
    parser.add_class_arguments(ExperimentConfig)
    return parser


def load_experiment(
    files: str | Path | Sequence[str | Path] = (), overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """An experiment from a file, or several laid over one another, and a nested mapping on top.

    Raises:
        ConfigError: a file is missing or malformed, a key unknown, a value of the wrong type or out of range.
    """
    files = [files] if isinstance(files, str | Path) else files
    layers: dict[str, Any] = functools.reduce(overlay, (read_layers(user_path(file)) for file in files), {})
    return experiment_from(overlay(layers, overrides or {}), ", ".join(str(file) for file in files))


def experiment_from(mapping: Mapping[str, Any], origin: str = "") -> ExperimentConfig:
    """An experiment from a nested mapping, such as the config of a record; errors name its origin."""
    content, parser = experiment_fields(mapping, origin or "config"), experiment_parser()
    try:
        values = parser.instantiate(parser.parse_object(content))
    except (ArgumentError, TypeError, ValueError) as error:
        prefix = f"{origin}: " if origin else ""
        raise ConfigError(prefix + one_line(error)) from error
    names = [f.name for f in dataclasses.fields(ExperimentConfig)]
    return ExperimentConfig(**{name: values[name] for name in names})


def load_study(file: str | Path) -> tuple[StudyConfig, list[ExperimentConfig]]:
    """A study and its experiments, in the file's order, each with the first seed.

    Raises:
        ConfigError: as `load_experiment`, or two experiments share a name.
    """
    path = user_path(file)
    study = read_config(path, StudyConfig, "study")
    overrides = lay_over_extended(study.overrides, path)
    experiments = [_listed(entry, path, overrides) for entry in study.experiments]
    names = [experiment.name for experiment in experiments]
    check(len(set(names)) == len(names), f"study file {path}: experiments", names, "give each its own name")
    return study, experiments


def _listed(entry: str | dict[str, Any], path: Path, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """An experiment that the study file at a path lists: a file, or settings written out."""
    if isinstance(entry, str):
        return load_experiment([beside(path, entry)], overrides)
    origin = f"study file {path}: experiment {entry.get('name', '')}".rstrip()
    return experiment_from(overlay(lay_over_extended(entry, path), overrides), origin)


def load_sweep(file: str | Path) -> tuple[SweepConfig, ExperimentConfig]:
    """A sweep and the experiment that it varies, which does not score the test reviews.

    Raises:
        ConfigError: as `load_experiment`, or a parameter is not a field of an experiment.
    """
    path = user_path(file)
    sweep = read_config(path, SweepConfig, "sweep")
    for name in sweep.parameters:
        check_fields(nested(name, ""), ExperimentConfig, f"sweep file {path}: parameters")
    sweep = dataclasses.replace(sweep, parameters={n: _different(n, v) for n, v in sweep.parameters.items()})
    overrides = lay_over_extended(sweep.overrides, path)
    return sweep, load_experiment([beside(path, sweep.experiment)], overlay(overrides, {"score_test": False}))


def _different(name: str, values: Any) -> Any:
    """A parameter's values, of equal ones the first: 8 and 8.0 are two texts and one alpha."""
    if not isinstance(values, list):
        return values
    kept: dict[Any, Any] = {}
    for value in values:
        kept.setdefault(field_value(name, value), value)
    return list(kept.values())


def nested(name: str, value: Any) -> dict[str, Any]:
    """A value under a dotted name as nested mappings: 'lora.r', 8 -> {'lora': {'r': 8}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return dict(value)


def field_value(name: str, value: Any) -> Any:
    """A value as the field of an experiment holds it: a list becomes a tuple, a whole number of a fraction's field 1.0.

    Raises:
        ConfigError: it is not of the field's type.
    """
    kind: Any = ExperimentConfig
    for key in name.split("."):
        kind = next(f.type for f in dataclasses.fields(kind) if f.name == key)
    return fitted(value, kind, name)


def read_config(path: Path, kind: type[Config], what: str) -> Config:
    """The study or sweep in a file and the files it extends; what names it in errors."""
    content = read_layers(path)
    check_fields(content, kind, f"{what} file {path}")
    parser = ConfigParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        values = parser.instantiate(parser.parse_object(content))
        return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{what} file {path}: {one_line(error)}") from error
