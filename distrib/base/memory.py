"""Memory of this machine: how much of it is left."""

import os

import psutil

from distrib.base.control_groups import control_groups


def free_memory() -> int:
    """Bytes that processes may still take here: of the machine, of the control group, and of the Slurm job.

    Files that the kernel merely caches do not count as taken.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(), *_left_in_job()]))


def _left_in_groups() -> list[int]:
    """What the control groups of this process may still take.

    Source: `memory.max`, `memory.current` and `memory.stat` in the kernel's Documentation/admin-guide/cgroup-v2.rst.
    """
    left = []
    for group in control_groups():
        try:
            limit = (group / "memory.max").read_text(encoding="ascii").strip()
            if limit == "max":
                continue
            current = int((group / "memory.current").read_text(encoding="ascii"))
            statistics = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue  # the root has none
        counts = dict(line.split() for line in statistics)
        cached = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        left.append(int(limit) - current + cached)
    return left


def _left_in_job() -> list[int]:
    """What a Slurm job was given on this node, where it is no control group that holds it to that."""
    megabytes = os.environ.get("SLURM_MEM_PER_NODE", "")
    return [int(megabytes) * 2**20] if megabytes.isdecimal() and int(megabytes) > 0 else []
