"""A check of several ranks: that they stay one model, and how fast they share gradients."""

import hashlib
import os
import socket
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from distrib.checking.check import Bench, LeftOut, Passed, expect
from distrib.checking.stepping import batch, training

STEPS = 20
# Values of float32: as many as ResNet18 has gradients.
GRADIENTS = 11_200_000
ROUNDS = 10


def agreement(bench: Bench) -> Passed:
    """After 20 steps on images of their own all ranks have the same weights, statistics and moments, to the bit."""
    ranks = torch.cuda.device_count() if bench.on_gpu else 2
    if ranks < 2:
        raise LeftOut("there is one GPU")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        answers = [pool.submit(share_steps, bench, rank, ranks, port) for rank in range(ranks)]
        states, seconds = zip(*(answer.result() for answer in answers), strict=True)
    # What each rank sends and receives in a ring: 2 (N - 1) / N of the values.
    moved = 2 * (ranks - 1) / ranks * 4 * GRADIENTS
    figures = {"ranks": ranks, "all_reduce_seconds": max(seconds), "bytes_per_second": moved / max(seconds)}
    expect(len(set(states)) == 1, f"{ranks} ranks have different weights after {STEPS} steps", figures)
    return Passed(
        f"{ranks} ranks are one model after {STEPS} steps; {4 * GRADIENTS / 1e6:.0f} MB of gradients take "
        f"{1e3 * max(seconds):.1f} ms to share ({figures['bytes_per_second'] / 1e9:.1f} GB/s of bus bandwidth)",
        figures,
    )


def share_steps(bench: Bench, rank: int, ranks: int, port: int) -> tuple[str, float]:
    """What a rank, in a process of its own, ends with: a digest of its state, and the seconds of an all-reduce."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.filterwarnings("ignore", message="OMP_NUM_THREADS", category=UserWarning)  # the cores are shared out
    with training(bench) as small:
        for number in range(STEPS):
            small.step([batch(bench, seed=number * ranks + rank)], number)
        digest = hashlib.sha256()
        for name, tensor in small.state().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        gradients = torch.zeros(GRADIENTS, device=bench.device)
        torch.distributed.all_reduce(gradients)
        bench.synchronise()
        began = time.perf_counter()
        for _ in range(ROUNDS):
            torch.distributed.all_reduce(gradients)
        bench.synchronise()
        seconds = (time.perf_counter() - began) / ROUNDS
        small.accelerator.end_training()
    return digest.hexdigest(), seconds
