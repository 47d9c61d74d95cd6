"""The standard streams of a program: a reader that leaves, a terminal that is not UTF-8, a disk that is full.

`distrib predict MODEL PHOTO … | head` ends as other programs of a shell's do: quietly, with the status of SIGPIPE.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

# As a shell shows a program that SIGPIPE has ended.
PIPE_CLOSED = 128 + signal.SIGPIPE


# Of each `standard_streams` that is on: whether the program continues.
_blocks: list[bool] = []


@contextmanager
def standard_streams(goes_on: bool = False) -> Iterator[None]:
    """While this is on, nothing that is printed ends in a traceback, for its characters or where it cannot be written.

    Also a decorator, for the `main` of a program. Characters that the terminal's encoding lacks are escaped. Streams
    that are not the process's own (a notebook's, a test's) are left alone.

    Args:
        goes_on: whether the work is worth more than what it says of itself, as a training is: then the program
            continues without a stream that cannot be written, after a warning on standard error. Else it leaves.

    Raises:
        SystemExit: unless `goes_on`, from whatever prints: `PIPE_CLOSED` where the reader of a stream has left, 2 where
            it cannot be written for another reason.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _taken(sys.stdout, 1), _taken(sys.stderr, 2)
    _blocks.append(goes_on)
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        except BaseException:  # which is the news, whatever becomes of the last lines
            with suppress(SystemExit):
                _flush()
            raise
        _flush()
    finally:
        _blocks.pop()
        sys.stdout, sys.stderr = before


class _Stream(io.TextIOWrapper):
    """A standard stream of the process's own, as `standard_streams` has it."""


class _Output(io.FileIO):
    """Where a standard stream goes; from its first failure on, nowhere."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any) -> int:
        """As `FileIO.write`.

        Raises:
            SystemExit: as `standard_streams` says.
        """
        try:
            return super().write(data)
        except OSError as error:
            self._give_up(error)
            return memoryview(data).nbytes

    def _give_up(self, error: OSError) -> None:
        with suppress(OSError):  # libraries and child processes print too, and buffers are flushed once more
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        # A thread of its own, such as a progress bar's, cannot end the program.
        leaves = bool(_blocks) and not any(_blocks) and threading.current_thread() is threading.main_thread()
        if leaves and isinstance(error, BrokenPipeError):
            raise SystemExit(PIPE_CLOSED)
        if self.fileno() == 1 and os.environ.get("RANK", "0") == "0":
            word, remedy = "warning", "the work continues without it, and writes all of its files"
            if leaves:
                word, remedy = "error", "write elsewhere, or make room"
            line = f"distrib: {word}: standard output cannot be written ({error.strerror}): {remedy}"
            print(line, file=sys.stderr, flush=True)
        if leaves:
            raise SystemExit(2)


def _taken(stream: TextIO, descriptor: int) -> TextIO:
    """A standard stream of the process's own as this module has it; another one, or one that is so, as it is."""
    if stream is None:  # closed by whoever started the process, as by `>&-`
        return Path(os.devnull).open("w", encoding="utf-8")
    if stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    assert isinstance(stream, io.TextIOWrapper)
    with suppress(OSError):
        stream.flush()
    return _Stream(
        io.BufferedWriter(_Output(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Stream):
            stream.flush()
