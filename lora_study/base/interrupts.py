"""Ctrl-C and SIGTERM end a command with one line and exit status 130, leaving no process behind; a second one, at once.

Nothing is raised, because a signal may come in the middle of anything: while locks are held, or where exceptions are
ignored. The command ends where it stands, as if it were killed; everything it writes is made to survive that.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from types import FrameType

STATUS = 130
PATIENCE = 10.0  # seconds a process has to end after it is asked to
GRACE = 2.0  # seconds the main thread has to see a signal; inside a library's C code it sees none

_line = b""
_owed: list[Callable[[], object]] = []
_ending = threading.Event()


def say(words: str) -> None:
    """Choose what to print if the command is interrupted; an empty text prints nothing."""
    global _line  # noqa: PLW0603 - a signal handler has no other way to know
    _line = f"{words}\n".encode() if words else b""


@contextlib.contextmanager
def owed(work: Callable[[], object]) -> Iterator[None]:
    """Have this work done even if the command is interrupted in this block."""
    _owed.append(work)
    try:
        yield
    finally:
        _owed.remove(work)


@contextlib.contextmanager
def handled(words: str) -> Iterator[None]:
    """End the process if it is interrupted in this block, printing this text; see `say`.

    A signal that is ignored, as Ctrl-C is by what a script starts in the background, stays so.

    Outside the main thread, the only one that Python tells of signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    say(words)
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [(number, signal.signal(number, _end)) for number in heeded]
    pipe = _watch()
    try:
        yield
    finally:
        signal.set_wakeup_fd(pipe.before)
        pipe.close()
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Hide Ctrl-C from the processes started in this block: a terminal sends it to all of them, but we end them.

    See `in_child`.
    """
    multiprocessing.resource_tracker.ensure_running()  # otherwise the first process would start it, and undo this
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_child() -> None:
    """In a process started inside `shielded`: end silently when asked to, or when the parent has ended."""
    _owed.clear()
    say("")
    signal.signal(signal.SIGTERM, _end)
    _watch()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        _end(signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def end(processes: Sequence[BaseProcess]) -> None:
    """End processes and wait until they are gone; those that do not react are killed."""
    started = [process for process in processes if process.pid]
    for process in started:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join(PATIENCE)


class _Pipe:
    """Where Python's own handler notes each signal, at once and whatever the main thread is doing."""

    def __init__(self) -> None:
        self.read, write = os.pipe()
        os.set_blocking(write, False)
        self.write = write
        self.before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def close(self) -> None:
        """Close both ends, which ends the reader too."""
        os.close(self.write)


def _watch() -> _Pipe:
    """Start the thread that ends the process where the main thread cannot, or takes too long."""
    _part_from_forks()
    pipe = _Pipe()

    def watch() -> None:
        while number := os.read(pipe.read, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                if not _ending.wait(GRACE):
                    _end(number[0])
                time.sleep(2 * PATIENCE)  # enough for whatever is owed
                _end_at_once(number[0])
        os.close(pipe.read)

    threading.Thread(target=watch, daemon=True).start()
    return pipe


def _end(number: int, frame: FrameType | None = None) -> None:
    """End this process and those it has started."""
    _ending.set()
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, _end_at_once)
    if _line:
        cursor = b"\x1b[?25h\n" if os.isatty(2) else b""  # a progress bar may have hidden it
        with contextlib.suppress(OSError):
            os.write(2, cursor + _line)
    for work in reversed(_owed):
        with contextlib.suppress(Exception):
            work()
    with contextlib.suppress(Exception):
        end(multiprocessing.active_children())
    if in_main and not _line:  # a child; its parent sees how it ended
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(STATUS)


def _end_at_once(number: int, frame: FrameType | None = None) -> None:
    """End this process, which is already ending, without waiting for anything it still has to do."""
    with contextlib.suppress(Exception):
        for process in multiprocessing.active_children():
            process.kill()
            process.join(1)
    os._exit(STATUS)


@functools.cache
def _part_from_forks() -> None:
    """Keep a fork of this process from reporting its own signals to this one."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
