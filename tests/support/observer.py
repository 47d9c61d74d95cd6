"""distrib/train.py with a witness: each rank writes down the ids it trains on, and something may happen to it.

OBSERVE=FOLDER           write FOLDER/rank-R.jsonl, a line a step: [step, [ids …]]; FOLDER/left-R when the rank leaves
DISTURB=WHEN RANK WHAT   in the first attempt, on one rank:
    WHEN  a number: before this step, counted from 0 over the run; evaluation: in its first round; write: while a
          checkpoint is being written; supersede: while one is that the best epoch before is still kept for; results:
          before those of epoch 2 are written, and after a step of epoch 3; report: before the first job of the report;
          read: before any image is read
    WHAT  self:SIGNAL or launcher:SIGNAL; twice:SIGNAL, to itself and once more a second later; preempt: make that
          file; hang: do nothing for a minute
DISTURB_AFTER=PATH       and only once this is there, such as a checkpoint that is written in the background
SELDOM=SECONDS           between two looks of rank 0 for the file that asks to stop
BLIND=RANK               to this rank events.jsonl is empty, as a file may be for a while on another machine
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import distrib.data.decoders
import distrib.explaining.report
import distrib.ranks.stopping
import distrib.training.checkpoint
import distrib.training.epoch
import distrib.training.loop
from distrib.data.reader import ImageReader
from distrib.runs.folder import RunFolder
from distrib.training.step import TrainStep

RANK = os.environ.get("RANK", "0")
WHEN, WHO, WHAT = os.environ.get("DISTURB", "never 0 nothing").split()


def disturb(moment: object) -> None:
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if (str(moment), RANK) != (WHEN, WHO) or not first:
        return
    while "DISTURB_AFTER" in os.environ and not Path(os.environ["DISTURB_AFTER"]).exists():
        time.sleep(0.01)
    target, _, name = WHAT.partition(":")
    if target == "preempt":
        (Path(sys.argv[sys.argv.index("--run.folder") + 1]) / "preempt").touch()
        time.sleep(1.2)  # rank 0 looks once a second
        return
    if target == "hang":
        time.sleep(60)
        return
    number = signal.Signals[name]
    if target == "twice":
        threading.Timer(1, os.kill, [os.getpid(), number]).start()
        os.kill(os.getpid(), number)
        time.sleep(30)
    os.kill(os.getpid() if target == "self" else os.getppid(), number)
    time.sleep(0.5)  # a launcher takes a moment to pass it on


def observe(step: int, ids: list[int]) -> None:
    file = Path(os.environ["OBSERVE"]) / f"rank-{RANK}.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps([step, ids]) + "\n")


def before(function, moment):
    """The function, with its moment before it."""

    def watched(*arguments, **options):
        disturb(moment)
        return function(*arguments, **options)

    return watched


train_step = TrainStep.__call__
steps_made = []  # by their numbers in the run


def watched_step(self, micro_batches, step):
    disturb(step)
    if "OBSERVE" in os.environ:
        observe(step, [int(each) for batch in micro_batches for each in batch.ids_B])
    train_step(self, micro_batches, step)
    steps_made.append(step)


TrainStep.__call__ = watched_step
distrib.training.epoch.predict_logits = before(distrib.training.epoch.predict_logits, "evaluation")
# The weights are there by then, and the manifest is not.
write_manifest = distrib.training.checkpoint._write_manifest


def watched_write(*arguments):
    disturb("write")
    if (Path(sys.argv[sys.argv.index("--run.folder") + 1]) / "former-best").exists():
        disturb("supersede")
    write_manifest(*arguments)


distrib.training.checkpoint._write_manifest = watched_write
write_results = distrib.training.loop.write_results


def watched_results(run, progress, *more):
    if (WHEN, progress.epoch) == ("results", 2):
        while 2 * run.plan.steps_per_epoch not in steps_made:
            time.sleep(0.01)
        disturb("results")
    write_results(run, progress, *more)


distrib.training.loop.write_results = watched_results
ImageReader.decode = before(ImageReader.decode, "read")
distrib.explaining.report.attempt = before(distrib.explaining.report.attempt, "report")
if RANK == "0" and "SELDOM" in os.environ:
    distrib.ranks.stopping.LOOK_EVERY = float(os.environ["SELDOM"])
if os.environ.get("BLIND") == RANK:
    RunFolder.events = lambda *_: []

if __name__ == "__main__":
    from distrib.train import main

    if "OBSERVE" in os.environ:
        atexit.register(Path(os.environ["OBSERVE"], f"left-{RANK}").touch)
    sys.exit(main())
