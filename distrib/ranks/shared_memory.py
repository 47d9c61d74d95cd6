"""Memory that the ranks of a machine share."""

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


def share_memory(accelerator: Accelerator, size: int) -> NDArray[np.uint8]:
    """So many bytes, uint8 [size], the same ones for all ranks of a machine; all ranks call this.

    They are reserved at once, so that none is wanting later. They are a file without a name (memfd), which the kernel
    frees together with the last process that has it, however that ends.

    Raises:
        UserError: on every rank, if a machine does not have them, or its ranks cannot hand them to each other.
    """
    in_machine = max(0, accelerator.local_process_index)
    descriptor = on_every_rank(accelerator, _reserve, size) if in_machine == 0 else on_every_rank(accelerator, int, -1)
    try:
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        paths = gather_object([path]) if accelerator.num_processes > 1 else [path]
        return on_every_rank(accelerator, _map, paths[accelerator.process_index - in_machine], size)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _reserve(size: int) -> int:
    """A file descriptor of so much memory.

    Raises:
        UserError: if this machine has none.
    """
    if not hasattr(os, "memfd_create"):
        raise UserError("ranks share memory on Linux alone")
    # Asked for more than there is, the kernel ends processes until there is.
    if size > (free := free_memory()):
        raise UserError(f"{data_size(size)} of memory cannot be reserved, as {data_size(free)} are free")
    descriptor = os.memfd_create(_NAME)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"{data_size(size)} of memory cannot be reserved ({error.strerror})") from None
    return descriptor


def _map(path: Path, size: int) -> NDArray[np.uint8]:
    """The memory behind another rank's file descriptor, or one's own.

    Raises:
        UserError: if it cannot be opened.
    """
    with suppress(OSError):
        if str(path.readlink()).startswith(f"/memfd:{_NAME}"):
            with path.open("r+b") as file:
                return np.frombuffer(mmap.mmap(file.fileno(), size), dtype=np.uint8)
    raise UserError(
        f"the ranks of this machine cannot share memory: {path} of another rank cannot be opened, as where each has a "
        "container of its own"
    )
