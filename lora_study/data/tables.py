"""Reviews from a .csv, .jsonl or .parquet table with columns text and label, and optionally id and split.

Each reader returns plain columns, one list per name; `sources.checked` makes the review table of them. A file
that cannot be read raises `ConfigError` with the row, counted from 1 without the header.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lora_study.config import ConfigError, one_line

Columns = dict[str, list[Any]]

REQUIRED = ("text", "label")
OPTIONAL = ("id", "split")


def decode(data: bytes, name: str | Path) -> str:
    """Bytes of the file ``name`` as UTF-8 text, without a byte order mark.

    Raises:
        ConfigError: a byte is not UTF-8; the message says which, and its line.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}; save it as UTF-8"
        ) from error


def names_used(names: Iterable[str], origin: str | Path, extra: tuple[str, ...] = ()) -> list[str]:
    """Those of a table's column names that are read; the others are ignored.

    Args:
        names: The table's column names.
        origin: What to call the table in an error.
        extra: Names that are required too.

    Raises:
        ConfigError: a required column is missing.
    """
    names = list(names)
    missing = [name for name in (*REQUIRED, *extra) if name not in names]
    if missing:
        raise ConfigError(
            f"{origin} has no column {' and no column '.join(missing)}, only {', '.join(names) or 'none'};"
            " columns text and label are needed"
        )
    return [name for name in (*REQUIRED, *OPTIONAL, *extra) if name in names]


def read_csv(path: Path, extra: tuple[str, ...] = ()) -> Columns:
    """Columns of a comma-separated table with a header line; an empty field is an empty string."""
    rows = csv.reader(io.StringIO(decode(path.read_bytes(), path), newline=""), strict=True)
    values: list[list[str]] = []
    try:
        header = next(rows, [])
        used = [(name, header.index(name)) for name in names_used(header, path, extra)]
        for row in rows:
            if len(row) != len(header) and row:  # an empty line reads as an empty row
                raise ConfigError(
                    f"{path} is malformed: row {len(values) + 1} (line {rows.line_num}) has {len(row)} fields,"
                    f" the header has {len(header)}"
                )
            if row:
                values.append(row)
    except csv.Error as error:
        raise ConfigError(
            f"{path} is malformed: row {len(values) + 1} (line {rows.line_num}): {one_line(error)}"
        ) from error
    return {name: [row[position] for row in values] for name, position in used}


def read_jsonl(path: Path) -> Columns:
    """Columns of a table with one JSON object per line."""
    # Not splitlines(): JSON strings may hold U+2028 and other characters that Python takes for line ends.
    lines = decode(path.read_bytes(), path).rstrip().split("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path} is malformed: line {number} is not JSON: {one_line(error)}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{path} is malformed: line {number} is not an object with text and label")
        names_used(record, f"{path}, line {number},")
        records.append(record)
    present = [name for name in OPTIONAL if any(name in record for record in records)]
    return {name: [record.get(name) for record in records] for name in (*REQUIRED, *present)}


def read_parquet(path: Path) -> Columns:
    """Columns of a Parquet table."""
    try:
        file = pq.ParquetFile(path)
        table = file.read(columns=names_used(file.schema_arrow.names, path))
        table.validate(full=True)  # finds text that is not UTF-8, and says in which row
        return {name: table[name].to_pylist() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {one_line(error)}") from error


READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
