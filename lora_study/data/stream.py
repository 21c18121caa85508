"""Reviews without labels, read from a file or a pipe as they are asked for: however many, in constant memory."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import exists, user_path
from lora_study.data.folders import folder_tables, is_data_set
from lora_study.data.lines import AS_UTF8, Lines, open_text
from lora_study.data.reviews import Review, text_of, unlabelled
from lora_study.data.tables import KINDS, kind_of, open_table

STDIN = "-"


@contextmanager
def open_reviews(file: str, text_column: str | None = None, likely: str | None = None) -> Iterator[Iterator[Review]]:
    """The reviews of a file, read as they are asked for.

    A regular file is first read once to its end, so that a fault is found before any work is done.

    Args:
        file: A table with a column of texts, and optionally id; a folder of such; a .txt with a review per line; or
            "-", standard input, read as a .txt. Blank lines of a .txt are no reviews.
        text_column: The column of texts, where its name does not tell.
        likely: What that column is called where the model was trained; taken first where nothing is named.

    Raises:
        ConfigError: the file cannot be read, or is malformed, not UTF-8 or without a text somewhere; of a pipe
            raised when that row or line is reached.
    """
    lines = file == STDIN or kind_of(user_path(file))[0] == ".txt"
    check(not (lines and text_column), "--text-column", text_column, "lines have no columns; leave it out")
    if file == STDIN:
        check(sys.stdin is not None and not sys.stdin.closed, "--file", file, "standard input is closed")
        sys.stdin.reconfigure(**AS_UTF8)  # type: ignore[union-attr]
        yield text_reviews(sys.stdin, "standard input")
        return
    path = user_path(file)
    if not exists(path):
        raise ConfigError(f"--file: {file!r} cannot be read: No such file or directory")
    if path.is_file() or path.is_dir():
        for _ in file_reviews(path, file, text_column, likely):
            pass
    yield file_reviews(path, file, text_column, likely)


def file_reviews(path: Path, name: str, text_column: str | None, likely: str | None) -> Iterator[Review]:
    """The reviews of a file, called ``name`` in errors."""
    kind, zipped = kind_of(path)
    try:
        if path.is_dir():
            data_set = is_data_set(path)
            check(data_set, "--file", name, "it is a directory without Parquet files or what save_to_disk writes")
            yield from unlabelled(folder_tables(path, skipped=()), text_column, likely)
        elif kind == ".txt":
            with open_text(path, zipped) as stream:
                yield from text_reviews(stream, name)
        else:
            known = ", ".join((*KINDS, ".txt"))
            check(kind in KINDS, "--file", name, f"use {known}, or - for lines of standard input")
            with open_table(path, name) as table:
                yield from unlabelled([table], text_column, likely)
    except OSError as error:
        raise ConfigError(f"--file: {name!r} cannot be read: {error.strerror or error}") from error


def given_reviews(texts: Iterable[str]) -> list[Review]:
    """Reviews typed on the command line, called by their number."""
    reviews = []
    for number, text in enumerate(texts, start=1):
        try:
            reviews.append(Review(str(number), text_of(text)))
        except ValueError as error:
            raise ConfigError(f"review {number}{error}") from error
    return reviews


def text_reviews(file: TextIO, name: str) -> Iterator[Review]:
    """A review per line that is not blank."""
    lines = Lines(file, name)
    for line in lines:
        if line.strip():
            yield Review(str(lines.number), line.removesuffix("\n").removesuffix("\r"))
