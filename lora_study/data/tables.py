"""Tables on disk, row by row in constant memory: .csv, .tsv, .jsonl, .ndjson and .parquet, also with .gz.

The text formats are read by Python's csv and json. pandas and pyarrow.csv would be just as short, but they guess ("NA"
is missing, "007" a number, a missing field empty) and cannot say in which line a fault is.
"""

import csv
import gzip
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lora_study.base.errors import ConfigError, one_line
from lora_study.data.lines import BROKEN_GZIP, LONGEST, Lines, open_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
KINDS = (*DELIMITERS, *JSON_LINES, ".parquet")
OPTIONAL = ("id", "split")  # columns that a table may have or not, in capitals or not
BATCH = 1024  # rows of a Parquet file in memory
STRAY = "\ud80d"  # what csv is given for a carriage return inside a line; no UTF-8 text holds it
NOT_PARQUET = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)  # what damaged files were seen to raise

Rows = Iterator[tuple[int | None, tuple[Any, ...]]]


@dataclass(frozen=True)
class Table:
    """A table of which only the columns' names have been read so far.

    Attributes:
        name: What to call it in an error.
        columns: The columns' names, without surrounding space; None if there is no row to tell them.
        rows: Gives each row's line (None if a file has no lines) and values in the given columns; to be called once.
        classes: For each column with class numbers (a ClassLabel of datasets), their names.
        split: Name of the split that the rows belong to, if the file or folder belongs to one.
    """

    name: str
    columns: list[str] | None
    rows: Callable[[Sequence[str]], Rows]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: str | None = None


def kind_of(path: PurePath) -> tuple[str, bool]:
    """The ending of a file in lower case, and whether .gz follows it."""
    name = path.name.lower()
    return PurePath(name.removesuffix(".gz")).suffix, name.endswith(".gz")


@contextmanager
def open_table(path: Path, name: str) -> Iterator[Table]:
    """The table in a file of one of the `KINDS`.

    Raises:
        ConfigError: it is malformed; raised at the place, with row and line.
        OSError: it cannot be opened.
    """
    kind, zipped = kind_of(path)
    if kind == ".parquet":
        with _unpacked(path, name) if zipped else path.open("rb") as binary:
            yield _parquet(binary, name)
        return
    with open_text(path, zipped) as file:
        lines = Lines(file, name)
        yield _delimited(lines, DELIMITERS[kind]) if kind in DELIMITERS else _json_lines(lines)


