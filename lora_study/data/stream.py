"""Reviews without labels, read from a file or a pipe as they are asked for: however many, in constant memory."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from lora_study.config import ConfigError, check
from lora_study.data.sources import name_of, text_of
from lora_study.data.tables import AS_UTF8, Row, csv_rows, jsonl_rows, utf8_lines
from lora_study.small_files import user_path

STDIN = "-"


class Review(NamedTuple):
    """A review to classify.

    Attributes:
        id: Its id, or where it stands: the row of a table, the line of a text.
        text: What it says.
    """

    id: str
    text: str


@contextmanager
def open_reviews(file: str) -> Iterator[Iterator[Review]]:
    """The reviews of a file, read as they are asked for.

    Args:
        file: A .csv or .jsonl table with a column text, and optionally id; a .txt with a review per line; or "-",
            standard input, read as a .txt. Blank lines of a .txt are no reviews.

    Raises:
        ConfigError: the file cannot be read; or, when that row or line is reached, it is malformed, not UTF-8 or has
            no text.
    """
    if file == STDIN:
        sys.stdin.reconfigure(**AS_UTF8)  # type: ignore[union-attr]
        yield text_reviews(sys.stdin, "standard input")
        return
    path = user_path(file)
    check(path.suffix in READERS, "--file", file, f"use {', '.join(READERS)}, or - for lines of standard input")
    try:
        stream = path.open(**AS_UTF8)
    except OSError as error:
        raise ConfigError(f"--file: {file!r} cannot be read: {error.strerror}") from error
    with stream:
        yield READERS[path.suffix](stream, file)


def given_reviews(texts: Iterable[str]) -> list[Review]:
    """Reviews typed on the command line, called by their number."""
    return [Review(str(number), text_of(text, f"review {number}")) for number, text in enumerate(texts, start=1)]


def text_reviews(file: TextIO, name: str) -> Iterator[Review]:
    """A review per line that is not blank."""
    for number, line in enumerate(utf8_lines(file, name), start=1):
        if text := line.strip():
            yield Review(str(number), text)


def csv_reviews(file: TextIO, name: str) -> Iterator[Review]:
    """The reviews of a comma-separated table."""
    return table_reviews(csv_rows(file, name, ("text",), ("id",)), name)


def jsonl_reviews(file: TextIO, name: str) -> Iterator[Review]:
    """The reviews of a table with one JSON object per line."""
    return table_reviews(jsonl_rows(file, name, ("text",), ("id",)), name)


def table_reviews(rows: Iterable[Row], name: str) -> Iterator[Review]:
    """The reviews of a table's rows; one without an id is called by its row, counted from 1 without the header."""
    for number, row in enumerate(rows, start=1):
        place = f"{name}: row {number}"
        own = text_of(name_of(row["id"], place), f"{place}, id,") if "id" in row else str(number)
        yield Review(own, text_of(row["text"], place))


READERS = {".csv": csv_reviews, ".jsonl": jsonl_reviews, ".txt": text_reviews}
