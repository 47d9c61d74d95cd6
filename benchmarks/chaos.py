"""A training that is disturbed again and again, and resumes each time: does it end as if nothing had happened?

    python benchmarks/chaos.py --disturbances 50 --seed 0 --json benchmarks/results/chaos.json

Two CPU ranks train under `accelerate launch` on synthetic faces, with evaluations, best/ and checkpoints. First without
a disturbance; then SIGKILL, SIGTERM or SIGSTOP meets a random rank or the launcher at a random moment, everything
leaves, and the run is resumed with `--resume auto` until it is finished. Then the next run begins, until there were
enough disturbances.

Moments: a time after the launch or after the first new step, log-uniform from 0.05 s to the duration of a whole run;
within a checkpoint write; within an evaluation; in the last step; after the last evaluation. The table has the moment
as it was found to be.

A rank that is stopped for good is lost to the others, which leave after `run.timeout`. The launcher would then wait
30 s before it kills the stopped one: here what is left of the job is killed as soon as the other rank has left, as a
node's own reaper would. A process that is stopped for a moment only must not be missed: the run has to continue.

Exit status 1 if a run did not finish, is not equal to the undisturbed one, or left something behind.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import machine, report

from distrib.faces import write_faces

ROOT = Path(__file__).resolve().parents[1]
# Seconds without progress after which a rank is taken for lost.
TIMEOUT = 8
# Seconds within which everything has to have left once something lasting has happened.
LEAVES_WITHIN = 60
# Seconds after the launch or the first new step: the earliest disturbance.
EARLIEST = 0.05
CLOCKS = ("images_per_second", "seconds")
MOMENTS = ("start-up", "training", "checkpoint write", "evaluation", "end")
# What happens, and to whom. SIGCONT and SIGKILL come a moment later.
KINDS = [
    *[(what, who) for what in ("SIGKILL", "SIGTERM", "SIGSTOP", "SIGSTOP, SIGCONT") for who in ("rank 0", "rank 1")],
    *[(what, "launcher") for what in ("SIGKILL", "SIGTERM", "SIGSTOP, SIGCONT", "SIGSTOP, SIGKILL")],
]
# What the moment is counted from, as often as it is drawn.
AIMS = ["launch"] * 3 + ["first step"] * 4 + ["checkpoint write"] * 2 + ["evaluation", "last step", "end"]


@dataclass(frozen=True)
class Setting:
    """What is trained: `faces` images, of which four fifths train, in batches of 16, for so many epochs."""

    faces: int = 800
    epochs: int = 5
    every_steps: int = 10


@dataclass(frozen=True)
class Disturbance:
    """What is going to happen.

    Attributes:
        what: the signal, and a second one `hold` seconds later.
        who: rank 0, rank 1 or the launcher.
        aim: what the moment is counted from.
        quantile: of the log-uniform time after it, 0 to 1.
        later: seconds after what is waited for then: a checkpoint write, an evaluation, the last step, the end of the
            last evaluation.
        hold: seconds between the two signals.
    """

    what: str
    who: str
    aim: str = "first step"
    quantile: float = 0.5
    later: float = 0.0
    hold: float = 1.0

    @property
    def lasting(self) -> bool:
        """Whether the job cannot continue."""
        return not self.what.endswith("SIGCONT")


@dataclass
class Hit:
    """A disturbance that has happened.

    Attributes:
        disturbance: which.
        moment: where it has met the run, one of `MOMENTS`.
        step: that rank 0 was in; -1: none yet.
        at: seconds since the epoch.
        left: seconds until everything had left; None: the job continued.
        repeated: steps that were made again because of it.
    """

    disturbance: Disturbance
    moment: str
    step: int
    at: float
    left: float | None = None
    repeated: int = 0

    def __str__(self) -> str:
        left = "" if self.left is None else f", all left after {self.left:.1f} s, {self.repeated} steps repeated"
        return f"{_kind(self.disturbance.what, self.disturbance.who)}, {self.moment}, step {self.step}{left}"


@dataclass
class Job:
    """One launch of a run.

    Attributes:
        run: its run folder.
        seen: the folder of the witness; its path in the environment marks the processes of this job.
        launcher: which has the ranks as its children.
        began: seconds since the epoch.
        ended: when everything had left.
        hits: what has happened to it.
    """

    run: Path
    seen: Path
    launcher: subprocess.Popen[bytes]
    began: float
    ended: float = 0.0
    hits: list[Hit] = field(default_factory=list)

    def processes(self) -> list[psutil.Process]:
        """All that are left of this job."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("WITNESS") == str(self.seen) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """End at once what is left of it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def find(self, who: str) -> psutil.Process | None:
        """The launcher or a rank, if it is there."""
        for process in self.processes():
            try:
                if who == "launcher" and process.pid == self.launcher.pid:
                    return process
                if process.ppid() == self.launcher.pid and who == f"rank {process.environ().get('RANK')}":
                    return process
            except psutil.Error:
                continue
        return None

    def steps(self, rank: int) -> list[tuple[int, list[int], float]]:
        """What the witness of a rank has seen: step, ids, seconds since the epoch."""
        return [tuple(json.loads(line)) for line in _lines(self.seen / f"rank-{rank}.jsonl")]

    def last_step(self) -> int:
        """The step that rank 0 is in; -1: none yet."""
        lines = _lines(self.seen / "rank-0.jsonl")
        return json.loads(lines[-1])[0] if lines else -1

    def writes_a_checkpoint(self) -> bool:
        return any((self.run / "checkpoints").glob(".step-*.staged"))

    @cached_property
    def hashes(self) -> dict[int, str]:
        """step -> hash of the sorted ids of all ranks, for the steps that both ranks have begun."""
        mine, others = ({step: ids for step, ids, _ in self.steps(rank)} for rank in (0, 1))
        both = {step: json.dumps(sorted(mine[step] + others[step])) for step in sorted(mine.keys() & others.keys())}
        return {step: hashlib.sha256(ids.encode()).hexdigest() for step, ids in both.items()}

    @property
    def fatal(self) -> Hit | None:
        """What the job cannot have continued after."""
        return next((hit for hit in self.hits if hit.disturbance.lasting), None)

    @property
    def starting(self) -> float:
        """Seconds until the first step, or until its end or what led to it where there was none."""
        steps = self.steps(0)
        return (steps[0][2] if steps else self.fatal.at if self.fatal else self.ended) - self.began