def in_memory(
    name: str, columns: Mapping[str, Sequence[Any]], classes: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """Columns as a table."""

    def rows(used: Sequence[str]) -> Rows:
        return ((None, row) for row in zip(*(columns[column] for column in used), strict=True))

    return Table(name, list(columns), rows, classes or {})


def quoted(names: Iterable[str]) -> str:
    """Some names, in quotes; only the first of very many."""
    listed = list(names)
    more = f" and {len(listed) - 12} more" if len(listed) > 12 else ""
    return (", ".join(f"{name!r:.60}" for name in listed[:12]) or "none") + more


def _delimited(lines: Lines, delimiter: str) -> Table:
    """A table with a header line and fields separated by a delimiter, in quotes where needed."""
    csv.field_size_limit(LONGEST)  # csv's own, 131,072 characters, is for the whole process
    record: list[str] = []  # the lines of the row being read

    def guarded() -> Iterator[str]:
        for line in lines:
            record.append(re.sub("\r(?!\n)", STRAY, line) if "\r" in line else line)
            yield record[-1]

    source = guarded()
    try:
        above = csv.reader(source, delimiter=delimiter, skipinitialspace=True, strict=True)
        header = next((row for row in above if row), [])
        as_written = next(csv.reader(record[-1:], delimiter=delimiter), [])
    except csv.Error as error:
        raise ConfigError(f"{lines.name} is malformed: its header: {_oddity(lines.last) or one_line(error)}") from error
    names = [name.strip() for name in header]
    if any(STRAY in name for name in names):
        raise ConfigError(f"{lines.name} has carriage returns where lines end; save it with newlines")
    if len(names) == 1 and (other := re.search(r"[,;\t|]", names[0])):
        raise ConfigError(
            f"{lines.name} has one column, {names[0]!r:.80}: its fields seem to be separated by {other.group()!r},"
            f" not {delimiter!r}; save it as .csv with commas or .tsv with tabs"
        )
    # A space after each comma of the header means the same in the rows, where a quote would otherwise be text.
    spaced = any(name.startswith(" ") for name in as_written[1:])
    reader = csv.reader(source, delimiter=delimiter, skipinitialspace=spaced, strict=True)

    def rows(columns: Sequence[str]) -> Rows:
        places = [names.index(column) for column in columns]
        for line, row in _fields(reader, lines, record, len(names)):
            values = tuple(row[place].replace(STRAY, "\r") for place in places)
            if delimiter == "\t" and any("\t" in value and "\n" in value for value in row):
                words = 'has a tab and the end of a line between quotes; write a quote that opens nothing as """"'
                raise ConfigError(f"{lines.name} is malformed: line {line} {words}, or save the table as .csv")
            quoted_late = any(re.match(' +"', value) for value in values) and re.search(
                f'(?m:^|{delimiter}) +"', "".join(record)
            )
            if quoted_late:
                raise ConfigError(f"{lines.name} is malformed: line {line} has a space before a quote; remove it")
            yield line, values

    return Table(lines.name, names, rows)


def _fields(
    reader: Iterator[list[str]], lines: Lines, record: list[str], width: int
) -> Iterator[tuple[int, list[str]]]:
    """The rows of a delimited table, each with its first line; ``record`` holds a row as it is written."""
    number = 0
    while True:
        record.clear()
        line = lines.number + 1
        place = f"{lines.name} is malformed: row {number + 1} (line {line})"
        try:
            row = next(reader, None)
        except csv.Error as error:
            closed = "unexpected end" not in str(error) and "field limit" not in str(error)
            words = _oddity(lines.last) or one_line(error) if closed else "a quote that opens there is never closed"
            raise ConfigError(f"{place}: {words}") from error
        if row is None:
            return
        if not row:  # an empty line
            continue
        number += 1
        if len(row) != width:
            odd = f"; {oddity}" if (oddity := _oddity(lines.last)) else ""
            raise ConfigError(f"{place} has {len(row)} fields, the header has {width}{odd}")
        yield line, row


def _oddity(line: str) -> str | None:
    """What is odd about the quotes in a line, to help repair it."""
    if '\\"' in line:
        return r'it has \" in it; write a quote inside a field as two, ""'
    if re.search(r'"[ \r]+([,\t]|\r?$)|[,\t] +"', line):
        return "a space or carriage return stands between a quote and the end of its field; remove it"
    return None


def _json_lines(lines: Lines) -> Table:
    """A table with a JSON object on each line."""
    records = _objects(lines)
    first = next(records, None)
    if first is None:
        return Table(lines.name, None, lambda columns: iter(()))
    names = list(first[1])

    def rows(columns: Sequence[str]) -> Rows:
        for line, record in itertools.chain([first], records):
            missing = [column for column in columns if column not in record and column.casefold() not in OPTIONAL]
            if missing:
                raise ConfigError(f"{lines.name}, line {line}, has no column {missing[0]!r}, only {quoted(record)}")
            late = [column for column in record if column.casefold() in OPTIONAL and column not in names]
            if late:
                raise ConfigError(f"{lines.name}, line {line}, has a column {late[0]!r}, and the first row has none")
            yield line, tuple(record.get(column) for column in columns)

    return Table(lines.name, names, rows)


def _objects(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a text and their lines; blank lines are skipped."""
    for line in lines:
        if not line.strip():
            continue
        malformed = f"{lines.name} is malformed: line {lines.number}"
        try:
            record = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{malformed} is not JSON: {one_line(error)}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{malformed} is not an object with text and other columns")
        yield lines.number, record


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object with each name once; json would take the last of two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
        raise ValueError(f"it has {twice!r:.60} twice")
    return found


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[BinaryIO]:
    """A gzipped file, unpacked into a temporary one, because Parquet is read from its end."""
    with tempfile.TemporaryFile() as plain:
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, plain)
        except BROKEN_GZIP as error:
            raise ConfigError(f"{name} is not a complete .gz file ({one_line(error)}); fetch it again") from error
        plain.seek(0)
        yield plain


def _parquet(file: BinaryIO, name: str) -> Table:
    """A Parquet table."""
    try:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        names, classes = [column.strip() for column in schema.names], class_names(schema)
    except NOT_PARQUET as error:
        raise ConfigError(f"{name} cannot be read as Parquet: {one_line(error)}") from error

    def rows(columns: Sequence[str]) -> Rows:
        stored = [schema.names[names.index(column)] for column in columns]
        yield from arrow_rows(parquet.iter_batches(BATCH, columns=stored), name, stored)

    return Table(name, names, rows, classes)


def arrow_rows(batches: Iterable[pa.RecordBatch], name: str, columns: Sequence[str]) -> Rows:
    """The rows of Arrow batches of the file ``name``, in the given columns."""
    start = 1
    try:
        for batch in batches:
            batch.validate(full=True)  # finds text that is not UTF-8
            for values in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                yield None, values
            start += len(batch)
    except NOT_PARQUET as error:
        raise ConfigError(f"{name} cannot be read from row {start} on: {one_line(error)}") from error


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of class numbers by column, as datasets writes them into a file.

    Raises:
        ValueError: the metadata are damaged.
    """
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        return class_labels(json.loads(content).get("info", {}).get("features", {}))
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError("its metadata of datasets are damaged") from error


def class_labels(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of class numbers, by column, as datasets describes features."""
    found = {name: entry for name, entry in features.items() if isinstance(entry, dict) and entry.get("names")}
    if not all(isinstance(entry["names"], list) for entry in found.values()):
        raise TypeError("names of classes are no list")
    return {column.strip(): [str(name) for name in entry["names"]] for column, entry in found.items()}
