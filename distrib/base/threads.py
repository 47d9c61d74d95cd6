"""Work done ahead in other threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Barrier
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


def pool_for_torch(threads: int, name: str, each: int = 1) -> ThreadPoolExecutor:
    """So many threads, in each of which torch computes with so many of OpenMP's.

    Else every large operation in one of them would begin a team of as many as there are cores: beside the team of the
    thread that trains there would be more of them than cores, and all would wait for each other. Elsewhere torch's
    number of threads is as it was.
    """
    import torch

    elsewhere, all_there = torch.get_num_threads(), Barrier(threads)

    def begin() -> None:
        torch.set_num_threads(each)
        torch.get_num_threads()  # a thread takes over the process's number once, with its first question
        all_there.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for begun in [pool.submit(begin) for _ in range(threads)]:
            begun.result()
    except RuntimeError:  # the system has no more threads: those that are there are not to wait for it
        all_there.abort()
        raise
    finally:
        torch.set_num_threads(elsewhere)
    return pool


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
