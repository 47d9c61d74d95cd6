"""Memory that the ranks of a machine share."""

import fcntl
import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.memory import free_memory
from distrib.base.words import data_size
from distrib.ranks.meeting import on_every_rank

_NAME = "distrib-images"
# Locked while memory is looked at and reserved: a folder that is a machine's own, and that everybody may open.
_LOCKED = "/dev/shm"


def share_memory(accelerator: Accelerator, size: int, share: float) -> NDArray[np.uint8]:
    """So many bytes, uint8 [size], the same ones for all ranks of a machine; all ranks call this.

    They are reserved at once, so that none is wanting later. They are a file without a name (memfd), which the kernel
    frees together with the last process that has it, however that ends.

    Args:
        accelerator: of this rank.
        size: bytes.
        share: of the memory that is free, at the most.

    Raises:
        UserError: on every rank, if a machine does not have them, or its ranks cannot hand them to each other.
    """
    in_machine = accelerator.local_process_index
    reserved: list[int] = []
    try:
        offer = on_every_rank(accelerator, _reserve, size if in_machine == 0 else 0, share, reserved)
        offers = gather_object([offer]) if accelerator.num_processes > 1 else [offer]
        path, inode = offers[accelerator.process_index - in_machine]
        return on_every_rank(accelerator, _map, path, inode, size)
    finally:
        for descriptor in reserved:
            os.close(descriptor)


def _reserve(size: int, share: float, reserved: list[int]) -> tuple[Path, int]:
    """Reserve so much memory, add its file descriptor to those that are, and say where it is found, and its inode.

    Raises:
        UserError: if this machine has not so much of it.
    """
    if not size:  # another rank of this machine does it
        return Path(), 0
    if not hasattr(os, "memfd_create"):
        raise UserError("memory is shared on Linux alone")
    try:
        descriptor = os.memfd_create(_NAME)
        reserved.append(descriptor)
        lock = os.open(_LOCKED, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several trainings that start together, each sees what is left for it
            free = free_memory()
            # Asked for more than there is, the kernel does not refuse: it ends processes.
            if size > share * free:
                raise UserError(exceeds(size, share, free, "in this machine's memory"))
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(lock)
    except OSError as error:
        raise UserError(f"{data_size(size)} of memory cannot be reserved ({error.strerror})") from None
    return Path(f"/proc/{os.getpid()}/fd/{descriptor}"), os.fstat(descriptor).st_ino


def exceeds(size: int, share: float, free: int, where: str) -> str:
    """That something takes more than a share of what is free."""
    return f"{data_size(size)} is more than {share:.0%} of the {data_size(free)} that is free {where}"


def _map(path: Path, inode: int, size: int) -> NDArray[np.uint8]:
    """The memory behind another rank's file descriptor, or one's own.

    Raises:
        UserError: if it cannot be opened, or is not the one that was meant.
    """
    with suppress(OSError), path.open("r+b") as file:
        status = os.fstat(file.fileno())
        if (status.st_ino, status.st_size) == (inode, size):
            return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8)
    raise UserError(
        f"the ranks of this machine cannot share memory: {path} of another rank cannot be opened, as where each has a "
        "container of its own"
    )
