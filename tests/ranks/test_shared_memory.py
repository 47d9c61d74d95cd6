"""Memory that ranks share: the same bytes, and nothing that outlives them."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from forked_ranks import on_ranks

from distrib.base.errors import UserError
from distrib.base.memory import free_memory
from distrib.config import Config
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.shared_memory import share_memory

SIZE = 3 * 2**20 + 5


def met() -> Accelerator:
    return start_ranks(resolve(Config().replace("run", device="cpu").replace("train", precision="no")))


def memory_of_images() -> str:
    """The device and the inode of the memory that this process shares."""
    (line,) = re.findall(r".*/memfd:distrib-images.*", Path("/proc/self/maps").read_text())
    return " ".join(line.split()[3:5])


def write_own_half() -> tuple[int, str]:
    """What the shared bytes add up to once each of two ranks has written to them, and what memory they are in."""
    accelerator = met()
    shared = share_memory(accelerator, SIZE, 0.5)
    assert shared.shape == (SIZE,)
    shared[accelerator.process_index :: 2] = 1 + accelerator.process_index
    accelerator.wait_for_everyone()
    total = int(shared.sum())
    accelerator.wait_for_everyone()
    return total, memory_of_images()


def test_two_ranks_see_the_same_bytes() -> None:
    (one, its_memory), (other, others_memory) = on_ranks(2, write_own_half)
    assert one == other == SIZE + SIZE // 2
    assert its_memory == others_memory  # device and inode


def wait_for_the_end(ready: str) -> None:
    accelerator = met()
    shared = share_memory(accelerator, SIZE, 0.5)
    shared[:] = 1
    accelerator.wait_for_everyone()
    Path(f"{ready}{accelerator.process_index}").write_text(f"{os.getpid()} {memory_of_images()}\n")
    time.sleep(100)


def test_nothing_outlives_ranks_that_are_killed(tmp_path: Path) -> None:
    failure: list[BaseException] = []

    def start() -> None:
        try:
            on_ranks(2, wait_for_the_end, str(tmp_path / "rank-"))
        except (AssertionError, EOFError) as error:
            failure.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    files = [tmp_path / "rank-0", tmp_path / "rank-1"]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text().endswith("\n") for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    (pids, memory) = zip(*(file.read_text().strip().split(" ", 1) for file in files), strict=True)
    assert memory[0] == memory[1]
    assert [pid for pid in pids if memory[0] in mapped(pid)] == list(pids)
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    thread.join(60)
    assert failure  # neither has come to its end
    deadline = time.monotonic() + 30
    while any(memory[0] in mapped(folder.name) for folder in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "somebody still has the memory"
        time.sleep(0.05)


def mapped(pid: str) -> set[str]:
    """The devices and inodes of the shared memory that a process has."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {" ".join(line.split()[3:5]) for line in lines if "/memfd:distrib-images" in line}


def test_more_than_there_is_is_refused_at_once() -> None:
    accelerator = met()
    for size, share in ((2**62, 0.5), (free_memory() // 2, 0.4)):
        with pytest.raises(UserError, match=rf"is more than {share:.0%} of the .* GB that is free in this machine"):
            share_memory(accelerator, size, share)
    assert not [each for each in Path("/proc/self/fd").iterdir() if "memfd:distrib" in target(each)]
    assert np.array_equal(share_memory(accelerator, 7, 0.5), np.zeros(7))


def target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
