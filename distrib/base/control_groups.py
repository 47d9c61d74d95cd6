"""Control groups (version 2): what the kernel lets the processes of a container or a job have."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")


def control_groups() -> Iterator[Path]:
    """The folders of this process's group and of those around it, where the kernel writes what they may have.

    In a container the path may be that of the host, so that a folder may be missing.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    for group in (PurePosixPath(own), *PurePosixPath(own).parents):
        yield _CGROUPS / str(group).lstrip("/")
