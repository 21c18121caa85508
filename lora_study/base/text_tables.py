"""A data frame as text: Markdown, CSV.

Text is escaped, so that nothing in a record can become markup. A missing value is '—', and empty in CSV.
"""

import json
import re
from collections.abc import Collection
from typing import Any

import pandas as pd

MISSING = "—"


def markdown_table(frame: pd.DataFrame, markdown: Collection[str] = ()) -> str:
    """A data frame as a Markdown table: text escaped, numbers right-aligned, '—' where a value is missing.

    Args:
        frame: The table; its index is not shown.
        markdown: Columns whose text is already Markdown and must not be escaped.
    """
    rules = ["---:" if is_number else "---" for is_number in _numeric(frame)]
    rows = [
        [text if column in markdown else escape(text) for column, text in zip(frame.columns, row, strict=True)]
        for row in _shown(frame)
    ]
    lines = [[escape(str(column)) for column in frame.columns], rules, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_table(frame: pd.DataFrame) -> str:
    """A data frame as CSV, with ten digits: the last bits of a mean differ between machines."""
    return str(frame.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def escape(text: str) -> str:
    """Markdown that shows a text as it is, on one line; underscores inside a name need no escape."""
    one_line = re.sub(r"[^\S\u00a0]+", " ", text).strip(" ")
    text = re.sub(r"([\\`*\[\]<>|&~])", r"\\\1", one_line)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


def plain(value: Any) -> str | None:
    """A JSON value for people to read: text as it is, lists with commas, null as None."""
    if isinstance(value, str | None):
        return value
    if isinstance(value, list):
        return ", ".join(str(plain(item)) for item in value)
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else json.dumps(value, default=str)


def count(number: int, what: str) -> str:
    """A number with its noun: '1 seed', '2 seeds'."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shown(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The rows as a reader sees them: two decimals, or of what is smaller two digits, and a comma between thousands."""

    def text(value: Any) -> str:
        if pd.isna(value):
            return MISSING
        if isinstance(value, str):
            return value
        if isinstance(value, float):
            return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:,.2f}"
        return f"{value:,}"

    return list(zip(*([text(value) for value in frame[column]] for column in frame.columns), strict=True))


def _numeric(frame: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
