"""Standard input, output and error, whatever state a command is started in: any encoding, closed, or full."""

import contextlib
import io
import os
import sys


def make_usable() -> None:
    """Make sure each standard stream exists, and escapes what its encoding lacks instead of failing.

    A closed stream's number is given to a null device; otherwise the next file opened would get the number, and with it
    whatever is printed. Closed input stays Python's None, so that whoever wants to read can tell.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number and not _is_open(number):
                os.dup2(null, number)
            if mode == "w":
                setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flush what was printed while a failure can still be reported; at exit it could not.

    Raises:
        OSError: it cannot be written, and is dropped.
    """
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
        raise


def drop_output() -> None:
    """Print to a null device from now on, so that closing the output at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):  # it has no file number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
