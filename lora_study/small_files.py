"""Reading a config or a record, small files that may come from anywhere, without trusting them to be small."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from lora_study.errors import ConfigError

LARGEST = 4 * 2**20  # bytes: a hundred times the largest there is


def user_path(path: str | Path) -> Path:
    """A path as a user gives it, where `~` is the home folder: no shell expands it in Python, YAML or ``--opt=~/x``.

    Raises:
        ConfigError: it begins with the home folder of somebody who has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r}: there is no such home folder; write the path out") from error


def from_anywhere(path: str) -> str:
    """A path that means the same in another folder: absolute where something is there; else (a name, say) unchanged."""
    given = user_path(path)
    if given.is_absolute():
        return path if given == Path(path) else str(given)
    there = Path.cwd() / given if os.path.exists(given) else None  # noqa: PTH110 - Path.exists raises for some
    return path if there is None else str(there.resolve() if ".." in given.parts else there)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or is larger than any config or record; /dev/zero, say, has no end.
        ValueError: it is not UTF-8, or its name is none that a file can have.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content.decode("utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as `read_text`.
        ValueError: as `read_text`; or it is not JSON, is nested too deep, or holds a number of thousands of digits,
            NaN, infinity, or half a surrogate pair.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # what is read can be written
        return content
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
