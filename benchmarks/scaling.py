"""One rank of two threads against two ranks of one thread, and what the model of docs/scaling.md needs of this machine.

    python benchmarks/scaling.py --root data/celeba --json benchmarks/results/scaling.json

Of CPUs, over gloo on the loopback interface; of GPUs `distrib check --gpu` measures the all-reduce, and
`benchmarks/step.py` the step. In one run, each kind taking turns:
    train       steps of the program's own, fed from the image files, float32 unless --precision says otherwise:
                one_of_two   one rank of two threads
                two_of_one   two ranks of one thread each, in DDP, on the same global batches
                apart        two trainings of one thread each at the same time, on half as many images: what each of
                             those two ranks computes, without communication
    all_reduce  the gradients of ResNet18 in DDP's buckets, and a validation's logits, with nothing else to do; on 2 and
                4 ranks
    decode      the loader on one thread
What the model (benchmarks/scaling_model.py) says of two ranks and of four stands beside what was measured.
"""

import argparse
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import alternate, machine, report, spread
from scaling_model import GRADIENTS, VALID, Link, Machine, ring_seconds, step_seconds
from torchvision.models import resnet18

from distrib.config import Config
from distrib.data.batch import Request
from distrib.data.decoders import make_decoder
from distrib.data.plan import Plan
from distrib.data.splits import make_splits
from distrib.data.table import read_table
from distrib.model.weights import make_model
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import Tracker
from distrib.training.checkpoint import Progress
from distrib.training.grouping import group_batch
from distrib.training.state import TrainState
from distrib.training.training_run import TrainingRun

ATTRIBUTES = 40
# Of torch's DDP: the first bucket, of the last layers, and all others; bytes.
BUCKETS = [2**20, 25 * 2**20]
# All-reduces in a row, of which the mean is taken.
REPEATS = 5
# Batches that the loader decodes in a round.
DECODED = 20

# What a rank does when it is told to.
Work = Callable[..., None]


