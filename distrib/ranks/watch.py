"""Each rank watches the others, so that one that dies or hangs is named, and does not keep the others for ever.

A thread of every rank writes a sign of life and how far its rank has come to the launcher's key-value store (the one
through which the ranks have met), and reads those of the others. A collective operation that waits for a lost rank
cannot be called off from Python, so a rank that gives up leaves the process.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch
from accelerate import Accelerator

from distrib.base.errors import UserError, first_line
from distrib.ranks.ending import RankLost, lost_a_rank
from distrib.ranks.meeting import own_store, set_timeout

# Seconds between two signs of life. A dead rank is known by its silence over three of them.
BEAT = 1.0
# Seconds that the store may take for one answer; the launcher it lives in may be stopped for a while.
ANSWER_WITHIN = 5.0
# Seconds of silence after which a rank no longer waits for one whose process has ended, or, asked to stop itself, for
# any. A launcher asks so when it has lost a rank, and kills 30 s later; NCCL meanwhile waits without an error.
GONE_AFTER = 10.0
# The last sign of a rank that has come to the end of its watch, and is missed by nobody.
OVER = "over"


@dataclass
class _Sign:
    """What is known of a rank: its last words, and when they were heard to change."""

    life: str = ""
    lived: float = 0.0
    progress: int = -1
    moved: float = 0.0


@dataclass(frozen=True)
class _Process:
    """Where a rank runs.

    Attributes:
        number: of the process.
        host: its name.
        system: what tells the numbers of this machine, or of a container on it, from those of others; "": not known.
    """

    number: int
    host: str
    system: str

    @classmethod
    def own(cls) -> Self:
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            system = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        except OSError:  # there are none on macOS
            system = ""
        return cls(os.getpid(), socket.gethostname(), system)

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}"

    def has_ended(self) -> bool:
        """Whether it is known to be no more, as it is of a process on this machine alone."""
        if not self.system or self.system != self.own().system:
            return False
        try:
            return psutil.Process(self.number).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):
            return False


class Watch:
    """Watches the ranks while it is entered as a context.

    Args:
        accelerator: of this rank.
        timeout: seconds without progress after which a rank is lost.
        start_timeout: the same until `started` is called.
        give_up: called with a sentence before this rank leaves because another one hangs or has gone.
        asked: whether this rank has been asked to stop, which it does together with the others, and will be killed if
            that takes long.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        timeout: float,
        start_timeout: float,
        give_up: Callable[[str], None],
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rank, self._ranks = accelerator.process_index, accelerator.num_processes
        self._limit, self._after_start = start_timeout, timeout
        self._give_up, self._asked = give_up, asked
        self._progress = 0
        self._over = threading.Event()
        self._signs = [_Sign() for _ in range(self._ranks)]
        self._processes: list[_Process] = []
        self._store: Any = None  # a torch.distributed.Store
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def __enter__(self) -> Self:
        if self._ranks > 1:
            self._store = self._connect()
            self._store.set(str(self._rank), self._word())
            self._processes = [_Process.own()] * self._ranks
            # Every rank has given its first sign before any reads the others'.
            torch.distributed.all_gather_object(self._processes, _Process.own())
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch; an error that says that a rank has gone becomes a `RankLost` with its name."""
        sentence = None
        if self._ranks > 1 and isinstance(error, RuntimeError) and lost_a_rank(error):
            sentence = self._who_is_silent(first_line(error))
        self._over.set()
        if self._thread.is_alive():
            # A thread that is in a call of the store while the interpreter ends would abort the process.
            self._thread.join(3 * ANSWER_WITHIN)
        if kind is None and self._store is not None:
            with suppress(RuntimeError, ValueError):  # the launcher may be gone by now
                self._store.set(str(self._rank), f"{OVER} {self._progress}")
        if sentence is not None:
            raise RankLost(sentence) from None

    def progress(self) -> None:
        """Say that this rank has come further: a step, a batch of validation, an epoch's end."""
        self._progress += 1

    def started(self) -> None:
        """From here on the shorter timeout counts, for this watch and for the collective operations."""
        if self._limit == self._after_start:
            return
        self._limit = self._after_start
        if self._ranks > 1:
            set_timeout(self._after_start)

    def _work(self) -> None:
        while not self._over.wait(min(BEAT, self._limit / 8)):
            try:
                self._beat()
            except (RuntimeError, ValueError):
                self._unheard()
            sentence = self._verdict(time.monotonic())
            if sentence is not None and not self._over.is_set():
                self._leave(sentence)

    def _connect(self) -> Any:
        return own_store("watch", timedelta(seconds=ANSWER_WITHIN))

    def _word(self) -> str:
        return f"{time.monotonic()} {self._progress}"

    def _beat(self) -> None:
        """Give a sign of life and read those of all ranks.

        Raises:
            RuntimeError: if the store does not answer.
        """
        if self._store is None:
            self._store = self._connect()
        self._store.set(str(self._rank), self._word())
        words = self._store.multi_get([str(rank) for rank in range(self._ranks)])
        now = time.monotonic()
        for sign, word in zip(self._signs, words, strict=True):
            life, progress = word.decode().split()
            if life != sign.life or life == OVER:
                sign.life, sign.lived = life, now
            if int(progress) != sign.progress:
                sign.progress, sign.moved = int(progress), now

    def _unheard(self) -> None:
        """The launcher that keeps the store is stopped or gone: nobody can be blamed for a silence until it is back."""
        self._store = None
        self._over.wait(ANSWER_WITHIN)  # torch prints a long complaint for each time that is tried in vain
        now = time.monotonic()
        for sign in self._signs:
            sign.lived = sign.moved = now

    def _verdict(self, now: float) -> str | None:
        """A sentence on the ranks that hang or have gone, if the time for that has come."""
        if not all(sign.life for sign in self._signs):
            return None
        silent = self._silent(self._limit, now)
        if silent:
            return f"{self._listed(silent)} {_no_sign(silent)} for {self._limit:g} s"
        silent = self._silent(GONE_AFTER, now)
        if gone := [rank for rank in silent if self._processes[rank].has_ended()]:
            return f"{self._listed(gone)} {_has(gone)} gone"
        if silent and self._asked() and now - self._signs[self._rank].moved > GONE_AFTER:
            return (
                f"{self._listed(silent)} {_no_sign(silent)} for {GONE_AFTER:g} s, and this rank has been asked to stop"
            )
        if all(now - sign.moved > self._limit for sign in self._signs):
            least = min(sign.progress for sign in self._signs)
            behind = [rank for rank, sign in enumerate(self._signs) if sign.progress == least]
            if len(behind) < self._ranks:
                return f"{self._listed(behind)} {_has(behind)} come no further for {self._limit:g} s"
            return f"no rank has come further for {self._limit:g} s, and none is behind the others"
        return None

    def _silent(self, seconds: float, now: float) -> list[int]:
        """The ranks of which nothing has been heard for longer."""
        return [rank for rank, sign in enumerate(self._signs) if now - sign.lived > seconds]

    def _who_is_silent(self, reason: str) -> str:
        """Which ranks have given no sign of life lately; waits for three beats to know."""
        # What a rank has said just before its end is heard up to a beat later.
        heard = time.monotonic() + 1.5 * BEAT
        time.sleep(5 * BEAT)
        silent = [rank for rank, sign in enumerate(self._signs) if sign.life and sign.lived < heard]
        return f"{self._listed(silent)} {_has(silent)} gone" if silent else f"another rank has gone ({reason})"

    def _leave(self, sentence: str) -> None:
        with suppress(OSError, UserError):  # a terminal that has gone, a disk that is full
            self._give_up(sentence)
            print(f"distrib: rank {self._rank} leaves: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    def _listed(self, ranks: list[int]) -> str:
        names = [f"{rank} ({self._processes[rank]})" for rank in ranks[:8]]
        more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(names)}{more}"


def _no_sign(ranks: list[int]) -> str:
    return "give no sign of life" if len(ranks) > 1 else "gives no sign of life"


def _has(ranks: list[int]) -> str:
    return "have" if len(ranks) > 1 else "has"
