"""CPU cores: how many this process may use."""

import os
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores that this process may use: by its affinity, its control group's quota, and its Slurm job.

    A Slurm that binds no process to its job's cores only says how many they are.
    """
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    job = os.environ.get("SLURM_CPUS_ON_NODE", "")
    limits = [mine, *_quotas(), *([int(job)] if job.isdecimal() and int(job) > 0 else [])]
    return max(1, min(limits))


def cores_of_rank() -> int:
    """This rank's equal share of them, by what the launcher says of the ranks on this machine."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _quotas() -> list[int]:
    """The whole cores that the control group of this process and those around it may keep busy (version 2).

    Source: `cpu.max` in the kernel's Documentation/admin-guide/cgroup-v2.rst, a quota and a period in microseconds.
    """
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    for group in (PurePosixPath(own), *PurePosixPath(own).parents):
        try:
            quota, period = (_CGROUPS / str(group).lstrip("/") / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue  # the root has none, and in a container the path may be that of the host
        if quota != "max":
            found.append(int(quota) // int(period))
    return found
