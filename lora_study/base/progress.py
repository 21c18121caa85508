"""Progress of long work: a bar in a terminal, and in a log a line every ten seconds.

The bar is rich's. The lines are ours: without a terminal, rich shows nothing until the end, and tqdm one line that
keeps growing.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

INTERVAL = 10.0  # seconds between two lines in a log


def duration(seconds: float) -> str:
    """A duration for people to read, such as '45 s', '1 min 40 s' or '1 h 40 min'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


class Meter:
    """Counts reviews and reports in a log how many are done.

    Args:
        doing: How each line begins.
        total: How many there are; None if unknown.
    """

    def __init__(self, doing: str = "", total: int | None = None) -> None:
        self._doing, self._total, self._count = doing, total, 0
        self._start = self._printed = time.perf_counter()

    def advance(self, reviews: int) -> None:
        """Count reviews that were just done."""
        self._count += reviews
        now = time.perf_counter()
        if now - self._printed < INTERVAL:
            return
        self._printed = now
        speed = self._count / (now - self._start)
        of, left = "", ""
        if self._total is not None:
            of, left = f" of {self._total:,}", f"  about {duration((self._total - self._count) / speed)} left"
        print(f"  {self._doing}{self._count:,}{of} reviews  {speed:.1f} reviews/s{left}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(doing: str = "", total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show on stderr how many reviews are done; the arguments are those of `Meter`.

    Yields:
        What to call with the number of reviews just done.
    """
    if not sys.stderr.isatty():
        yield Meter(doing, total).advance
        return
    clock = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    columns = (TextColumn(doing), BarColumn(), TextColumn("{task.completed:,} reviews"), clock)
    # Standard output must stay standard output, and not go where the bar is.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda reviews: bar.advance(task, reviews)
