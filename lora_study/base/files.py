"""Files: paths as users write them, writing all of a file or nothing, and reading small files that may not be small."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError
from lora_study.base.interrupts import owed

LARGEST = 4 * 2**20  # bytes: a hundred times the largest real one


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with `~` expanded: no shell does that in Python, YAML or ``--opt=~/x``.

    Raises:
        ConfigError: it begins with the home folder of a user who has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r}: there is no such home folder; write the path out") from error


def exists(path: Path) -> bool:
    """Whether something is there; Path.exists raises where no file can have that name, such as one that is too long."""
    return os.path.exists(path)  # noqa: PTH110


def from_anywhere(path: str) -> str:
    """A path that means the same in any folder: absolute if something exists there, else (a name, say) unchanged."""
    given = user_path(path)
    if given.is_absolute():
        return path if given == Path(path) else str(given)
    there = Path.cwd() / given if exists(given) else None
    return path if there is None else str(there.resolve() if ".." in given.parts else there)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or is larger than any config or record; /dev/zero, say, has no end.
        ValueError: it is not UTF-8, or no file can have its name.
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
        ValueError: as `read_text`; or it is not JSON, is nested too deeply, or holds a number of thousands of digits,
            NaN, infinity, or half a surrogate pair.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # whatever is read can be written again
        return content
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it if the block succeeds, and is removed otherwise.

    A symbolic link stays a link: what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with owed(partial(temporary.unlink, missing_ok=True)):
            yield temporary
        # mkstemp makes the file private; results should be as readable as any other file the user writes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place if the block succeeds, and is removed otherwise.

    Args:
        path: The folder to write; parents are made as needed.
        overwrite: Replace a folder that is not empty, with all it holds. A run's folder, or one with folders in it, is
            never replaced: it is more likely to be a mistake than something this wrote earlier.

    Raises:
        FileExistsError: ``path`` is a file, or a folder that may not be replaced; raised before the block is entered.
        OSError: the folder cannot be written; what was there is unchanged.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name another folder")
    there = list(path.iterdir()) if path.exists() else []
    if there and not overwrite:
        raise FileExistsError(f"{path} is not empty; name another folder, or pass --overwrite to replace it")
    if any(entry.is_dir() or entry.name == "record.json" for entry in there):
        raise FileExistsError(f"{path} holds a run or other folders and is not replaced; name another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise FileExistsError(f"{path} lies below a file; name another folder") from error
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        staged = Path(temporary) / path.name  # has the user's usual permissions, unlike the temporary folder
        staged.mkdir()
        with owed(partial(shutil.rmtree, temporary, ignore_errors=True)):
            yield staged
        if there:
            path.replace(Path(temporary) / "replaced")
        staged.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write all of a text file or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files by their path below a folder, each whole or not at all; returns their paths."""
    for name, content in contents.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]
