"""Checks of several ranks: that they stay one model, how fast they share gradients, and that none waits for a lost one.

Each rank is a process of its own, and they meet through a key-value store that is kept here, as by a launcher.
"""

import hashlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from distrib.base.errors import first_line
from distrib.base.words import listed
from distrib.checking.check import Bench, Failed, LeftOut, Passed, expect, leave_out_if_exclusive
from distrib.checking.stepping import batch, training
from distrib.config import Config
from distrib.ranks.meeting import start_ranks
from distrib.ranks.watch import Watch

STEPS = 20
# Values of float32: as many as ResNet18 has gradients.
GRADIENTS = 11_200_000
ROUNDS = 10
# Seconds: for processes to start, meet and compute; after which a rank that stands still is lost; and how much later
# the others may leave.
ANSWERED_WITHIN, TIMEOUT, SLACK = 90.0, 5.0, 10.0


Answer = Callable[[Any], None]


class Rank(NamedTuple):
    """A rank in a process of its own.

    Attributes:
        answer: gives a pair of what it has answered, and of how it has failed: a line and a traceback; one is None.
        log: what it writes to its standard error.
    """

    process: SpawnProcess
    answer: Connection
    log: Path


def agreement(bench: Bench) -> Passed:
    """After 20 steps on images of their own all ranks have the same weights, statistics and moments, to the bit."""
    ranks = _count(bench)
    with started(ranks, share_steps, bench) as processes:
        states, seconds = zip(*_answers(processes), strict=True)
    # What each rank sends and receives in a ring: 2 (N - 1) / N of the values.
    moved = 2 * (ranks - 1) / ranks * 4 * GRADIENTS
    figures = {"ranks": ranks, "all_reduce_seconds": max(seconds), "bytes_per_second": moved / max(seconds)}
    expect(len(set(states)) == 1, f"{ranks} ranks have different weights after {STEPS} steps", figures)
    return Passed(
        f"{ranks} ranks are one model after {STEPS} steps; {4 * GRADIENTS / 1e6:.0f} MB of gradients take "
        f"{1e3 * max(seconds):.1f} ms to share ({figures['bytes_per_second'] / 1e9:.1f} GB/s of bus bandwidth)",
        figures,
    )


def lost_rank(bench: Bench) -> Passed:
    """Where a rank stands still the others, which wait for it, leave soon after `run.timeout`, and it is named."""
    with started(_count(bench), stand_still, bench) as ranks:
        _answers(ranks)  # now they wait
        *others, stopped = ranks
        began = time.monotonic()
        for rank in others:
            rank.process.join(max(0.0, began + TIMEOUT + SLACK - time.monotonic()))
        seconds = time.monotonic() - began
        logs = [_log(rank) for rank in others]
        figures = {
            "ranks": len(ranks),
            "timeout": TIMEOUT,
            "seconds": seconds,
            "logs": logs,
        }
        waiting = [f"rank {number}" for number, rank in enumerate(others) if rank.process.is_alive()]
    expect(
        not waiting,
        f"rank {len(others)} stood still, and after {seconds:.0f} s {listed(waiting)} still had not left; they were to "
        f"leave after {TIMEOUT:g} (run.timeout)",
        figures,
    )
    # The first that leaves has a launcher end the others, or NCCL.
    name = f"leaves: rank {len(others)} (process {stopped.process.pid} on "
    expect(
        any(name in log for log in logs),
        f"rank {len(others)} stood still, and none of those that have left it says so",
        figures,
    )
    return Passed(
        f"a rank that stands still is named and left after {seconds:.1f} s (run.timeout {TIMEOUT:g})", figures
    )


@contextmanager
def started(ranks: int, work: Callable[[Bench, Answer], None], bench: Bench) -> Iterator[list[Rank]]:
    """So many ranks at their work; what is left of them at the end is killed, also if it stands still."""
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    context = get_context("spawn")
    found: list[Rank] = []
    try:
        for rank in range(ranks):
            # What torchrun, which keeps such a store, tells a rank.
            environment = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
            }  # fmt: skip
            mine, theirs = context.Pipe()
            log = bench.folder / f"{work.__name__}-{rank}.log"
            process = context.Process(target=_run, args=(theirs, log, environment, work, bench), daemon=True)
            process.start()
            theirs.close()
            found.append(Rank(process, mine, log))
        yield found
    finally:
        for each in found:
            each.process.kill()
            each.process.join()


def share_steps(bench: Bench, answer: Answer) -> None:
    """Train on images of this rank's own; it answers a digest of its state, and the seconds of an all-reduce."""
    with training(bench) as small:
        rank, ranks = small.accelerator.process_index, small.accelerator.num_processes
        for number in range(STEPS):
            small.step([batch(bench, seed=number * ranks + rank)], number)
        digest = hashlib.sha256()
        for name, tensor in small.state().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        gradients = torch.zeros(GRADIENTS, device=bench.device)
        torch.distributed.all_reduce(gradients)
        bench.synchronise()
        began = time.perf_counter()
        for _ in range(ROUNDS):
            torch.distributed.all_reduce(gradients)
        bench.synchronise()
        seconds = (time.perf_counter() - began) / ROUNDS
        small.accelerator.end_training()
    answer((digest.hexdigest(), seconds))


def stand_still(bench: Bench, answer: Answer) -> None:
    """The last rank stops without a word, and the others wait for its share of a sum; all answer just before."""
    config = Config().replace("run", device=bench.device.type, timeout=TIMEOUT).replace("train", precision="no")
    accelerator = start_ranks(config)
    with Watch(accelerator, config.run.timeout, config.run.start_timeout, lambda _: None) as watch:
        watch.started()
        answer(None)
        if accelerator.is_last_process:
            os.kill(os.getpid(), signal.SIGSTOP)
        share = torch.ones(1, device=bench.device)
        torch.distributed.all_reduce(share)
        bench.synchronise()


def _count(bench: Bench) -> int:
    """One rank a GPU, and two where there is none."""
    ranks = torch.cuda.device_count() if bench.on_gpu else 2
    if ranks < 2:
        raise LeftOut("several ranks need two GPUs, and there is one")
    return ranks


def _run(
    answer: Connection,
    log: Path,
    environment: Mapping[str, object],
    work: Callable[[Bench, Answer], None],
    bench: Bench,
) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
    try:
        work(bench, lambda found: answer.send((found, None)))
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        answer.send((None, (said, traceback.format_exc())))


def _answers(ranks: Sequence[Rank]) -> list[Any]:
    """What each rank has answered.

    Raises:
        Failed: if one fails, ends or takes too long; the others may wait for it.
    """
    deadline = time.monotonic() + ANSWERED_WITHIN
    answers: dict[int, Any] = {}
    while len(answers) < len(ranks):
        silent = [number for number in range(len(ranks)) if number not in answers]
        ready = wait([ranks[number].answer for number in silent], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Failed(
                f"rank {silent[0]} has not answered for {ANSWERED_WITHIN:g} s", {"log": _log(ranks[silent[0]])}
            )
        for number in silent:
            if ranks[number].answer not in ready:
                continue
            try:
                answers[number], failure = ranks[number].answer.recv()
            except EOFError:
                failure = "it has ended without an answer", None
            if failure is not None:
                said, where = failure
                leave_out_if_exclusive(said)
                raise Failed(f"rank {number} of {len(ranks)}: {said}", {"traceback": where, "log": _log(ranks[number])})
    return [answers[number] for number in range(len(ranks))]


def _log(rank: Rank) -> str:
    return rank.log.read_text(encoding="utf-8", errors="replace") if rank.log.exists() else ""
