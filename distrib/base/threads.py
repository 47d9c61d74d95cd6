"""Work done ahead in other threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], source: Iterable[T], ahead: int
) -> Generator[R, None, None]:
    """What `work` makes of each, in order; in other threads, and of so many before they are asked for.

    An error is raised where its result is asked for. What is under way when the iterator is closed is cancelled.
    """
    waiting = iter(source)
    pending: deque[Future[R]] = deque()
    try:
        pending.extend(pool.submit(work, each) for each in islice(waiting, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(work, each) for each in islice(waiting, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()
