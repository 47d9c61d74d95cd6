"""What is the user's to mend: one exception, and one for memory that has run out."""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# What a disk or a network says that may do the same thing well the next time.
PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}  # fmt: skip
# What would break a sentence into lines, steer the terminal, or fail to be printed at all.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """The same on one line of any terminal: what it would not show stands there as an escape such as \\n."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def first_line(error: Exception) -> str:
    """What a library says, on one line: the first of its own, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0][:160] or type(error).__name__


@contextmanager
def afterwards(clean_up: Callable[[], object]) -> Iterator[None]:
    """Clean up at the end of a block, however it ends; an error of the block is the one that is raised."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            clean_up()
        raise
    clean_up()


class UserError(Exception):
    """A wrong setting, file or image: one sentence with what, where, found, expected and the remedy.

    Every program in this package prints it without a traceback and leaves with exit status 2. Whatever stands in a file
    or a name that it quotes, it is one line.

    Attributes:
        on_all_ranks: whether every rank raises the same, so that rank 0 alone prints it.
        may_pass: whether it was raised for a disk or a network that failed, which may work the next time; from the
            exception that was being handled.
    """

    exit_status = 2

    def __init__(self, sentence: str, on_all_ranks: bool = False) -> None:
        super().__init__(printable(sentence))
        self.on_all_ranks = on_all_ranks
        handled = sys.exc_info()[1]
        passing = isinstance(handled, OSError) and handled.errno in PASSING
        self.may_pass: bool = passing or (isinstance(handled, UserError) and handled.may_pass)


class OutOfMemory(UserError):  # noqa: N818 - as torch has it
    """Memory that has run out; no reason not to try again, as another program may have had it.

    Its exit status is one of its own, so that a study can tell it from other ends.

    Args:
        said: what a library said of it.
        remedy: what to make smaller.
        on_all_ranks: whether every rank raises the same.
    """

    exit_status = 3

    def __init__(self, said: str, remedy: str, on_all_ranks: bool = False) -> None:
        said = printable(said).partition(". ")[0][:200] or "MemoryError"  # Python's own says nothing
        super().__init__(f"out of memory ({said}): {remedy}", on_all_ranks)
        self.may_pass = True


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device, or the host, has no room for what was asked of it."""
    # torch has no type of its own for it on the CPU, nor have DALI and CUDA's libraries; its own for GPUs says so too.
    said = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation", "bad_alloc")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
