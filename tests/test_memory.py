"""A machine, or a job, whose memory is used up: the kernel kills a rank, and that is what is said."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from launching import ROOT, clean_environment
from small_run import settings
from test_sweep import command, trials, write_study

pytestmark = pytest.mark.slow
# What a training takes more while it runs.
LIMIT = 2 * 2**20


@pytest.fixture(name="starve")
def a_group_without_memory() -> Iterator[Callable[[int], None]]:
    """Puts a process where there is no more memory: into a control group, of version 1 or 2."""
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent, limit = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = parent / f"distrib-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"needs a control group with a limit of memory, and {parent} gives none: {error.strerror}")

    def starve(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))

    yield starve
    group.rmdir()


def started(command: list[str], ready: Path) -> subprocess.Popen[str]:
    """A process, once the run that it starts has come to a checkpoint."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    until = time.monotonic() + 200
    while not (ready / "checkpoints").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    return process


def ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes below it that train."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [each for each in below if "train" in " ".join(each.cmdline()) and "launch" not in each.name()]


def test_a_rank_that_the_kernel_kills_has_run_out_of_memory(
    starve: Callable[[int], None], faces: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = map(str, settings(faces, run, "--train.epochs", 40, "--run.ranks", 2, "--tracking.mode", "disabled"))
    process = started([sys.executable, "-m", "distrib", "train", *options], run)
    starve(ranks(process)[-1].pid)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 3, output
    assert "was killed by the kernel, for want of memory" in output


def test_a_trial_that_the_kernel_kills_has_run_out_of_memory(
    starve: Callable[[int], None], faces: Path, tmp_path: Path
) -> None:
    file = write_study(tmp_path, faces, space={"optim.lr": [1e-3]}, set={"train.epochs": 40})
    process = started(command(file), tmp_path / "study/trials/little-0000")
    [trainer] = ranks(process)
    starve(trainer.pid)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    [only] = trials(tmp_path)
    assert only["state"] == "out of memory", only["reason"]
