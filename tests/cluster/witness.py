"""distrib/train.py with a witness: each rank writes down where it trains and with how many others, a line a step.

WITNESS=FOLDER      write FOLDER/rank-R: the host's name, and what 1 of each rank adds up to
PAUSE=SECONDS       before each step of a job's first start, so that there is time to disturb it
CRASH=yes           the last rank kills itself (SIGKILL) before its fifth step, once in the folder of WITNESS
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from distrib.training.step import TrainStep

train_step = TrainStep.__call__
steps = 0


def watched(self, *arguments, **named):
    global steps
    steps += 1
    if "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(float(os.environ.get("PAUSE", "0")))
    if "WITNESS" in os.environ:
        ones = torch.ones(())
        torch.distributed.all_reduce(ones)
        with Path(os.environ["WITNESS"], f"rank-{os.environ['RANK']}").open("a") as lines:
            lines.write(f"{socket.gethostname()} {ones:.0f}\n")
    if "CRASH" in os.environ and steps == 5 and int(os.environ["RANK"]) + 1 == int(os.environ["WORLD_SIZE"]):
        crashed = Path(os.environ["WITNESS"], "crashed")
        if not crashed.exists():
            crashed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, *arguments, **named)


TrainStep.__call__ = watched

if __name__ == "__main__":
    from distrib.train import main

    sys.exit(main())
