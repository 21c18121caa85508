"""Standard input, output and error as whoever starts a command may leave them: of any encoding, closed, or full."""

import contextlib
import io
import os
import sys


def make_usable() -> None:
    """Have each standard stream be there, and print what its encoding lacks as an escape instead of failing.

    A closed one gets the number of a null device: the next file that is opened would get it otherwise, and what is
    printed. Output goes there; as input Python's None stays, so that whoever wants to read can tell.
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
    """Write out what is printed, while a failure can still be said; at exit it could not.

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
    with contextlib.suppress(OSError, ValueError):  # it has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
