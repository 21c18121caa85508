"""Dataclasses whose values have their fields' types and fit a record, whether from a file, a flag or Python."""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from lora_study.base.errors import ConfigError, check

SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of single precision, which training uses
LARGEST_WHOLE = 2**63 - 1  # that a table can hold

Changes = Literal["results", "cost", "nothing"]
T = TypeVar("T")


def setting(default: T, *, changes: Changes) -> T:
    """A field's default, and what its value changes in a run.

    Args:
        default: The default.
        changes: 'results', the trained weights or their scores; 'cost', only the time or memory that a run takes, and
            results by no more than rounding or equally good random draws; 'nothing', neither. A field without
            `setting` changes results, so that a new one is compared wherever runs are, until it is known better.
    """
    return field(default=default, metadata={"changes": changes})


def changing(kind: type, *changes: Changes) -> tuple[str, ...]:
    """The dotted names of the settings in a dataclass, and in those that it holds, that change one of these things."""
    names: list[str] = []
    for f in dataclasses.fields(kind):
        if isinstance(f.type, type) and dataclasses.is_dataclass(f.type):
            names += [f"{f.name}.{name}" for name in changing(f.type, *changes)]
        elif f.metadata.get("changes", "results") in changes:
            names.append(f.name)
    return tuple(names)


@dataclass(frozen=True)
class Settings:
    """Base of a config's dataclasses; those with checks of their own call ``super().__post_init__()`` first.

    A value that its field cannot hold is refused, naming section and field. Numbers of numpy and torch become Python's,
    lists become tuples, and whole numbers become floats where the field is a float, as in a record.
    """

    _section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "") -> None:
        """Remember the section that the fields belong to, such as 'lora'; a subclass shares its base's section."""
        super().__init_subclass__()
        if section:
            cls._section = f"{section}."

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, fitted(getattr(self, f.name), f.type, f"{self._section}{f.name}"))


Built = TypeVar("Built", bound=Settings)


def build(kind: type[Built], content: Mapping[str, Any], origin: str = "") -> Built:
    """Settings of this kind with the values of a mapping, in which those of a section are a mapping, too.

    Raises:
        ConfigError: a field is unknown or lacking, or has a value that it cannot have; the message begins with the
            origin, such as a file's name.
    """
    check_names(kind, content, origin or "config")
    try:
        return _built(kind, content)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error


def _built(kind: type[Built], content: Mapping[str, Any]) -> Built:
    values = dict(content)
    for f in dataclasses.fields(kind):
        if f.name in content and is_section(f.type):
            values[f.name] = _built(f.type, content[f.name])  # type: ignore[arg-type]
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in content:
            raise ConfigError(f"{f.name} is missing; give it a value")
    return kind(**values)


def check_names(kind: type, content: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    """Refuse a field that settings of this kind do not have, naming the origin and the field."""
    known = {f.name: f.type for f in dataclasses.fields(kind)}
    for name, value in content.items():
        first, _, rest = str(name).partition(".")
        if first in known and rest:
            raise ConfigError(f"{origin}: {prefix}{name} is no field here; write it as {first}: {{{rest}: ...}}")
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the fields are {', '.join(known)}"
            raise ConfigError(f"{origin}: unknown field {prefix}{name}; {hint}")
        if is_section(known[name]):
            check(isinstance(value, Mapping), f"{origin}: {prefix}{name}", value, "it takes fields of its own")
            check_names(known[name], value, origin, f"{prefix}{name}.")  # type: ignore[arg-type]


def is_section(kind: Any) -> bool:
    """Whether a field of this type holds settings of its own."""
    return isinstance(kind, type) and issubclass(kind, Settings)


def fitted(value: Any, kind: Any, name: str) -> Any:
    """A value as a field of this type holds it.

    Raises:
        ConfigError: it is of another type, or neither a record nor training could use it.
    """
    value, origin, arguments = _plain(value), get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _one_of(value, arguments, name)
    if origin is Literal:
        check(isinstance(value, str) and value in arguments, name, value, f"use {', '.join(arguments)}")
    elif origin is tuple:
        check(isinstance(value, list | tuple), name, value, "list the values, as in [one, another]")
        return tuple(fitted(item, arguments[0], name) for item in value)
    elif origin is dict or (kind is Any and isinstance(value, Mapping)):
        check(isinstance(value, Mapping), name, value, "it takes names and values")
        return {key: fitted(item, arguments[1] if arguments else Any, f"{name}.{key}") for key, item in value.items()}
    elif kind is Any:
        return _anything(value, name)
    elif kind is str:
        return _text(value, name)
    elif kind is bool:
        check(isinstance(value, bool), name, value, "use true or false")
    elif kind is int:
        check(isinstance(value, int) and not isinstance(value, bool), name, value, "use a whole number")
        check(abs(value) <= LARGEST_WHOLE, name, value, f"use a whole number up to {LARGEST_WHOLE} in size")
    elif kind is float:
        return _number(value, name)
    else:
        check(isinstance(value, kind), name, value, f"it is a {kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Python's own number for a single number of numpy or torch."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _one_of(value: Any, kinds: tuple[Any, ...], name: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for kind in kinds[:-1]:
        try:
            return fitted(value, kind, name)
        except ConfigError:
            continue
    return fitted(value, kinds[-1], name)


def _anything(value: Any, name: str) -> Any:
    """What JSON and YAML can hold; the settings of a sweep or a study, whose fields check them again."""
    if isinstance(value, list | tuple):
        return [fitted(item, Any, name) for item in value]
    if isinstance(value, str | os.PathLike):
        return _text(value, name)
    known = value is None or isinstance(value, bool | int | float)
    check(known, name, value, "use numbers, texts, true or false, null, or lists and mappings of these")
    finite = not isinstance(value, float) or math.isfinite(value)
    check(finite, name, value, "use a finite number")
    return value


def _text(value: Any, name: str) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    check(isinstance(value, str), name, value, "use a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        remedy = "it is not valid UTF-8, so no record can hold it; choose another name, or set PYTHONUTF8=1"
        check(False, name, value, remedy)
    return str(value)


def _number(value: Any, name: str) -> float:
    check(isinstance(value, int | float) and not isinstance(value, bool), name, value, "use a number")
    size = abs(value)
    remedy = f"training computes in single precision; use a number up to {LARGEST:.2g} in size"
    check(size <= LARGEST, name, value, remedy)  # False for infinity and NaN
    remedy = f"training computes in single precision, where it is 0; use 0 or at least {SMALLEST:.2g} in size"
    check(size == 0 or size >= SMALLEST, name, value, remedy)
    return float(value)
