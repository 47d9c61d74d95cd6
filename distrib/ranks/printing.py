"""Lines on the terminal, from rank 0 alone."""

import sys
from contextlib import suppress

from distrib.ranks.environment import rank


def say(line: str) -> None:
    """A line on the terminal, from rank 0 alone; one that is gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(line, flush=True)


def warn(line: str) -> None:
    """A warning on the terminal, from rank 0 alone; one that is gone is no reason to fail."""
    if rank() == 0:
        with suppress(OSError):
            print(f"distrib: warning: {line}", file=sys.stderr, flush=True)