@dataclass
class Run:
    """A training from its first launch until it is finished; `faults` are sentences on what must not happen."""

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    finished: bool = False
    faults: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.jobs[-1].ended - self.jobs[0].began

    @property
    def hits(self) -> list[Hit]:
        return [hit for job in self.jobs for hit in job.hits]

    def count_repeated(self) -> None:
        """Put down to each disturbance the steps that were repeated after it."""
        reached, blamed = -1, None
        for job in self.jobs:
            if job.hashes:
                if blamed is not None:
                    blamed.repeated = reached + 1 - min(job.hashes)
                reached, blamed = max(job.hashes), job.fatal


@dataclass(frozen=True)
class Result:
    """The undisturbed run and the disturbed ones."""

    setting: Setting
    undisturbed: Run
    runs: list[Run]

    @property
    def passed(self) -> bool:
        """Whether all runs finished, equal to the undisturbed one, and left nothing behind."""
        return all(run.finished and not (run.faults or run.differences or run.leftovers) for run in self.runs)

    def summary(self) -> dict[str, Any]:
        hits = [hit for run in self.runs for hit in run.hits]
        needed = len(self.undisturbed.jobs[0].hashes)
        lost = [run.seconds - self.undisturbed.seconds for run in self.runs]
        starting = [sum(job.starting for job in run.jobs) - self.undisturbed.jobs[0].starting for run in self.runs]
        leaving = [hit.left for hit in hits if hit.left is not None]
        repeated = sum(len(job.hashes) for run in self.runs for job in run.jobs) - needed * len(self.runs)
        return {
            "disturbances": len(hits),
            "runs": len(self.runs),
            "finished": sum(run.finished for run in self.runs),
            "equal": sum(run.finished and not run.differences for run in self.runs),
            "leftovers": sorted({name for run in self.runs for name in run.leftovers}),
            "faults": [fault for run in self.runs for fault in run.faults],
            "differences": [difference for run in self.runs for difference in run.differences],
            "steps_of_a_run": needed,
            "steps_repeated_per_disturbance": repeated / max(1, len(hits)),
            "steps_repeated_at_most": max((hit.repeated for hit in hits), default=0),
            "seconds_of_the_undisturbed_run": self.undisturbed.seconds,
            "seconds_lost_per_disturbance": sum(lost) / max(1, len(hits)),
            "of_them_starting_again": sum(starting) / max(1, len(hits)),
            "of_them_leaving": sum(leaving) / max(1, len(hits)),
            "seconds_to_leave": {"median": statistics.median(leaving), "max": max(leaving)} if leaving else None,
        }

    def table(self) -> str:
        """What happened, by kind and moment, in Markdown."""
        head = ["disturbance", *MOMENTS, "left after s, median (max)", "steps repeated, mean (max)"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        every = [hit for run in self.runs for hit in run.hits]
        for kind in KINDS:
            hits = [hit for hit in every if (hit.disturbance.what, hit.disturbance.who) == kind]
            if hits:
                lines.append(f"| {_kind(*kind)} | {' | '.join(_row(hits))} |")
        return "\n".join([*lines, f"| all | {' | '.join(_row(every))} |"])


def _kind(what: str, who: str) -> str:
    return f"{what} to the {who}" if who == "launcher" else f"{what} to {who}"


def _row(hits: list[Hit]) -> list[str]:
    counts = [sum(hit.moment == moment for hit in hits) for moment in MOMENTS]
    left = [hit.left for hit in hits if hit.left is not None]
    repeated = [hit.repeated for hit in hits]
    return [
        *[str(count or "") for count in counts],
        f"{statistics.median(left):.1f} ({max(left):.1f})" if left else "continued",
        f"{statistics.mean(repeated or [0]):.1f} ({max(repeated, default=0)})",
    ]


def draw(count: int, seed: int) -> list[Disturbance]:
    """Random disturbances; each kind and each aim comes about equally often, or as `AIMS` has it."""
    chance = random.Random(seed)
    kinds, aims = _shuffled(KINDS, count, chance), _shuffled(AIMS, count, chance)
    reach = {"checkpoint write": 0.3, "evaluation": 1.0, "last step": 1.0, "end": 1.0}  # s, about as long as each takes
    return [
        Disturbance(
            what, who, aim, chance.random(),
            later=_log_uniform(0.001, reach[aim], chance.random()) if aim in reach else 0.0,
            hold=_log_uniform(0.1, 3, chance.random()),
        )
        for (what, who), aim in zip(kinds, aims, strict=True)
    ]  # fmt: skip


def _shuffled(deck: Sequence[Any], count: int, chance: random.Random) -> list[Any]:
    cards: list[Any] = []
    while len(cards) < count:
        cards += chance.sample(deck, len(deck))
    return cards[:count]


def _log_uniform(low: float, high: float, quantile: float) -> float:
    return low * math.exp(quantile * math.log(high / low))


def run_chaos(
    disturbances: Iterable[Disturbance], folder: Path, setting: Setting, tell: Callable[[str], None] = lambda _: None
) -> Result:
    """Train once undisturbed, and then again and again until all disturbances have happened, or until Ctrl-C.

    Args:
        disturbances: in this order.
        folder: for everything; empty.
        setting: of the training.
        tell: is told of each thing that happens.
    """
    faces = folder / "faces"
    write_faces(faces, count=setting.faces, seed=0, workers=2)
    undisturbed = Supervisor(folder / "undisturbed", faces, setting, None, tell).finish(deque())
    if not undisturbed.finished:
        raise SystemExit(f"the undisturbed run did not finish: {' '.join(undisturbed.faults)}")
    tell(f"undisturbed: {len(undisturbed.jobs[0].hashes)} steps in {undisturbed.seconds:.0f} s")
    waiting, runs = deque(disturbances), []
    while waiting:
        try:
            run = Supervisor(folder / f"run-{len(runs) + 1}", faces, setting, undisturbed, tell).finish(waiting)
        except KeyboardInterrupt:
            tell("interrupted: the run under way is left out")
            break
        run.count_repeated()
        if run.finished:
            run.differences = differences(undisturbed, run)
            run.leftovers = sorted(_names(run.folder) - _names(undisturbed.folder))
        runs.append(run)
        outcome = "equal" if run.finished and not run.differences else "NOT EQUAL" if run.finished else "NOT FINISHED"
        tell(f"run {len(runs)}: {outcome} after {len(run.hits)} disturbances, {run.seconds:.0f} s")
        for trouble in (*run.faults, *run.differences, *run.leftovers):
            tell(f"    {trouble}")
    return Result(setting, undisturbed, runs)


class Supervisor:
    """Launches a run, disturbs it and launches it again, until it is finished.

    Args:
        place: for its run folder, its witnesses and its logs.
        faces: the data set.
        setting: of the training.
        undisturbed: the same run, which says how long everything takes; None: this is to be that one.
        tell: is told of each thing that happens.
    """

    def __init__(
        self, place: Path, faces: Path, setting: Setting, undisturbed: Run | None, tell: Callable[[str], None]
    ) -> None:
        self._place, self._faces, self._setting, self._tell = place, faces, setting, tell
        self._run = Run(place / "run")
        if undisturbed is not None:
            job = undisturbed.jobs[0]
            self._span = {"launch": undisturbed.seconds, "first step": undisturbed.seconds - job.starting}
            self._last_step = max(job.hashes)
            self._per_epoch = len(job.hashes) // setting.epochs

    def finish(self, waiting: deque[Disturbance]) -> Run:
        """The run, with as many of the waiting disturbances as there was time for; they are taken from the queue."""
        run = self._run
        while not run.finished and not run.faults:
            job = self._launch()
            run.jobs.append(job)
            try:
                while waiting and job.fatal is None and (hit := self._disturb(job, waiting[0])):
                    waiting.popleft()
                    job.hits.append(hit)
                self._see_off(job)
            finally:
                job.kill()
            run.finished = job.launcher.returncode == 0
        if run.finished and waiting and not run.hits:
            # A whole run was over before the moment came: the undisturbed one had a slower machine.
            waiting[0] = replace(waiting[0], quantile=waiting[0].quantile / 2)
        return run

    def _launch(self) -> Job:
        number = len(self._run.jobs)
        seen = self._place / f"seen-{number}"
        seen.mkdir(parents=True)
        kept = self._run.folder / "config.yaml"
        # Both ways to resume: by the folder's own configuration, and by the same command line again.
        options = ["--config", str(kept)] if kept.exists() and number % 2 else self._options()
        foreign = ("WANDB_", "ACCELERATE_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "SLURM_", "OMP_NUM_THREADS")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        with (self._place / f"log-{number}").open("wb") as log:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml",
                 "--main_process_port", str(_free_port()), "benchmarks/witness.py", *options, "--resume", "auto"],
                cwd=ROOT, env={**environment, "WITNESS": str(seen)}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return Job(self._run.folder, seen, launcher, time.time())

    def _options(self) -> list[str]:
        options = [
            "--run.folder", self._run.folder, "--run.device", "cpu", "--run.timeout", TIMEOUT, "--run.start-timeout",
            TIMEOUT, "--data.root", self._faces, "--data.attributes", "Smiling", "Eyeglasses", "Male",
            "--data.image-size", 32, 32, "--train.batch-size", 16, "--train.epochs", self._setting.epochs,
            "--train.log-every", 10, "--train.precision", "no", "--optim.schedule", "one-cycle",
            "--checkpoint.every-steps", self._setting.every_steps, "--explain.after-training", False,
            "--tracking.mode", "disabled",
        ]  # fmt: skip
        return [str(each) for each in options]

    def _disturb(self, job: Job, disturbance: Disturbance) -> Hit | None:
        """Wait for the moment and let it happen; None: the job has left before."""
        if not self._moment_comes(job, disturbance):
            return None
        target, *others = (job.find(who) for who in (disturbance.who, *{"rank 0", "rank 1"} - {disturbance.who}))
        if target is None:
            return None
        first, _, second = disturbance.what.partition(", ")
        hit = Hit(disturbance, self._moment(job), job.last_step(), time.time())
        try:
            target.send_signal(signal.Signals[first])
            if second:
                time.sleep(disturbance.hold)
                hit.at = time.time()
                target.send_signal(signal.Signals[second])
        except psutil.NoSuchProcess:
            return None
        self._tell(f"launch {len(self._run.jobs) - 1}: {hit}")
        if disturbance.what == "SIGSTOP":
            _until(lambda: not any(each and _alive(each) for each in others), LEAVES_WITHIN)
            job.kill()
        return hit

    def _moment_comes(self, job: Job, disturbance: Disturbance) -> bool:
        """Wait for the moment and for its victim to be there; False: the job has left before."""

        def comes(happened: Callable[[], bool]) -> bool:
            _until(lambda: job.launcher.poll() is not None or happened())
            return job.launcher.poll() is None

        aim, since = disturbance.aim, [job.began, *[hit.at for hit in job.hits]]
        if aim != "launch":
            if not comes(lambda: job.last_step() >= 0):
                return False
            since.append(job.steps(0)[0][2])
        delay = _log_uniform(EARLIEST, self._span["launch" if aim == "launch" else "first step"], disturbance.quantile)
        awaited = {
            "launch": lambda: time.time() >= max(since) + delay,
            "first step": lambda: time.time() >= max(since) + delay,
            "checkpoint write": lambda: time.time() >= max(since) + delay and job.writes_a_checkpoint(),
            "evaluation": lambda: time.time() >= max(since) + delay and self._at_an_end(job.last_step()),
            "last step": lambda: job.last_step() == self._last_step,
            "end": self._all_epochs,
        }
        if not comes(awaited[aim]):
            return False
        time.sleep(disturbance.later)
        return comes(lambda: job.find(disturbance.who) is not None)

    def _all_epochs(self) -> bool:
        """Whether the last evaluation is over."""
        return len(_rows(self._run.folder / "metrics.csv")) == self._setting.epochs

    def _at_an_end(self, step: int) -> bool:
        """Whether a step is the last one of its epoch, after which there is an evaluation."""
        return step % self._per_epoch == self._per_epoch - 1

    def _moment(self, job: Job) -> str:
        step = job.last_step()
        if step < 0:
            return "start-up"
        if job.writes_a_checkpoint():
            return "checkpoint write"
        if step == self._last_step and self._all_epochs():
            return "end"
        return "evaluation" if self._at_an_end(step) else "training"

    def _see_off(self, job: Job) -> None:
        """Wait until everything of a job has left; what has not is a fault."""
        limit = 3600 if job.fatal is None else LEAVES_WITHIN
        if not _until(lambda: job.launcher.poll() is not None and not job.processes(), limit):
            self._fault(f"after {limit} s there are still the processes {[each.pid for each in job.processes()]}")
            job.kill()
            job.launcher.wait()
        job.ended = time.time()
        if job.fatal is not None:
            job.fatal.left = job.ended - job.fatal.at
        elif job.launcher.returncode != 0:
            self._fault(f"it left with status {job.launcher.returncode}, and nothing lasting had happened")

    def _fault(self, sentence: str) -> None:
        number = len(self._run.jobs) - 1
        self._run.faults.append(f"{self._run.folder}, launch {number}: {sentence}")
        self._tell((self._place / f"log-{number}").read_text(errors="replace")[-3000:])


def differences(undisturbed: Run, run: Run) -> list[str]:
    """What is not as in the undisturbed run, in words; only clocks may differ."""
    found = []
    planned = undisturbed.jobs[0].hashes
    for number, job in enumerate(run.jobs):
        wrong = [step for step, hash_of_ids in job.hashes.items() if planned.get(step) != hash_of_ids]
        if wrong:
            found.append(f"other images in the steps {wrong} of launch {number}")
    if missing := planned.keys() - {step for job in run.jobs for step in job.hashes}:
        found.append(f"the steps {sorted(missing)} were never made")
    checkpoints = [max((each.folder / "checkpoints").glob("step-*")) for each in (undisturbed, run)]
    if checkpoints[0].name != checkpoints[1].name:
        found.append(f"the last checkpoint is {checkpoints[1].name} and not {checkpoints[0].name}")
    best = [each.folder / "best" for each in (undisturbed, run)]
    pairs = [
        [checkpoint / "model.safetensors" for checkpoint in checkpoints],
        *[[folder / name for folder in best] for name in ("model.safetensors", "validation.safetensors")],
        [each.folder / "metrics_by_attribute.csv" for each in (undisturbed, run)],
    ]
    found += [f"{pair[1]} differs" for pair in pairs if pair[0].read_bytes() != pair[1].read_bytes()]
    trainers = [torch.load(checkpoint / "trainer.pt", weights_only=True) for checkpoint in checkpoints]
    found += [f"{key} differs in trainer.pt" for key in trainers[0] if not _same(*[each[key] for each in trainers])]
    if _rows(undisturbed.folder / "metrics.csv") != _rows(run.folder / "metrics.csv"):
        found.append("metrics.csv differs")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and numbers are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _names(folder: Path) -> set[str]:
    """Everything in a run folder, by its path in it; the checkpoints, of which the newest are kept, by their age."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    for age, checkpoint in enumerate(sorted((folder / "checkpoints").glob("step-*"), reverse=True)):
        names = {name.replace(checkpoint.name, f"{age} back") for name in names}
    return names


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without the clocks."""
    return [{key: row[key] for key in row if key not in CLOCKS} for row in csv.DictReader(_lines(file))]


def _lines(file: Path) -> list[str]:
    """The whole lines of a file; none where it is not there yet."""
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _until(happened: Callable[[], bool], seconds: float = 3600) -> bool:
    """Wait until something has happened; whether it has."""
    limit = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs and their logs, which stay there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        disturbances = draw(options.disturbances, options.seed)
        result = run_chaos(disturbances, folder, Setting(), lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{result.table()}\n")
    report(
        {
            "machine": machine("torch", "accelerate", "psutil"),
            "command": shlex.join(["python", *sys.argv]),
            "setting": {**vars(result.setting), "ranks": 2, "run.timeout": TIMEOUT, "seed": options.seed},
            "summary": result.summary(),
            "hits": [f"run {number}: {hit}" for number, run in enumerate(result.runs, 1) for hit in run.hits],
        },
        options.json,
    )
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
