"""What a launcher tells each rank through its environment."""

import os
import socket

import psutil

# In this variable the workers of a study find how many of them have a GPU in common.
TRIALS_ON_GPU = "DISTRIB_TRIALS_ON_GPU"


def rank() -> int:
    """This process's rank as its launcher says, before the ranks have met."""
    return int(os.environ.get("RANK", "0"))


def several_ranks() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def ranks_here() -> int:
    """How many ranks the launcher has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def trials_on_gpu() -> int:
    """How many trials of a study share this process's GPU, as `distrib sweep --workers-per-gpu` has told it."""
    return int(os.environ.get(TRIALS_ON_GPU, "1"))


def restarts() -> int:
    """How often the launcher has started the ranks again after one of them failed (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launcher() -> psutil.Process | None:
    """The process that has started this rank and starts it again after a failure; None where there is none."""
    return psutil.Process(os.getppid()) if "TORCHELASTIC_RUN_ID" in os.environ else None


def launch_id() -> str | None:
    """Names the launcher that started this rank, alike after each of its restarts; None where there is none."""
    by = launcher()
    return None if by is None else f"process {by.pid} of {by.create_time():.2f} on {socket.gethostname()}"
