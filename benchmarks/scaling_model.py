"""How long a step and an epoch of CelebA take on so many ranks: the model of docs/scaling.md, as its tables.

    python benchmarks/scaling_model.py
    python benchmarks/scaling_model.py --launch 0.002 --bandwidth 2.5e9 --images-per-second 9000

It computes and measures nothing. Every default is an estimate of one H200, or of what joins several, and none was
measured; measured figures of a machine of one's own take their places as options.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

TRAIN, VALID = 162_770, 19_867
# Bytes of float32: ResNet18 with 40 attributes; the last of DDP's buckets, which waits for the end of the backward pass;
# 40 logits and a count of each validation image.
GRADIENTS, LAST_BUCKET, LOGITS = 44.8e6, 8.8e6, 4 * 41 * VALID
BUCKETS = 3
IMAGE = 7.5e3  # bytes of a JPEG, on the mean
# Of a step's computing, the backward pass, which hides the all-reduce of what it has come past.
BACKWARD = 2 / 3


@dataclass(frozen=True)
class Machine:
    """What a rank has, and what joins it to the others.

    Attributes:
        images_per_second: that a rank's device trains on, where it has enough of them.
        launch: seconds that the host needs to launch a step, however few its images are.
        decoded_per_second: images that a rank's decoder delivers: of one core times the rank's cores on a CPU.
        storage: bytes/s of JPEGs that reach a rank.
        bandwidth: bytes/s, in one direction, of the slowest link in the ring of all ranks.
        latency: seconds of one hop of that ring.
        end: seconds of an epoch that no rank shortens: scores on rank 0, a copy of the state, the next epoch's start.
    """

    images_per_second: float = 15_000
    launch: float = 8e-3
    decoded_per_second: float = 25_000
    storage: float = 1e9
    bandwidth: float = 200e9
    latency: float = 3e-6
    end: float = 0.15


# What joins ranks, by how many may be joined by it.
NVLINK = {"bandwidth": 200e9, "latency": 3e-6}
INFINIBAND = {"bandwidth": 40e9, "latency": 5e-6}
ETHERNET = {"bandwidth": 2.5e9, "latency": 20e-6}


def ring_seconds(ranks: int, bandwidth: float, latency: float, size: float = GRADIENTS, parts: int = 1) -> float:
    """An all-reduce in a ring: 2 (R - 1) hops, each with an R-th of the bytes.

    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations (2009).

    Args:
        ranks: R.
        bandwidth: bytes/s of a link.
        latency: seconds of a hop.
        size: bytes of all parts.
        parts: that are reduced one after another.
    """
    return 2 * (ranks - 1) * (size / ranks / bandwidth + parts * latency)


def step_seconds(ranks: int, share: float, machine: Machine) -> float:
    """A step of so many ranks: the slowest of computing with what is exposed of the all-reduce, decoding, and storage.

    Args:
        ranks: R.
        share: images of each rank.
        machine: of every rank.
    """
    bandwidth, latency = machine.bandwidth, machine.latency
    computing = max(share / machine.images_per_second, machine.launch)
    hidden = BACKWARD * computing
    reducing = ring_seconds(ranks, bandwidth, latency, parts=BUCKETS)
    last = ring_seconds(ranks, bandwidth, latency, LAST_BUCKET)
    # The loss, the ranks' wishes and BatchNorm's statistics, 40 kB, follow in one more.
    statistics = ring_seconds(ranks, bandwidth, latency, 40e3)
    exposed = max(reducing - hidden, last) + statistics
    return max(computing + exposed, share / machine.decoded_per_second, share * IMAGE / machine.storage)


def epoch_seconds(ranks: int, share: float, machine: Machine) -> tuple[float, float]:
    """The steps of an epoch of CelebA, and its end: validation, gathering the logits, and what rank 0 does alone."""
    steps = math.floor(TRAIN / (share * ranks)) * step_seconds(ranks, share, machine)
    # A forward pass alone is a third of a training's work.
    forward = min(machine.images_per_second / (1 - BACKWARD), machine.decoded_per_second)
    gathering = ring_seconds(ranks, machine.bandwidth, machine.latency, LOGITS)
    return steps, VALID / ranks / forward + gathering + machine.end


def table(rows: Iterable[tuple[str, int, int, Machine]]) -> str:
    """Markdown: what joins the ranks, their number, and the global batch, against one rank's images/s at 256."""
    lines = ["| joined by | ranks | global batch | step, ms | images/s | of R times one | epoch, s | of that its end |"]
    lines.append("|" + "---|" * 8)
    for joined, ranks, batch, machine in rows:
        share = batch / ranks
        step = step_seconds(ranks, share, machine)
        alone = 256 / step_seconds(1, 256, machine)
        steps, end = epoch_seconds(ranks, share, machine)
        lines.append(
            f"| {joined} | {ranks} | {batch:,} | {1e3 * step:.1f} | {batch / step:,.0f} | "
            f"{batch / step / ranks / alone:.0%} | {steps + end:.1f} | {end / (steps + end):.0%} |"
        )
    return "\n".join(lines)


def cases(machine: Machine) -> Iterable[tuple[str, int, Machine]]:
    """One node of up to eight GPUs on NVLink, and two and eight such nodes, joined in two ways."""
    yield "-", 1, machine
    for ranks in (2, 4, 8):
        yield "NVLink", ranks, replace(machine, **NVLINK)
    for ranks in (16, 64):
        yield "400 Gb/s InfiniBand", ranks, replace(machine, **INFINIBAND)
        yield "25 GbE", ranks, replace(machine, **ETHERNET)


def tables(machine: Machine) -> str:
    """The same global batch for all, and as many images for each rank as for one."""
    same = table((joined, ranks, 256, each) for joined, ranks, each in cases(machine))
    more = table((joined, ranks, 256 * ranks, each) for joined, ranks, each in cases(machine))
    return f"{same}\n\n{more}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    machine = Machine(**vars(parser.parse_args()))
    print(tables(machine))


if __name__ == "__main__":
    main()
