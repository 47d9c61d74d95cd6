"""Lines on the terminal, from rank 0 alone."""

import sys
from contextlib import suppress
from typing import TextIO

from distrib.ranks.environment import rank


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line from rank 0 alone, on standard output or another stream; one that has gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(line, file=stream, flush=True)


def warn(line: str) -> None:
    """Print a warning on standard error, likewise."""
    say(f"distrib: warning: {line}", sys.stderr)
