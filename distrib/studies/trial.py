"""One trial: its runs, one after the other, each through the real launcher and in a folder of its own."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna

from distrib.base.errors import OutOfMemory, UserError, afterwards
from distrib.base.files import write_whole
from distrib.config import Config
from distrib.ranks.memory import kernel_kills
from distrib.ranks.stopping import STOPPED
from distrib.runs.folder import RunFolder
from distrib.studies.definition import Study
from distrib.studies.folder import Lock, StudyFolder
from distrib.studies.methods import rung_step
from distrib.studies.record import State
from distrib.studies.results import RunResult, mean, read_result, read_rows, spread
from distrib.studies.search import TrialFile
from distrib.studies.space import Point, short

# A worker passes signals on to the run it has under way; these ask to stop.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# What an earlier launcher has left in the environment is not for the runs of a study.
LAUNCHERS = ("ACCELERATE_", "TORCHELASTIC_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "WANDB_SERVICE")
# Nor is what names one run in W&B, or makes it one of a sweep of W&B's own.
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """A run was asked to stop, and did; the trial is to be resumed."""


class _Ended(Exception):  # noqa: N818 - a result, not an error
    """A trial comes to no value; says what it is instead, and why."""

    def __init__(self, state: State, reason: str) -> None:
        super().__init__(reason)
        self.state = state


@dataclass(frozen=True)
class Ending:
    """What a trial came to.

    Attributes:
        state: finished, pruned, out of memory or failed.
        epochs: trained in all, over all of its runs.
        values: an objective each, the mean over the seeds; None where there is none.
        spread: an objective each, the standard deviation over the seeds; None where there are no values.
        reason: why there are no values.
    """

    state: State
    epochs: int
    values: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    reason: str = ""


class Stop:
    """Whether this process has been asked to stop; what it is asked is passed on to the processes that work for it."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._workers: dict[int, Callable[[], bool]] = {}
        for number in SIGNALS:
            # nohup has SIGHUP ignored.
            if not (number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
                signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: object) -> None:
        self.reason = signal.Signals(number).name
        self.pass_on(number)

    def pass_on(self, number: int) -> None:
        """Send a signal to all that work for this process."""
        for pid, is_alive in list(self._workers.items()):
            if is_alive():
                os.kill(pid, number)

    @contextmanager
    def working(self, pid: int, is_alive: Callable[[], bool]) -> Iterator[None]:
        """While this is on, a process works for this one."""
        self._workers[pid] = is_alive
        try:
            if self.reason is not None:  # heard before it was known
                self.pass_on(signal.SIGTERM)
            yield
        finally:
            del self._workers[pid]

    def run(self, command: list[str], log: Path, inherited: Lock, look: Callable[[], None]) -> int:
        """Run a command, with its output added to a file; its exit status, negative where a signal ended it.

        Args:
            command: program and arguments.
            log: for its output.
            inherited: a lock that it holds too.
            look: is called every second, and once more at its end.
        """
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(LAUNCHERS) and name not in OF_ONE_RUN
        }
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=kept,
                pass_fds=[inherited.descriptor],
            )  # fmt: skip
            with self.working(child.pid, lambda: child.poll() is None):
                while True:
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(timeout=1)
                    look()
                    if child.returncode is not None:
                        return child.returncode


