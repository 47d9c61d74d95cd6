"""distrib/train.py with a witness: each rank writes down the ids it trains on, and may die before a given step.

OBSERVE=FOLDER   write FOLDER/rank-R.jsonl, a line a step: [step, [ids …]]; and FOLDER/left-R when the rank leaves
DIE_AT=STEP      SIGKILL before this step, counted from 0 over the run
"""

import atexit
import json
import os
import signal
import sys
from pathlib import Path

from distrib.training.step import TrainStep

train_step = TrainStep.__call__


def watched(self, micro_batches, step):
    if os.environ.get("DIE_AT") == str(step):
        os.kill(os.getpid(), signal.SIGKILL)
    if "OBSERVE" in os.environ:
        ids = [int(each) for batch in micro_batches for each in batch.ids_B]
        file = Path(os.environ["OBSERVE"]) / f"rank-{os.environ.get('RANK', '0')}.jsonl"
        with file.open("a") as lines:
            lines.write(json.dumps([step, ids]) + "\n")
    train_step(self, micro_batches, step)


TrainStep.__call__ = watched

if __name__ == "__main__":
    from distrib.train import main

    if "OBSERVE" in os.environ:
        atexit.register(Path(os.environ["OBSERVE"], f"left-{os.environ.get('RANK', '0')}").touch)
    sys.exit(main())