class Ranks:
    """Processes that are made once, and then do as they are told, all at the same time; a context closes them.

    Args:
        ranks: how many processes.
        threads: of torch in each.
        make: in each process makes what it does.
        arguments: of `make`.
    """

    def __init__(self, ranks: int, threads: int, make: Callable[..., Work], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        launched = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        self._pipes: list[Connection] = []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            # Inherited, as OpenMP reads it when the process imports torch, and so before it is told anything.
            with patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
                for name, value in {**launched, "RANK": rank, "LOCAL_RANK": rank}.items():
                    os.environ.pop(name, None)
                    if ranks > 1:  # a single one that seemed to be launched would be given DDP as well
                        os.environ[name] = str(value)
                context.Process(target=_serve, args=(theirs, threads, make, arguments), daemon=True).start()
            theirs.close()
            self._pipes.append(mine)
        for pipe in self._pipes:
            pipe.recv()  # it is ready

    def begin(self, *order: Any) -> None:
        """Have each rank begin to do what it is told."""
        for pipe in self._pipes:
            pipe.send(order)

    def wait(self) -> None:
        """Wait until each is done; EOFError where one has failed, which has said why."""
        for pipe in self._pipes:
            pipe.recv()

    def close(self) -> None:
        """Let them end; one that has failed already has."""
        for pipe in self._pipes:
            with suppress(BrokenPipeError):
                pipe.send(None)


def _serve(pipe: Connection, threads: int, make: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    work = make(*arguments)
    torch.set_num_threads(threads)
    pipe.send(None)
    while (order := pipe.recv()) is not None:
        work(*order)
        pipe.send(None)


def tell(groups: Sequence[Ranks], *order: Any) -> Callable[[], None]:
    """A peer of the benchmark: groups that are told something at the same time, and waited for."""

    def run() -> None:
        for group in groups:
            group.begin(*order)
        for group in groups:
            group.wait()

    return run


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trainer(config: Config) -> Work:
    """A rank of a training; told a number of steps, it makes them."""
    accelerator = start_ranks(config)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    table = read_table(config.data.root)
    splits = make_splits(table, config.data, needs=("train",))
    run = TrainingRun(config, accelerator, table, splits, RunFolder(Path(tempfile.gettempdir())), Tracker())
    net, _ = make_model(config.model, table.attributes, config.train.channels_last, config.train.seed)
    grouping = group_batch(config, ranks, None)
    agreement = Agreement(StopRequests(), accelerator)
    state = TrainState(run, net, grouping, agreement, None)
    state.enter_epoch(Progress())
    batches = run.make_decoder(grouping.micro_batch).batches(endless(run.plan, rank, ranks))

    def work(steps: int) -> None:
        for _ in range(steps):
            state.step([next(batches)])
            agreement.answer()
        state.wait()

    return work


def endless(plan: Plan, rank: int, ranks: int) -> Iterator[Request]:
    epoch = 0
    while True:
        yield from plan.rank_batches(epoch, 0, rank, ranks)
        epoch += 1


def reducer() -> Work:
    """A rank that computes nothing; told so, it shares tensors of some numbers of float32 values."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=1))

    def work(sizes: list[int]) -> None:
        tensors = [torch.zeros(size) for size in sizes]
        for _ in range(REPEATS):
            for begun in [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                begun.wait()

    return work


def buckets() -> list[int]:
    """How many gradients are in each of DDP's buckets, by the rule by which it fills them."""
    parameters = list(resnet18(num_classes=ATTRIBUTES).parameters())[::-1]
    assigned, _ = torch.distributed._compute_bucket_assignment_by_size(parameters, BUCKETS)
    return [sum(parameters[index].numel() for index in bucket) for bucket in assigned]


def loader(config: Config) -> Work:
    """Told a number of batches, it decodes them."""
    table = read_table(config.data.root)
    plan = Plan(make_splits(table, config.data, needs=("train",)).train, 0, config.train.batch_size)
    decoder = make_decoder(config.data, table, torch.device("cpu"), config.train.batch_size)

    def work(batches: int) -> None:
        source = (plan.batch(0, number % plan.steps_per_epoch) for number in range(batches))
        for _ in decoder.batches(source):
            pass

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data set, as data.root")
    parser.add_argument("--batch-size", type=int, default=64, help="of all ranks together")
    parser.add_argument("--image-size", type=int, nargs=2, default=(112, 112))
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    def config(threads: int, batch_size: int) -> Config:
        asked = Config().replace("train", batch_size=batch_size, precision=options.precision, epochs=1000)
        asked = asked.replace("data", root=options.root, image_size=options.image_size, attributes="all")
        return resolve(asked.replace("data", threads=threads, decoder="torch").replace("run", device="cpu"))

    batch, gradients = options.batch_size, buckets()
    with ExitStack() as stack:

        def start(ranks: int, threads: int, make: Callable[..., Work], *arguments: Any) -> Ranks:
            return stack.enter_context(closing(Ranks(ranks, threads, make, *arguments)))

        training = {
            "one_of_two": [start(1, 2, trainer, config(2, batch))],
            "two_of_one": [start(2, 1, trainer, config(1, batch))],
            "apart": [start(1, 1, trainer, config(1, batch // 2)) for _ in range(2)],
        }
        rounds = alternate({name: tell(groups, options.steps) for name, groups in training.items()}, options.rounds)
        step = {name: [seconds / options.steps for seconds in values] for name, values in rounds.items()}

        sharing = {ranks: start(ranks, 1, reducer) for ranks in (2, 4)}
        tensors = {"gradients": gradients, "logits": [VALID * (ATTRIBUTES + 1)]}
        rounds = alternate(
            {
                f"{name}, {ranks}": tell([group], sizes)
                for name, sizes in tensors.items()
                for ranks, group in sharing.items()
            },
            options.rounds,
        )
        shared = {name: [seconds / REPEATS for seconds in values] for name, values in rounds.items()}

        one_core = start(1, 1, loader, config(1, batch))
        decoding = alternate({"decode": tell([one_core], DECODED)}, options.rounds)["decode"]

    ratios = {
        f"two_of_one / {other}": spread([b / a for a, b in zip(step["two_of_one"], step[other], strict=True)])
        for other in ("one_of_two", "apart")
    }
    decoded = spread([DECODED * batch / seconds for seconds in decoding])
    medians = {name: spread(values)["median"] for name, values in (step | shared).items()}
    report(
        {
            "machine": machine("torch", "accelerate", "simplejpeg"),
            "setting": {
                "batch_size": batch,
                "image_size": list(options.image_size),
                "precision": options.precision,
                "steps_per_round": options.steps,
                "bucket_bytes": [4 * size for size in gradients],
            },
            "images_per_second": {
                name: spread([batch / seconds for seconds in values]) for name, values in step.items()
            },
            "speed_ratios": ratios,
            "step_seconds": {name: spread(values) for name, values in step.items()},
            "all_reduce_seconds": {name: spread(values) for name, values in shared.items()},
            "decoded_per_second": decoded,
            "model": model_against_measured(batch // 2, medians, decoded["median"]),
        },
        options.json,
    )


def model_against_measured(share: int, seconds: dict[str, float], decoded: float) -> dict[str, dict[str, float]]:
    """What the model says of two ranks that train, and of four that only communicate; and what was seen.

    Two ranks compute as one of two threads does on twice as many images, or as two trainings apart. Ranks on one
    machine share its memory, through which R times the bytes of one rank's link go.

    Args:
        share: images of each of two ranks.
        seconds: medians, by their names in the report.
        decoded: images/s of one core.
    """
    link = Link("loopback", GRADIENTS / seconds["gradients, 2"], 0.0)
    steps = {}
    for name in ("one_of_two", "apart"):
        machine = Machine(share / seconds[name], launch=0.0, decoded_per_second=decoded, hidden=0.0)
        steps[f"predicted from {name}"] = step_seconds(2, share, machine, link)
    ring = ring_seconds(4, link)
    return {
        "step of 2 ranks": steps | {"measured": seconds["two_of_one"]},
        "all-reduce of 4 ranks": {
            "predicted, a link each": ring,
            "predicted, memory shared": 4 / 2 * ring,
            "measured": seconds["gradients, 4"],
        },
    }


if __name__ == "__main__":
    main()
