"""Whether the kernel ends processes because there is no memory left."""

from pathlib import Path

VMSTAT = Path("/proc/vmstat")


def kernel_kills() -> int:
    """How many processes the kernel of this machine has killed for want of memory since it was started.

    Kills within a container's or a job's own limit count too. 0 where the kernel does not tell (it does from Linux
    4.13 on).
    """
    try:
        lines = VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