@dataclass
class TrialRun:
    """Trains what a point of a study stands for.

    Attributes:
        study: its definition.
        folder: of the study.
        trial: as Optuna knows it.
        point: its settings.
        storage: where the study is kept, for the runs to ask.
        stop: of the worker.
        say: takes a line for the terminal.
        runs: their folders and that of the one under way, relative to the study's.
    """

    study: Study
    folder: StudyFolder
    trial: optuna.Trial
    point: Point
    storage: str
    stop: Stop
    say: Callable[[str], None]
    runs: list[str] = field(default_factory=list)

    def train(self) -> Ending:
        """Train to the end, one run after the other.

        Raises:
            Interrupted: if it was asked to stop; another call resumes it.
        """
        try:
            results = self._train()
            values = mean(results)
            for objective, value in zip(self.study.objectives, values, strict=True):
                if math.isnan(value):
                    raise _Ended("failed", f"{objective.score} is undefined at the epoch that was kept")
        except _Ended as end:
            return Ending(end.state, self._epochs(), reason=str(end))
        return Ending("finished", self._epochs(), values, spread(results))

    def _train(self) -> list[RunResult]:
        """The results of the last rung, a seed each."""
        study, rungs = self.study, self.study.rungs
        cheaper: dict[int | None, list[tuple[int, Path]]] = {seed: [] for seed in study.seeds}
        for number, rung in enumerate(rungs):
            results: list[RunResult] = []
            for seed, run in zip(study.seeds, self._folders(number), strict=True):
                try:
                    config = study.config(self.point, rung, seed).replace("run", folder=run.resolve(), resume="auto")
                except UserError as error:
                    raise _Ended("failed", str(error)) from None
                if study.fields.warm_start and cheaper[seed]:
                    _, longest = max(cheaper[seed])
                    config = config.replace("model", weights=str(RunFolder(longest.resolve()).best))
                result = self._run(run, config, judged=not results and len(rungs) == 1)
                if result.pruned:
                    raise _Ended("pruned", f"given up after epoch {result.epochs}")
                results.append(result)
                cheaper[seed].append((result.images, run))
            if number + 1 < len(rungs) and self._folders(number + 1)[0].exists():
                continue  # it had reached the next rung before its worker was lost
            if len(rungs) > 1:
                self.trial.report(mean(results)[0], rung_step(study.fields.pruner, number))
                if number + 1 < len(rungs) and self.trial.should_prune():
                    raise _Ended("pruned", f"given up after rung {number}")
        return results

    def _epochs(self) -> int:
        """Trained so far, those of a run that came to nothing too."""
        count = 0
        for run in self.runs:
            with suppress(UserError):  # a run that failed before its first epoch, or whose table is damaged
                count += len(read_rows(self.folder.path / run))
        return count

    def _folders(self, rung: int) -> list[Path]:
        """The folders of a rung's runs, a seed each."""
        number, seeds = self.trial.number, self.study.seeds
        named = rung if len(self.study.rungs) > 1 else None
        return [self.folder.run(number, named, seed if len(seeds) > 1 else None) for seed in seeds]

    def _run(self, run: Path, config: Config, judged: bool) -> RunResult:
        """One run, from wherever it is to its end."""
        self.runs.append(str(run.relative_to(self.folder.path)))
        self.trial.set_user_attr("runs", self.runs)
        held = self._lock_run(run)
        with afterwards(held.release):
            result = self._result(run)
            reported = RunFolder(run).has_report() or not config.explain.after_training
            if result is not None and (reported or result.pruned):
                return result  # it has ended before, its report included
            return self._launch(run, config, judged, held)

    def _launch(self, run: Path, config: Config, judged: bool, held: Lock) -> RunResult:
        if judged and len(self.study.objectives) == 1:
            pruner = self.study.fields.pruner.model_dump()
            score = self.study.objectives[0].score
            TrialFile(self.storage, self.study.name, self.trial._trial_id, score, pruner).write(run)
        file, log = run.with_name(f"{run.name}.yaml"), run.with_name(f"{run.name}.log")
        write_whole(file, config.to_yaml())
        command = [sys.executable, "-m", "distrib", "train", str(file)]
        if self.study.fields.launch is not None:
            command += ["--launch", str(self.study.fields.launch)]
        began = log.stat().st_size if log.exists() else 0
        kills = kernel_kills()
        status = self.stop.run(command, log, held, self._teller(run, config))
        if status == STOPPED or (status != 0 and self.stop.reason is not None):
            raise Interrupted(f"{run.name} was asked to stop; the next worker resumes it")
        if status != 0:
            killed = status == -signal.SIGKILL and kernel_kills() > kills
            state: State = "out of memory" if status == OutOfMemory.exit_status or killed else "failed"
            raise _Ended(state, _reason(log, began, status))
        result = self._result(run)
        if result is None:
            raise _Ended("failed", f"the run recorded no end in {run / 'events.jsonl'}; see {log.name}")
        return result

    def _teller(self, run: Path, config: Config) -> Callable[[], None]:
        """What says the epochs that a run has finished since the last call."""
        score = self.study.objectives[0].score
        told = 0

        def look() -> None:
            nonlocal told
            with suppress(UserError):  # there is no row yet
                rows = read_rows(run)
                for row in rows[told:] if told else rows[-1:]:  # a resumed run's first epochs have been said
                    said = f"{score} {short(row[score])}"
                    self.say(f"{run.name}: epoch {row['epoch']:.0f} of {config.train.epochs}, {said}")
                told = len(rows)

        return look

    def _result(self, run: Path) -> RunResult | None:
        """What a run came to; one that is damaged costs its trial, and not the study."""
        try:
            return read_result(run, self.study.objectives)
        except UserError as error:
            raise _Ended("failed", str(error)) from None

    def _lock_run(self, run: Path) -> Lock:
        """The lock of this trial's runs. One that has outlived its worker is waited for, and what it did is kept."""
        told = False
        while (held := self.folder.lock_run(self.trial.number)) is None:
            if self.stop.reason is not None:
                raise Interrupted(f"{run.name} is still running, left behind by another worker")
            if not told:
                self.say(f"{run.name} is still running, left behind by another worker: waiting for it")
            told = True
            time.sleep(1)
        return held


def _reason(log: Path, began: int, status: int) -> str:
    """Why a run failed, in its own words: its last error, or else its last line."""
    with log.open("rb") as file:
        file.seek(began)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.partition("distrib: error: ")[2] for line in lines if "distrib: error: " in line]
    ended = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return errors[-1] if errors else f"{ended}: {lines[-1] if lines else 'it printed nothing'}"[:500]
