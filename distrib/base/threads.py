"""Work done ahead in other threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Begun(Protocol[R_co]):
    """Work under way in other threads, as a `Future` is."""

    def result(self) -> R_co:
        """Wait for what it makes."""
        ...

    def cancel(self) -> object:
        """Leave out what has not been started."""
        ...


def map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[T], R], source: Iterable[T], ahead: int
) -> Generator[R, None, None]:
    """What `work` makes of each, in order; in other threads, and of so many before they are asked for.

    An error is raised where its result is asked for. What is under way when the iterator is closed is cancelled.
    """
    return begin_ahead(lambda each: pool.submit(work, each), source, ahead)


def begin_ahead(begin: Callable[[T], Begun[R]], source: Iterable[T], ahead: int) -> Generator[R, None, None]:
    """The same of work that `begin` hands to other threads, perhaps in parts."""
    waiting = iter(source)
    pending: deque[Begun[R]] = deque()
    try:
        pending.extend(begin(each) for each in islice(waiting, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(begin(each) for each in islice(waiting, 1))
            yield result
    finally:
        for begun in pending:
            begun.cancel()
