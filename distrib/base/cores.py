"""CPU cores: how many this process may use."""

import os
from pathlib import Path

from distrib.base.control_groups import control_groups


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
    """The whole cores that the control groups of this process may keep busy.

    Source: a quota and a period in microseconds, in `cpu.max` by the kernel's Documentation/admin-guide/cgroup-v2.rst,
    and in version 1 in two files by its Documentation/scheduler/sched-bwc.rst, -1 for none.
    """
    found = []
    groups: list[tuple[Path, tuple[str, ...]]] = [(folder, ("cpu.max",)) for folder in control_groups()]
    groups += [(folder, ("cpu.cfs_quota_us", "cpu.cfs_period_us")) for folder in control_groups("cpu")]
    for folder, names in groups:
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
        except (OSError, ValueError):
            continue  # the root has none
        if quota not in ("max", "-1"):
            found.append(int(quota) // int(period))
    return found
