"""From YAML files to configs.

A file names the files that it is laid over under ``extends``; several files are laid over one another from left to
right. Unknown keys are errors at every level.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import exists, read_text, user_path
from lora_study.base.plain_yaml import load_yaml
from lora_study.base.settings import build, check_names, fitted, is_section
from lora_study.config import RETIRED, ExperimentConfig, flatten, without_retired
from lora_study.config_studies import StudyConfig, SweepConfig

Config = TypeVar("Config", StudyConfig, SweepConfig)


# Mappings that are one value: laid over one another, they would keep names that the upper layer does not have.
WHOLE = ("labels",)
# Fields of a study or a sweep that name files, or have an extends that does.
NAME_FILES = ("experiment", "experiments", "overrides")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a `ConfigError` that names the file and the place."""
    try:
        content = load_yaml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    except Exception as error:  # PyYAML has a YAMLError, but raises others too if a tag does not fit its value
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = one_line(getattr(error, "problem", None) or error)
        raise ConfigError(f"config file {path} is not YAML{place}: {problem}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} holds no mapping of fields to values")
    return content


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another: mappings merge, everything else, and what is `WHOLE`, is replaced."""
    merged = dict(base)
    for key, value in top.items():
        below, merges = merged.get(key), key not in WHOLE and isinstance(value, Mapping)
        merged[key] = overlay(below, value) if merges and isinstance(below, Mapping) else value
    return merged


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file laid over the files its ``extends`` names (one or a list, relative to the file)."""
    content = read_yaml(path)
    if path.resolve() in above:
        raise ConfigError(f"config file {path} extends itself")
    return lay_over_extended(content, path, (*above, path.resolve()))


def beside(path: Path, name: str) -> Path:
    """The file that a config file names, relative to itself.

    For a symbolic link, relative to the file it links to or, if nothing is there, to the link.
    """
    folders = [path.resolve().parent, path.parent] if path.is_symlink() else [path.parent]
    files = [folder / user_path(name) for folder in folders]
    return next((file for file in files if exists(file)), files[0])


def lay_over_extended(content: dict[str, Any], path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Content of a config file laid over the files its ``extends`` names; see `beside`."""
    extends = content.get("extends", [])
    names = [extends] if isinstance(extends, str) else extends
    valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(valid, "extends", extends, "name a file, or list some")
    below: dict[str, Any] = {}
    for name in names:
        file = beside(path, name)
        below = overlay(below, _moved(read_layers(file, above), file, path))
    return overlay(below, {key: value for key, value in content.items() if key != "extends"})


def _moved(content: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """Content of a study or sweep file with the files it names named as another file, which extends it, would."""

    def move(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {key: move(value) if key == "extends" else value for key, value in entry.items()}
        if isinstance(entry, list):
            return [move(one) for one in entry]
        is_relative = isinstance(entry, str) and not user_path(entry).is_absolute()
        return os.path.relpath(beside(source, entry), target.parent) if is_relative else entry

    return {key: move(value) if key in NAME_FILES else value for key, value in content.items()}


def load_experiment(
    files: str | Path | Sequence[str | Path] = (), overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """An experiment from a file, or several laid over one another, and a nested mapping on top.

    Raises:
        ConfigError: a file is missing or malformed, a key unknown, a value of the wrong type or out of range.
    """
    files = [files] if isinstance(files, str | Path) else files
    return experiment_from(overlay(layered(files), overrides or {}), ", ".join(str(file) for file in files))


def layered(files: Sequence[str | Path]) -> dict[str, Any]:
    """The content of experiment files, laid over one another from left to right."""
    layers: dict[str, Any] = {}
    for file in files:
        content = read_layers(user_path(file))
        check_names(ExperimentConfig, without_retired(content), f"config file {file}")
        layers = overlay(layers, content)
    return layers


def experiment_from(mapping: Mapping[str, Any], origin: str = "") -> ExperimentConfig:
    """An experiment from a nested mapping, such as the config of a record; errors name its origin."""
    found = flatten(mapping)
    for name, only in RETIRED.items():
        value = found.get(name, only)
        check(value == only, f"{origin or 'config'}: {name}", value, "this setting is gone; leave it out")
    return build(ExperimentConfig, without_retired(mapping), origin)


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
        return _overridden(beside(path, entry), overrides, f"study file {path}: overrides")
    origin = f"study file {path}: experiment {entry.get('name', '')}".rstrip()
    return experiment_from(overlay(lay_over_extended(entry, path), overrides), origin)


def _overridden(file: Path, overrides: Mapping[str, Any], origin: str) -> ExperimentConfig:
    """An experiment from a file with overrides on top; errors name the one of the two that they are in."""
    try:
        return load_experiment([file], overrides)
    except ConfigError as error:
        load_experiment([file])
        raise ConfigError(f"{origin}: {str(error).removeprefix(f'{file}: ')}") from error


def load_sweep(file: str | Path) -> tuple[SweepConfig, ExperimentConfig]:
    """A sweep and the experiment that it varies, which does not score the test reviews.

    Raises:
        ConfigError: as `load_experiment`, or a parameter is not a field of an experiment.
    """
    path = user_path(file)
    sweep = read_config(path, SweepConfig, "sweep")
    origin = f"sweep file {path}: parameters"
    for name in sweep.parameters:
        check(isinstance(name, str), origin, name, "name a field, as in lora.r")
        check_names(ExperimentConfig, nested(name, {}), origin)
        field_type(name, f"{origin}: ")
    different = {name: _different(name, values, f"{origin}: ") for name, values in sweep.parameters.items()}
    sweep = dataclasses.replace(sweep, parameters=different)
    overrides = overlay(lay_over_extended(sweep.overrides, path), {"score_test": False})
    return sweep, _overridden(beside(path, sweep.experiment), overrides, f"sweep file {path}: overrides")


def _different(name: str, values: Any, origin: str) -> Any:
    """A parameter's values without repetitions: 8 and 8.0 are two texts but one alpha."""
    if not isinstance(values, list):
        return values
    kept: list[tuple[Any, Any]] = []
    for value in values:
        held = field_value(name, value, origin)
        if all(held != other for other, _ in kept):
            kept.append((held, value))
    return [value for _, value in kept]


def nested(name: str, value: Any) -> dict[str, Any]:
    """A value under a dotted name as nested mappings: 'lora.r', 8 -> {'lora': {'r': 8}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return dict(value)


def field_value(name: str, value: Any, origin: str = "") -> Any:
    """A value as the field of an experiment holds it: a list becomes a tuple, and 1 becomes 1.0 in a float.

    Raises:
        ConfigError: it is not of the field's type.
    """
    return fitted(value, field_type(name), f"{origin}{name}")


def field_type(name: str, origin: str = "") -> Any:
    """The type of an experiment's field, by its dotted name.

    Raises:
        ConfigError: it is none, but one below a field, say, or a section.
    """
    kind: Any = ExperimentConfig
    for key in name.split("."):
        fields = {f.name: f.type for f in dataclasses.fields(kind)} if is_section(kind) else {}
        check(key in fields, f"{origin}{name}", key, "it is no field of an experiment; see lora-study run --help")
        kind = fields[key]
    check(not is_section(kind), f"{origin}{name}", name, "it has fields of its own; name one of them")
    return kind


def read_config(path: Path, kind: type[Config], what: str) -> Config:
    """The study or sweep in a file and the files it extends; what names it in errors."""
    return build(kind, read_layers(path), f"{what} file {path}")
