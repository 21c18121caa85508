"""Which run goes to which worker: the next one in order, to the first worker that is free."""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import TypeVar

Run = TypeVar("Run")
Handle = TypeVar("Handle", bound=Hashable)

RETRIES = 3  # how often a run whose worker was lost is started again


def dispatch(
    runs: Iterable[Run],
    workers: int,
    start: Callable[[Run, int], Handle],
    wait: Callable[[Collection[Handle]], Iterable[Handle]],
    lost: Callable[[Handle], bool] = lambda _: False,
) -> Iterator[tuple[Run, Handle]]:
    """Keep all workers busy until every run has ended.

    However long the runs take, this needs less than twice the least possible time (R. Graham, Bell System Technical
    Journal 45, 1966); with many more runs than workers it is close to the least.

    Args:
        runs: What to run, in order.
        workers: How many run at once.
        start: Starts a run on a worker, numbered from 0; returns a handle of it.
        wait: Waits until at least one of the started runs has ended; returns the handles of those that have.
        lost: Whether a run ended through no fault of its own; it is started again next, at most `RETRIES` times.

    Yields:
        Each run and its handle, as it ends.
    """
    waiting, free = deque((run, RETRIES) for run in runs), list(reversed(range(workers)))
    going: dict[Handle, tuple[Run, int, int]] = {}
    while waiting or going:
        while waiting and free:
            worker = free.pop()
            run, retries = waiting.popleft()
            going[start(run, worker)] = run, retries, worker
        for handle in wait(going.keys()):
            run, retries, worker = going.pop(handle)
            free.append(worker)
            if retries and lost(handle):
                waiting.appendleft((run, retries - 1))
            else:
                yield run, handle
