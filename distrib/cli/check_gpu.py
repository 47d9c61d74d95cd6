"""`distrib check --gpu`: whether this machine keeps the promises that a training relies on.

distrib check --gpu --json found.json
"""

from collections.abc import Sequence

import tyro

from distrib.base.collection import no_collection
from distrib.base.paths import OptionPath
from distrib.base.program import program
from distrib.ranks.waiting import choose_waiting


def check_gpu(json: OptionPath | None = None) -> int:
    """Check that this machine keeps the promises that a training relies on, and measure how fast it is.

    It needs no data set and no network. Each check passes, fails with a sentence, or says why it was left out.

    Args:
        json: File to write all findings to, for a bug report; it is there from the first check on, and written anew
            after each.
    """
    choose_waiting()  # torch, which is imported below, reads it then
    with no_collection():  # takes seconds, for which no --help waits
        from distrib.checking.run import run_checks

    return run_checks(json)


@program
def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit status, 0, or 1 where a check has failed."""
    return tyro.cli(check_gpu, prog="distrib check --gpu", args=argv)
