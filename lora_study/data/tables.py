"""Reviews from a .csv, .jsonl or .parquet table with columns text and label, and optionally id and split.

Each reader returns plain columns, one list per name; `sources.checked` makes the review table of them. A file
that cannot be read raises `ConfigError` with the row, counted from 1 without the header. `csv_rows` and `jsonl_rows`
read a file of any size row by row.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from lora_study.config import ConfigError, one_line

Columns = dict[str, list[Any]]
Row = dict[str, Any]

REQUIRED = ("text", "label")
OPTIONAL = ("id", "split")
LONGEST = 10_000_000  # characters in a field: beyond any review, but where a quote was never closed

# How to open a file for `utf8_lines`: line ends as they are, since csv fields hold some, and bytes that are not UTF-8
# kept apart, so that the line they are in is known.
AS_UTF8: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def decode(data: bytes, name: str | Path) -> str:
    """Bytes of the file ``name`` as UTF-8 text, without a byte order mark.

    Raises:
        ConfigError: a byte is not UTF-8; the message says which, and its line.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_utf8(name, error.start, line, data[error.start]) from error


def utf8_lines(file: TextIO, name: str | Path) -> Iterator[str]:
    """The lines of a text file with their ends, without a byte order mark, one at a time.

    Args:
        file: The file, opened as `AS_UTF8` says.
        name: What to call it in an error.

    Raises:
        ConfigError: a byte is not UTF-8, or a line holds a NUL, as UTF-16 and binary files do.
    """
    position = 0  # bytes before the line
    # A line has an end: /dev/zero has none, nor has a file of gigabytes that is no text.
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), start=1):
        if len(line) > LONGEST:
            raise ConfigError(f"{name} is not text: line {number} has over {LONGEST:,} characters; save it as UTF-8")
        try:
            length = len(line.encode())
        except UnicodeEncodeError as error:  # a byte that is not UTF-8 was decoded to half a surrogate pair
            byte = ord(line[error.start]) - 0xDC00
            raise not_utf8(name, position + len(line[: error.start].encode()), number, byte) from error
        if "\0" in line:
            raise ConfigError(f"{name} is not text: line {number} holds a NUL byte; save it as UTF-8 text")
        position += length
        yield line.removeprefix("\ufeff") if number == 1 else line


def not_utf8(name: str | Path, position: int, line: int, byte: int) -> ConfigError:
    """The error for a byte that is not UTF-8."""
    return ConfigError(f"{name} is not UTF-8: byte {position} (line {line}) is 0x{byte:02x}; save it as UTF-8")


def names_used(
    names: Iterable[str],
    origin: str | Path,
    required: tuple[str, ...] = REQUIRED,
    optional: tuple[str, ...] = OPTIONAL,
) -> list[str]:
    """Those of a table's column names that are read; the others are ignored.

    Args:
        names: The table's column names.
        origin: What to call the table in an error.
        required: Names that must be there.
        optional: Names that are read where they are there.

    Raises:
        ConfigError: a required column is missing.
    """
    names = list(names)
    missing = [name for name in required if name not in names]
    if missing:
        raise ConfigError(
            f"{origin} has no column {' and no column '.join(missing)}, only {', '.join(names) or 'none'};"
            f" it needs {' and '.join(required)}"
        )
    return [name for name in (*required, *optional) if name in names]


def csv_rows(
    file: TextIO, name: str | Path, required: tuple[str, ...] = REQUIRED, optional: tuple[str, ...] = OPTIONAL
) -> Iterator[Row]:
    """The rows of a comma-separated table with a header line; an empty field is an empty string.

    Args:
        file: The table, opened as `AS_UTF8` says.
        name: What to call it in an error.
        required: Columns that must be there.
        optional: Columns that are read where they are there.

    Raises:
        ConfigError: a column is missing, or the table malformed from a row on.
    """
    csv.field_size_limit(LONGEST)  # csv's own, 131,072 characters, is for the whole process too
    rows = csv.reader(utf8_lines(file, name), strict=True)
    number = 0
    try:
        header = next(rows, [])
        used = [(column, header.index(column)) for column in names_used(header, name, required, optional)]
        for row in rows:
            if not row:  # an empty line
                continue
            number += 1
            if len(row) != len(header):
                raise ConfigError(
                    f"{name} is malformed: row {number} (line {rows.line_num}) has {len(row)} fields,"
                    f" the header has {len(header)}"
                )
            yield {column: row[position] for column, position in used}
    except csv.Error as error:
        raise ConfigError(f"{name} is malformed: row {number + 1} (line {rows.line_num}): {one_line(error)}") from error


def jsonl_rows(
    file: TextIO, name: str | Path, required: tuple[str, ...] = REQUIRED, optional: tuple[str, ...] = OPTIONAL
) -> Iterator[Row]:
    """The rows of a table with one JSON object per line; arguments and errors as of `csv_rows`."""
    for number, line in enumerate(utf8_lines(file, name), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name} is malformed: line {number} is not JSON: {one_line(error)}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{name} is malformed: line {number} is not an object with {' and '.join(required)}")
        yield {column: record[column] for column in names_used(record, f"{name}, line {number},", required, optional)}


def gathered(rows: Iterable[Row]) -> Columns:
    """Rows as columns; a value that a row lacks is None."""
    records = list(rows)
    names = dict.fromkeys((*REQUIRED, *(name for record in records for name in record)))
    return {name: [record.get(name) for record in records] for name in names}


def read_csv(path: Path, extra: tuple[str, ...] = ()) -> Columns:
    """Columns of a comma-separated table with a header line; the columns ``extra`` are required too."""
    with path.open(**AS_UTF8) as file:
        return gathered(csv_rows(file, path, (*REQUIRED, *extra)))


def read_jsonl(path: Path) -> Columns:
    """Columns of a table with one JSON object per line."""
    with path.open(**AS_UTF8) as file:
        return gathered(jsonl_rows(file, path))


def read_parquet(path: Path) -> Columns:
    """Columns of a Parquet table."""
    try:
        file = pq.ParquetFile(path)
        table = file.read(columns=names_used(file.schema_arrow.names, path))
        table.validate(full=True)  # finds text that is not UTF-8, and says in which row
        return {name: table[name].to_pylist() for name in table.column_names}
    # UnicodeDecodeError: of a column's name; KeyError: a name twice; OverflowError: a date beyond Python's.
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError, OverflowError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {one_line(error)}") from error


READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
