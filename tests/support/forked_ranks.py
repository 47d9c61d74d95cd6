"""Ranks as forks of one process that has imported everything: several of them start in a moment."""

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from launching import clean_environment, free_port

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["distrib.training.run"])


class Ended(NamedTuple):
    """How a program ended on a rank, and what it said there."""

    returncode: int
    stdout: str
    stderr: str


def train_on_ranks(ranks: int, *arguments: object, **observed: str) -> Ended:
    """`distrib/train.py` on so many CPU ranks, where the launcher is not what is tested; what it was on rank 0.

    Args:
        ranks: how many.
        arguments: of the program.
        observed: variables of observer.py, which then watches the ranks. There is no launcher for it to disturb, and
            a rank that it kills is a failure.

    Raises:
        AssertionError: if the ranks end with different statuses.
    """
    assert "launcher:" not in observed.get("DISTURB", ""), "the ranks have none"
    ended = on_ranks(ranks, _train, [str(each) for each in arguments], observed)
    assert len({each.returncode for each in ended}) == 1, ended
    return ended[0]


def _train(arguments: list[str], observed: dict[str, str]) -> Ended:
    from distrib import train

    if observed:  # which observer.py reads when it is imported
        os.environ.update(observed)
        sys.argv = ["distrib/train.py", *arguments]
        import observer  # noqa: F401

    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as said:
        status = train.main(arguments)
    return Ended(status, out.getvalue(), said.getvalue())


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
    """What `work(*arguments)` returns on each of so many CPU ranks, which meet over gloo.

    Raises:
        AssertionError: with the traceback of the rank, where one failed.
    """
    environment = clean_environment(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in range(ranks):
        mine, theirs = _CONTEXT.Pipe()
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        process = _CONTEXT.Process(target=_run, args=(theirs, own, work, arguments), daemon=True)
        process.start()
        theirs.close()
        processes.append((process, mine))
    results = []
    for rank, (process, mine) in enumerate(processes):
        assert mine.poll(timeout), f"rank {rank} of {ranks} has not answered"
        result, failure = mine.recv()
        assert failure is None, f"rank {rank} of {ranks}: {failure}"
        results.append(result)
        process.join(timeout)
    return results


def _run(answer: Connection, environment: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)  # the same kernels on any number of ranks, and no more threads than cores
    try:
        answer.send((work(*arguments), None))
    except BaseException:
        answer.send((None, traceback.format_exc()))
