"""Which run goes to which worker: the next one in order, to the first worker that is free."""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import TypeVar

Run = TypeVar("Run")
Handle = TypeVar("Handle", bound=Hashable)


def dispatch(
    runs: Iterable[Run],
    workers: int,
    start: Callable[[Run, int], Handle],
    wait: Callable[[Collection[Handle]], Iterable[Handle]],
) -> Iterator[tuple[Run, Handle]]:
    """Keep all workers busy until every run has ended.

    Whatever the runs take, this needs less than twice the least time possible (R. Graham, Bell System Technical Journal
    45, 1966); with many more runs than workers it is close to it.

    Args:
        runs: What to run, in order.
        workers: How many run at once.
        start: Starts a run on a worker, numbered from 0; returns what stands for it.
        wait: Waits until at least one of those started has ended; returns the ended ones.

    Yields:
        Each run and what stands for it, as it ends.
    """
    waiting, free = deque(runs), list(reversed(range(workers)))
    going: dict[Handle, tuple[Run, int]] = {}
    while waiting or going:
        while waiting and free:
            worker = free.pop()
            run = waiting.popleft()
            going[start(run, worker)] = run, worker
        for handle in wait(going.keys()):
            run, worker = going.pop(handle)
            free.append(worker)
            yield run, handle
