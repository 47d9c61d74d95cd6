"""Stopping on request: signals, a file in the run folder, W&B's Stop button, a launcher that has gone.

A rank that is asked to stop only notes it. The ranks agree in the all-reduce that every step has anyway
(`Agreement`), so that all of them stop after the same step, and what has been trained is saved. Before the training
there is nothing to save, and the process leaves at once; after it, the report is interrupted.

Nothing here imports torch before it is needed, so that a process can listen from its first moment.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from distrib.ranks.printing import say

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from distrib.ranks.host_copy import HostCopy

# A rank that has stopped as it was asked to, leaves with this: EX_TEMPFAIL of sysexits.h, "try again later".
STOPPED = 75
# The reason of a stop that was asked for on the run's page in W&B.
STOP_BUTTON = "W&B's Stop button"
# A second Ctrl-C within this many seconds is the first one's echo: launchers pass on what the terminal has sent too.
ECHO = 0.5
# Seconds between two looks for the file and the launcher.
LOOK_EVERY = 1.0
# Seconds after which a launcher that is asked to stop and has started no rank leaves.
NONE_AFTER = 5.0
# SIGHUP is what a terminal sends when it is closed. torch's launcher passes the first three on, `distrib train` all.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Where torch's launcher tells its ranks which signals it passes on.
LAUNCHERS_SIGNALS = "TORCHELASTIC_SIGNALS_TO_HANDLE"


class Stopped(BaseException):
    """A request to stop where it ends what is under way; says what asked. Like KeyboardInterrupt it is no error."""


class StopRequests:
    """Notes requests to stop.

    Signals are taken by a thread of their own, since the main thread may be deep in a collective operation.

    Attributes:
        reason: what asked this rank to stop; None: nothing has.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._mode = "leave"
        self._interrupted_at: float | None = None
        self._file: Path | None = None
        self._next_look = 0.0
        self._launcher: int | None = None
        self._ranks: Callable[[], Iterable[int]] = list
        self._told: set[int] = set()
        self._asked_at = 0.0
        self._bell: socket.socket | None = None

    def listen(self) -> None:
        """Take the signals of this process from here on; in the main thread."""
        if {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
            self._launcher = os.getppid()
        # nohup has SIGHUP ignored; torch's launcher passes it on all the same, unless it is told which signals it has.
        passed_on = self._launcher is not None and "SIGHUP" in os.environ.get(LAUNCHERS_SIGNALS, "SIGHUP")
        self._bell, answers = socket.socketpair()
        self._bell.setblocking(False)
        for number in SIGNALS:
            if number is not signal.SIGHUP or passed_on or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._in_main_thread)
        signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._take, args=(answers,), name="stop-requests", daemon=True).start()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are taken while this is on, and afterwards again by whom they were before."""
        if self._bell is not None:  # since the process began, and to its end
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            assert self._bell is not None
            self._bell.close()  # which ends the thread

    @contextmanager
    def deferred(self, file: Path | None) -> Iterator[None]:
        """While this is on, requests wait for `wanted` to be asked.

        Args:
            file: that asks to stop by being there; None: no file does.
        """
        self._mode, self._file = "defer", file
        try:
            yield
        finally:
            self._mode, self._file = "leave", None

    @contextmanager
    def raised(self, file: Path) -> Iterator[None]:
        """While this is on, a request raises `Stopped` in the main thread.

        Args:
            file: that asks to stop by being there.

        Raises:
            Stopped: if there has been a request already.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_EVERY):
                if self.wanted():
                    os.kill(os.getpid(), signal.SIGUSR1)  # which the main thread hears of at once
                    return

        self._mode, self._file = "raise", file
        try:
            if self.wanted():
                raise Stopped(self.reason)
            threading.Thread(target=look, name="stop-file", daemon=True).start()
            yield
        finally:
            over.set()
            self._mode, self._file = "leave", None

    @contextmanager
    def handed_on(self, ranks: Callable[[], Iterable[int]]) -> Iterator[None]:
        """While this is on, requests go to the ranks that this process has started, which leave by themselves.

        A rank that is started later hears of it within a second. Where none is (they wait for other machines), this
        process leaves.

        Args:
            ranks: says their process ids.
        """
        self._mode, self._ranks = "hand on", ranks
        try:
            yield
        finally:
            self._mode = "leave"

    def pressed(self) -> bool:
        """Whether this rank is known to have been asked to stop by a launcher that kills 30 s later; from any thread.

        torch's does, with the signals that it passes on; that of `distrib train` passes none on by itself, and waits.
        """
        return self.reason is not None and "SIGTERM" in os.environ.get(LAUNCHERS_SIGNALS, "SIGTERM")

    def wanted(self) -> bool:
        """Whether this rank has been asked to stop; cheap enough for every step."""
        if self.reason is None and time.monotonic() >= self._next_look:
            self.look()
        return self.reason is not None

    def look(self) -> None:
        """Look for the file and the launcher now, whenever that was last done."""
        self._next_look = time.monotonic() + LOOK_EVERY
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"the file {self._file}"
        elif self.reason is None and self._launcher_is_gone():
            self.reason = "the end of the launcher"

    def ask(self, reason: str) -> None:
        """Ask this rank to stop where it asks `wanted`, or soon where a request is raised; from any thread."""
        if self.reason is None:
            self.reason = reason
            if self._mode == "defer":
                say(f"\ndistrib: {reason}: stopping after this step", sys.stderr)

    def _launcher_is_gone(self) -> bool:
        return self._launcher is not None and os.getppid() != self._launcher

    def _take(self, answers: socket.socket) -> None:
        answers.settimeout(LOOK_EVERY)
        with answers:
            while True:
                try:
                    numbers = answers.recv(64)
                except TimeoutError:
                    # Where nobody asks `wanted`: ranks that have not met yet would wait for the launcher's store.
                    if self._mode == "leave" and self.reason is None and self._launcher_is_gone():
                        self._leave(STOPPED, "distrib: stopped by the end of the launcher; nothing would be lost")
                    if self._mode == "hand on" and self.reason is not None:
                        self._hand_on(signal.SIGTERM, set(self._ranks()) - self._told)
                        if not self._told and time.monotonic() - self._asked_at > NONE_AFTER:
                            self._leave(STOPPED, f"distrib: stopped by {self.reason}; there are no ranks yet")
                    continue
                if not numbers:
                    return
                for number in numbers:
                    if number in SIGNALS:
                        self._request(signal.Signals(number))

    def _request(self, number: signal.Signals) -> None:
        # Before the reason, which the main thread sets before it changes this: in "raise" it may have been faster.
        mode = self._mode
        now, interrupts = time.monotonic(), number in (signal.SIGINT, signal.SIGTERM)
        if mode == "hand on":
            if self.reason is None:
                self.reason, self._asked_at = number.name, now
            self._hand_on(number, self._ranks())
            return
        # After Ctrl-C, which is a person's, launchers send SIGTERM for the second one.
        if self._interrupted_at is not None and interrupts and now - self._interrupted_at > ECHO:
            self._leave(128 + number, f"distrib: left at once by a second {number.name}")
        first = self.reason is None
        if first:
            self.reason = number.name
            if mode == "defer":
                again = "; Ctrl-C again leaves at once" if number is signal.SIGINT else ""
                say(f"\ndistrib: {number.name}: stopping after this step{again}", sys.stderr)
        if number is signal.SIGINT and self._interrupted_at is None:
            self._interrupted_at = now
        if first and mode == "leave":
            self._leave(STOPPED, f"distrib: stopped by {number.name}; nothing is under way that would be lost")

    def _hand_on(self, number: signal.Signals, ranks: Iterable[int]) -> None:
        for each in ranks:
            with suppress(ProcessLookupError):
                os.kill(each, number)
                self._told.add(each)

    def _leave(self, status: int, line: str) -> None:
        say(line, sys.stderr)  # the terminal may be what has gone
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)

    def _in_main_thread(self, number: int, _frame: FrameType | None) -> None:
        if self._mode == "raise":
            self.reason = self.reason or signal.Signals(number).name
            self._mode = "leave"  # once is enough
            raise Stopped(self.reason)


