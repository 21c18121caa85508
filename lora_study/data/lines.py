"""Text files line by line: UTF-8, plain or gzipped, in lines that end at a newline and nowhere else.

A carriage return before the newline belongs to the line's end. Every other character that some tools take for an end
of line (a lone carriage return, a form feed, U+0085, U+2028) is part of its line.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from lora_study.base.errors import ConfigError, one_line

LONGEST = 10_000_000  # characters in a line or field: longer than any review, unless a quote was never closed

# How to open a file for `Lines`: bytes that are not UTF-8 are marked, so that their line can be named.
AS_UTF8: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": "\n"}
BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)


def open_text(path: Path, zipped: bool = False) -> TextIO:
    """A text file, opened as `AS_UTF8` says."""
    return cast(TextIO, gzip.open(path, "rt", **AS_UTF8)) if zipped else path.open(**AS_UTF8)


def decode(data: bytes, name: str | Path) -> str:
    """Decode bytes of the file ``name`` as UTF-8, without a byte order mark.

    Raises:
        ConfigError: a byte is not UTF-8; the message says which, and its line.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(name, error.start, line, data[error.start]) from error


class Lines:
    """The lines of a text file with their line ends, without a byte order mark, one at a time.

    Args:
        file: The file, opened as `AS_UTF8` says.
        name: What to call it in an error.

    Attributes:
        number: Lines read so far.
        last: The last of them.

    Raises:
        ConfigError: on reading a line that is not UTF-8, holds a NUL as in UTF-16 and binary files, or never ends; or
            if the file is incomplete.
    """

    def __init__(self, file: TextIO, name: str) -> None:
        self.name = name
        self.number = 0
        self.last = ""
        self._file = file
        self._position = 0  # bytes before the next line

    def __iter__(self) -> Iterator[str]:
        """Itself."""
        return self

    def __next__(self) -> str:
        """The next line."""
        try:
            # A line must end: /dev/zero never does, nor may gigabytes that are not text.
            line = self._file.readline(LONGEST + 1)
        except BROKEN_GZIP as error:
            raise ConfigError(f"{self.name} is not a complete .gz file ({one_line(error)}); fetch it again") from error
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) > LONGEST:
            raise self._not_text(f"has over {LONGEST:,} characters; save it as UTF-8")
        try:
            length = len(line.encode())
        except UnicodeEncodeError as error:  # a byte that is not UTF-8 became half a surrogate pair
            position = self._position + len(line[: error.start].encode())
            raise _not_utf8(self.name, position, self.number, ord(line[error.start]) - 0xDC00) from error
        if "\0" in line:
            raise self._not_text("holds a NUL byte; save it as UTF-8 text")
        self._position += length
        self.last = line.removeprefix("\ufeff") if self.number == 1 else line
        return self.last

    def _not_text(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.name} is not text: line {self.number} {problem}")


def _not_utf8(name: str | Path, position: int, line: int, byte: int) -> ConfigError:
    """The error for a byte that is not UTF-8."""
    return ConfigError(f"{name} is not UTF-8: byte {position} (line {line}) is 0x{byte:02x}; save it as UTF-8")
