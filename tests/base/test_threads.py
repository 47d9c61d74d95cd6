"""Threads that work ahead of the one that trains."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch

from distrib.base.threads import pool_for_torch


def test_a_thread_of_the_pool_computes_alone_and_others_as_before() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = Barrier(4)

        def ask(_: int) -> int:
            together.wait()
            return torch.get_num_threads()

        with pool_for_torch(4, "test") as pool:
            assert list(pool.map(ask, range(4))) == [1] * 4
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)
