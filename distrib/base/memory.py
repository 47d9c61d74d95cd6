"""Memory of this machine: how much of it is left, and what a process has taken."""

import os
import resource
import sys
from pathlib import Path

import psutil

from distrib.base.control_groups import control_groups

# Files of a control group's limit and of what it has taken, and what its statistics put before a count: in the kernel's
# Documentation/admin-guide, cgroup-v2.rst and cgroup-v1/memory.rst.
_V2 = ("memory.max", "memory.current", "")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def free_memory() -> int:
    """Bytes that processes may still take here: of the machine, of the control group, and of the Slurm job.

    Files that the kernel merely caches do not count as taken.
    """
    groups = [(folder, _V2) for folder in control_groups()] + [(folder, _V1) for folder in control_groups("memory")]
    left = [_left_in_group(folder, *names) for folder, names in groups]
    available = psutil.virtual_memory().available
    return max(0, min([available, *(size for size in left if size is not None), *_of_job()]))


def peak_memory() -> int:
    """The most bytes of memory that this process has had so far."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        # On Linux this begins with what the parent had, and is in kilobytes; on macOS in bytes.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _left_in_group(folder: Path, limit: str, taken: str, prefix: str) -> int | None:
    """What a control group may still take; None: it has no limit."""
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return None
        current = int((folder / taken).read_text(encoding="ascii"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None  # the root has none
    cached = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
    return int(most) - current + cached


def _of_job() -> list[int]:
    """What a Slurm job was given on this node, where it is no control group that holds it to that."""
    per_node, per_core, cores = (
        int(value) if (value := os.environ.get(name, "")).isdecimal() else 0
        for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")
    )
    return [megabytes * 2**20 for megabytes in (per_node, per_core * cores) if megabytes > 0]
