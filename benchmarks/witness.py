"""distrib/train.py with a witness: each rank writes what it trains on to $WITNESS/rank-R.jsonl.

A line a step, before the step is made: [step counted from 0 over the run, [ids of this rank], seconds since the epoch].
"""

import json
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from distrib.ranks.stopping import StopRequests

if __name__ == "__main__":
    REQUESTS = StopRequests()
    REQUESTS.listen()  # before the imports that take seconds, as distrib/train.py does

from distrib.train import main
from distrib.training.step import TrainStep

train_step = TrainStep.__call__


def witnessed(self, micro_batches, step):
    ids = [int(each) for batch in micro_batches for each in batch.ids_B]
    with Path(os.environ["WITNESS"], f"rank-{os.environ['RANK']}.jsonl").open("a") as lines:
        lines.write(json.dumps([step, ids, time.time()]) + "\n")
    train_step(self, micro_batches, step)


TrainStep.__call__ = witnessed

if __name__ == "__main__":
    sys.exit(main(requests=REQUESTS))