class Agreed(NamedTuple):
    """What the ranks have agreed on; the same on all of them after the same number of rounds."""

    stop: bool  # a rank has been asked to; once agreed on it stays so
    save: bool  # a checkpoint is due by the clock of rank 0
    failed: bool  # rank 0 could not write the last checkpoint, and the run is to stop for that
    replaced: bool  # a rank has replaced a broken image


class Agreement:
    """What any rank wishes, as all ranks know it at the same step.

    Each rank adds its `wishes` to an all-reduce that is made anyway, and hands the sum to `hear`. On a GPU the host
    reads a sum some rounds later, when the device has long passed it (`HostCopy.lag`), so that it never waits.
    """

    def __init__(self, requests: StopRequests, accelerator: "Accelerator") -> None:
        import torch

        self._requests = requests
        self._accelerator = accelerator
        self._save = self._failed = self._replaced = False
        self._known: dict[tuple[bool, ...], torch.Tensor] = {}
        self._heard: deque[HostCopy] = deque()
        self._stop = False

    @property
    def reason(self) -> str:
        """What asked to stop."""
        self._requests.look()  # another rank may have noticed first what this one can see as well
        return self._requests.reason or "a request to another rank"

    def wish(self, save: bool, failed: bool, replaced: bool) -> None:
        """Say what this rank wishes in the next round; whether it has been asked to stop is looked up then.

        Args:
            save: a checkpoint.
            failed: that all stop, because the last one could not be written.
            replaced: that all tell each other which broken images they have replaced.
        """
        self._save, self._failed, self._replaced = save, failed, replaced

    def wishes(self) -> "torch.Tensor":
        """1 for each of this rank's wishes, else 0, in the order of `Agreed`; float [4] on the device, to be read."""
        import torch

        wishes = (self._requests.wanted(), self._save, self._failed, self._replaced)
        if wishes not in self._known:  # each is copied to the device once, as the host waits for that
            self._known[wishes] = torch.tensor(wishes, dtype=torch.float32, device=self._accelerator.device)
        return self._known[wishes]

    def hear(self, wishes: "torch.Tensor") -> None:
        """Take the sum of all ranks' wishes, float [4] on the device, the same on all of them."""
        from distrib.ranks.host_copy import HostCopy

        self._heard.append(HostCopy(wishes))

    def answer(self) -> Agreed:
        """What the ranks have agreed on since this was asked last."""
        save = failed = replaced = False
        while self._heard and len(self._heard) > self._heard[0].lag:
            of_round = self._hear_next()
            save |= of_round.save
            failed |= of_round.failed
            replaced |= of_round.replaced
        return Agreed(self._stop, save, failed, replaced)

    def settle(self) -> None:
        """Forget what was wished in the rounds so far, except a stop.

        Every rank calls it after the same round, and waits for its device to have made it.
        """
        self.wish(save=False, failed=False, replaced=False)
        while self._heard:
            self._hear_next()

    def round(self) -> Agreed:
        """A round of its own, for where there is no all-reduce to go with; every rank makes it."""
        import torch

        wishes = self.wishes().clone()
        if self._accelerator.num_processes > 1:
            torch.distributed.all_reduce(wishes)
        self.hear(wishes)
        return self.answer()

    def _hear_next(self) -> Agreed:
        of_round = Agreed(*(self._heard.popleft().get() > 0).tolist())
        self._stop |= of_round.stop
        return of_round
