"""How the threads of OpenMP wait for each other; chosen before torch is imported, because libgomp reads it then.

They wait by spinning. On a quiet machine that is the fastest way. Where another program takes a core now and then, the
one thread that has lost its core is waited for by threads that hold theirs, at every barrier: beside one busy process a
step of two threads loses two thirds of its speed. Threads that sleep while they wait lose an eighth in quiet and half
beside that process. What is computed is the same.
"""

import os
import time
from collections.abc import Mapping
from contextlib import suppress

import psutil

from distrib.ranks.environment import launcher

# With any of these a person has chosen.
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# In this variable the ranks find what their launcher measured.
MEASURED = "DISTRIB_CORES_BUSY_ELSEWHERE"
# Cores that other programs keep busy, from which on it is better to sleep.
BUSY = 0.5
SECONDS = 0.2


def choose_waiting() -> None:
    """Let OpenMP's threads sleep while they wait, where other programs keep this process's cores busy.

    Nothing is measured where a person, or the launcher of this rank, has chosen.
    """
    if MEASURED in os.environ or any(name in os.environ for name in CHOICES):
        return
    busy = cores_busy_elsewhere(SECONDS)
    os.environ[MEASURED] = f"{busy:.2f}"
    if busy >= BUSY:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def waiting() -> dict[str, object]:
    """What was chosen, for events.jsonl: the variables that are set, and the cores that were busy with other programs,
    None where a person has chosen."""
    measured = os.environ.get(MEASURED)
    chosen = {name: os.environ[name] for name in CHOICES if name in os.environ}
    return {"variables": chosen, "cores_busy_elsewhere": None if measured is None else float(measured)}


def waiting_line() -> str | None:
    """The same for a person; None where nothing but the default was chosen."""
    measured = os.environ.get(MEASURED)
    if measured is None or float(measured) < BUSY:
        return None
    return f"other programs keep {float(measured):.1f} cores busy: OpenMP's threads sleep while they wait"


def cores_busy_elsewhere(seconds: float) -> float:
    """How many of the cores that this process may use are busy with others than its family, on the mean of a while.

    The family is what this process's launcher has started, or this process where it has none, with all its children.
    """
    before, mine = _busy_seconds(), _family_seconds()
    time.sleep(seconds)
    after = _busy_seconds()
    family = sum(max(0.0, spent - mine.get(pid, 0.0)) for pid, spent in _family_seconds().items())
    return max(0.0, after - before - family) / seconds


def _busy_seconds() -> float:
    """What the cores that this process may use have worked since the machine was started."""
    each = psutil.cpu_times(percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    return sum(each[core].user + each[core].system + each[core].nice for core in mine if core < len(each))


def _family_seconds() -> Mapping[int, float]:
    """What each process of the family has worked since it began."""
    spent = {}
    with suppress(psutil.Error):
        eldest = launcher() or psutil.Process()
        for process in (eldest, *eldest.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
    return spent
