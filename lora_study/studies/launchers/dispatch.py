"""Which run goes to which worker: the next one in order, to the first worker that is free."""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import TypeVar

Run = TypeVar("Run")
Handle = TypeVar("Handle", bound=Hashable)

RETRIES = 3  # how often a run is started again whose worker was lost


def dispatch(
    runs: Iterable[Run],
    workers: int,
    start: Callable[[Run, int], Handle],
    wait: Callable[[Collection[Handle]], Iterable[Handle]],
    lost: Callable[[Handle], bool] = lambda _: False,
) -> Iterator[tuple[Run, Handle]]:
    """Keep all workers busy until every run has ended.

    Whatever the runs take, this needs less than twice the least time possible (R. Graham, Bell System Technical Journal
    45, 1966); with many more runs than workers it is close to it.

    Args:
        runs: What to run, in order.
        workers: How many run at once.
        start: Starts a run on a worker, numbered from 0; returns what stands for it.
        wait: Waits until at least one of those started has ended; returns the ended ones.
        lost: Whether one ended through no fault of the run's; it is the next to be started, `RETRIES` times at most.

    Yields:
        Each run and what stands for it, as it ends.
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
