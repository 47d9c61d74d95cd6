"""Memory that ranks share: the same bytes, and nothing that outlives them."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from accelerate import Accelerator
from forked_ranks import on_ranks

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.shared_memory import share_memory

SIZE = 3 * 2**20 + 5


def met() -> Accelerator:
    return start_ranks(resolve(Config().replace("run", device="cpu").replace("train", precision="no")))


def write_own_half() -> tuple[int, str]:
    """What the shared bytes add up to once each of two ranks has written to them, and what memory they are in."""
    accelerator = met()
    shared = share_memory(accelerator, SIZE)
    assert shared.shape == (SIZE,)
    shared[accelerator.process_index :: 2] = 1 + accelerator.process_index
    accelerator.wait_for_everyone()
    maps = Path("/proc/self/maps").read_text()
    (line,) = re.findall(r".*/memfd:distrib-images.*", maps)
    total = int(shared.sum())
    accelerator.wait_for_everyone()
    return total, line.split()[3] + line.split()[4]


def test_two_ranks_see_the_same_bytes() -> None:
    (one, its_memory), (other, others_memory) = on_ranks(2, write_own_half)
    assert one == other == SIZE + SIZE // 2
    assert its_memory == others_memory  # device and inode


def wait_for_the_end(ready: str) -> None:
    accelerator = met()
    shared = share_memory(accelerator, SIZE)
    shared[:] = 1
    accelerator.wait_for_everyone()
    Path(f"{ready}{accelerator.process_index}").write_text(str(os.getpid()))
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
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert failure  # neither has come to its end
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    left = [maps for maps in Path("/proc").glob("[0-9]*/maps") if "memfd:distrib-images" in _read(maps)]
    assert not left


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def test_more_than_there_is_is_refused_at_once() -> None:
    accelerator = met()
    with pytest.raises(UserError, match=r"GB of memory cannot be reserved, as .* are free"):
        share_memory(accelerator, 2**62)
    assert np.array_equal(share_memory(accelerator, 7), np.zeros(7))
