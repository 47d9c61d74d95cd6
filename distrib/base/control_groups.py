"""Control groups: what the kernel lets the processes of a container or a job have."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")


def control_groups(controller: str = "") -> Iterator[Path]:
    """The folders of this process's group and of those around it, where the kernel writes what they may have.

    In a container the path may be that of the host, so that a folder may be missing.

    Args:
        controller: one of version 1, such as "memory", each of which has groups of its own; "": those of version 2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    own = PurePosixPath(paths.get(controller, "/"))
    for group in (own, *own.parents):
        yield _CGROUPS / controller / str(group).lstrip("/")
