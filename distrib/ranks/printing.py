"""Lines on the terminal, from rank 0 alone."""

import sys
from contextlib import suppress

from distrib.ranks.environment import rank


def say(line: str) -> None:
    """Print a line from rank 0 alone; a terminal that has gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(line, flush=True)


def warn(line: str) -> None:
    """Print a warning from rank 0 alone; a terminal that has gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(f"distrib: warning: {line}", file=sys.stderr, flush=True)
