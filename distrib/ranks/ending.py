"""How a rank ends: an exit status and one sentence for whatever ends a program early."""

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from distrib.base.errors import OutOfMemory, UserError, out_of_memory
from distrib.ranks.environment import rank, several_ranks
from distrib.ranks.printing import say
from distrib.ranks.stopping import STOPPED

T = TypeVar("T")

# Seconds that other ranks leave rank 0 to print an error that all of them have.
SPEAK_WITHIN = 60


class RankLost(Exception):  # noqa: N818 - nothing that this rank did wrong
    """Another rank has died or hangs; says which."""


def not_deterministic(error: Exception) -> bool:
    """Whether torch refuses an operation because it has no deterministic form, as train.deterministic makes it do."""
    return "does not have a deterministic implementation" in str(error)


def lost_a_rank(error: Exception) -> bool:
    """Whether an error is the network's way of saying that another rank has gone."""
    import torch

    if isinstance(error, torch.distributed.DistError):
        return True
    return several_ranks() and any(name in str(error) for name in ("gloo", "Connection closed by peer"))


def stopped_status() -> int:
    """The exit status of a rank that was asked to stop and did: `STOPPED`.

    A launcher that restarts failed ranks would take that for a failure and start them again: there it is 0.
    """
    return 0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 else STOPPED


def run_program(prepare: Callable[[], T], work: Callable[[T], int | None], interrupted: str, make_room: str) -> int:
    """Run a program on this rank, and print whatever ends it early as one sentence.

    Args:
        prepare: everything until the ranks have met; what is wrong here is wrong on every rank.
        work: the rest; it gets what `prepare` returns, and may return an exit status.
        interrupted: what to say after Ctrl-C.
        make_room: what to do where memory has run out, unless `work` knows better.

    Returns:
        The exit status: that of `work`, 1 if another rank was lost, 2 for what the user can mend, 3 if there was not
        enough memory, 130 after Ctrl-C.
    """
    try:
        try:
            ready = prepare()
        except UserError as error:
            raise UserError(str(error), on_all_ranks=True) from None
        return work(ready) or 0
    except UserError as error:
        if error.on_all_ranks and rank() != 0:
            # The launcher ends every rank once one has left: rank 0 is to speak first, and that ends this one too.
            time.sleep(SPEAK_WITHIN)
        who = "" if error.on_all_ranks or not several_ranks() else f"rank {rank()}: "
        print(f"distrib: error: {who}{error}", file=sys.stderr, flush=True)
        return error.exit_status
    except RankLost as error:
        print(f"distrib: rank {rank()} leaves: {error}", file=sys.stderr, flush=True)
        return 1
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            who = f"rank {rank()}: " if several_ranks() else ""
            print(f"distrib: error: {who}{OutOfMemory(str(error), make_room)}", file=sys.stderr, flush=True)
            return OutOfMemory.exit_status
        if not_deterministic(error):
            who = f"rank {rank()}: " if several_ranks() else ""
            print(
                f"distrib: error: {who}train.deterministic is true, and {str(error).partition(', but you')[0][:200]} "
                "in this version of torch: set train.deterministic to false, which may be done on resuming too",
                file=sys.stderr,
                flush=True,
            )
            return UserError.exit_status
        if not lost_a_rank(error):
            raise
        print(f"distrib: rank {rank()} leaves, because another rank has left: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        say(interrupted)
        return 130
