"""The cores that a rank takes, and the memory that is left for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distrib.base import control_groups
from distrib.base.cores import cores, cores_of_rank
from distrib.base.memory import free_memory
from distrib.config import DataConfig
from distrib.data.decoders import threads_of
from distrib.ranks.machine import use_all_cores


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One thread to begin with, as OMP_NUM_THREADS=1 makes it, and no launcher."""
    for name in (
        "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "SLURM_CPUS_ON_NODE", "SLURM_MEM_PER_NODE",
        "SLURM_MEM_PER_CPU",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(control_groups, "_CGROUPS", tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_one_thread_of_a_launcher_is_no_wish_and_a_persons_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use_all_cores(local_ranks=2)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    use_all_cores(local_ranks=2)
    assert torch.get_num_threads() == 4
    torch.set_num_threads(1)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.delenv("OMP_NUM_THREADS")  # which the Makefile sets for the tests
    use_all_cores(local_ranks=2)
    assert torch.get_num_threads() == 4


def test_a_job_takes_its_share_of_a_node_where_slurm_binds_no_process_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert cores() == 2
    use_all_cores(local_ranks=2)
    assert torch.get_num_threads() == 1


def test_a_container_has_the_cores_of_its_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores() == 8
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    assert cores() == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cores() == 1


def test_so_has_one_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cores() == 8
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("250000\n")
    assert cores() == 2


def test_a_container_has_the_memory_of_its_limit_that_is_not_taken(tmp_path: Path) -> None:
    assert free_memory() > 10**8  # this machine's
    (tmp_path / "memory.current").write_text("70000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000000\nactive_file 1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**8
    (tmp_path / "memory.max").write_text("90000000\n")
    assert free_memory() == 26_000_000  # files that are merely cached do not count
    (tmp_path / "memory.max").write_text("60000000\n")
    assert free_memory() == 0


def test_so_has_its_memory_in_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("90000000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("70000000\n")
    (tmp_path / "memory/memory.stat").write_text("total_active_file 6\n")
    assert free_memory() == 20_000_006


def test_a_slurm_job_has_the_memory_that_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert free_memory() == 100 * 2**20
    monkeypatch.delenv("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "30")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert free_memory() == 60 * 2**20


def test_the_ranks_of_a_machine_share_its_cores_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(DataConfig()) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert cores_of_rank() == threads_of(DataConfig()) == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(96)))
    assert threads_of(DataConfig()) == 16
    assert threads_of(DataConfig(threads=30)) == 30
