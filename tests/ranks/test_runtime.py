"""The cores that a rank takes."""

from collections.abc import Iterator

import pytest
import torch

from distrib.ranks.machine import cores, use_all_cores


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread to begin with, as OMP_NUM_THREADS=1 makes it, and no launcher."""
    for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
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


def test_a_job_takes_its_share_of_a_node_where_slurm_binds_no_process_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert cores() == 2
    use_all_cores(local_ranks=2)
    assert torch.get_num_threads() == 1
