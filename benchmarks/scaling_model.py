"""How long a step and an epoch of CelebA take on so many ranks: the model of docs/scaling.md, as its tables.

    python benchmarks/scaling_model.py
    python benchmarks/scaling_model.py --launch 0.001 --bandwidth 2.5e9 --latency 2e-5 --ranks 1 2 4 8

It computes and measures nothing. Every default is an estimate of one H200, or of what joins several, and none was
measured; measured figures of a machine of one's own take their places.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

# CelebA: images for training and for validation, bytes of a JPEG on the mean.
TRAIN, VALID, IMAGE = 162_770, 19_867, 7.5e3
# Bytes of float32: ResNet18 with 40 attributes, in so many buckets of DDP's; the last of these, which waits for the end
# of the backward pass; loss, wishes and BatchNorm's statistics; 40 logits and a count for each validation image.
GRADIENTS, BUCKETS, LAST_BUCKET, STATISTICS, LOGITS = 44.8e6, 3, 8.8e6, 40e3, 4 * 41 * VALID
# Of a step's computing, the backward pass: it has two products of matrices for each one of the forward pass.
BACKWARD = 2 / 3


@dataclass(frozen=True)
class Machine:
    """What each rank has.

    Attributes:
        images_per_second: that its device trains on, where it has enough of them.
        launch: seconds that the host needs to launch a step, however few its images are.
        decoded_per_second: images that its decoder delivers; on a CPU of one core, times the rank's cores.
        storage: bytes/s of JPEGs that reach it.
        hidden: of its computing, the part behind which the all-reduce hides: 0 where the backward pass is one compiled
            graph, as it is by default on a GPU, and on a CPU, whose cores do both; `BACKWARD` with train.compile no.
        end: seconds of an epoch that no rank shortens: scores on rank 0, a copy of the state, the next epoch's start.
    """

    images_per_second: float = 15_000
    launch: float = 8e-3
    decoded_per_second: float = 25_000
    storage: float = 1e9
    hidden: float = 0.0
    end: float = 0.15


@dataclass(frozen=True)
class Link:
    """What joins the ranks: the slowest link in their ring.

    Attributes:
        name: for people.
        bandwidth: bytes/s in one direction.
        latency: seconds of a hop.
    """

    name: str
    bandwidth: float
    latency: float


NVLINK = Link("NVLink", 200e9, 3e-6)
INFINIBAND = Link("400 Gb/s InfiniBand", 40e9, 5e-6)
ETHERNET = Link("25 GbE", 2.5e9, 20e-6)
# One node of up to eight GPUs; two and eight of them.
CASES = [(1, NVLINK), (2, NVLINK), (4, NVLINK), (8, NVLINK)]
CASES += [(ranks, link) for ranks in (16, 64) for link in (INFINIBAND, ETHERNET)]


def ring_seconds(ranks: int, link: Link, size: float = GRADIENTS, parts: int = 1) -> float:
    """An all-reduce in a ring: 2 (R - 1) hops, each with an R-th of the bytes.

    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations (2009).

    Args:
        ranks: R.
        link: of each to the next.
        size: bytes of all parts.
        parts: that are reduced one after another.
    """
    return 2 * (ranks - 1) * (size / ranks / link.bandwidth + parts * link.latency)


def step_seconds(ranks: int, share: float, machine: Machine, link: Link) -> float:
    """A step: computing with what is exposed of the all-reduce; or decoding, or storage, where these take longer.

    Args:
        ranks: of the training.
        share: images of each rank.
        machine: of each rank.
        link: between them.
    """
    computing = max(share / machine.images_per_second, machine.launch)
    reducing = ring_seconds(ranks, link, parts=BUCKETS)
    exposed = max(reducing - machine.hidden * computing, ring_seconds(ranks, link, LAST_BUCKET))
    statistics = ring_seconds(ranks, link, STATISTICS)
    return max(computing + exposed + statistics, share / machine.decoded_per_second, share * IMAGE / machine.storage)


def epoch_seconds(ranks: int, share: float, machine: Machine, link: Link) -> tuple[float, float]:
    """The steps of an epoch of CelebA; and its end: validation, gathering the logits, what no rank shortens."""
    steps = TRAIN // (share * ranks) * step_seconds(ranks, share, machine, link)
    validated_per_second = min(machine.images_per_second / (1 - BACKWARD), machine.decoded_per_second)
    return steps, VALID / ranks / validated_per_second + ring_seconds(ranks, link, LOGITS) + machine.end


def table(machine: Machine, cases: Iterable[tuple[int, Link]], batch: int, each: bool) -> str:
    """Markdown, a row for each number of ranks; `hidden` is `of R alone` with an all-reduce behind the backward pass.

    Args:
        machine: of each rank.
        cases: numbers of ranks, and what joins them.
        batch: images in a step: of all ranks together, or of each.
        each: whether of each.
    """
    lines = ["| ranks | joined by | global batch | step, ms | images/s | of R alone | hidden | epoch, s | its end |"]
    lines.append("|" + "---|" * 9)
    for ranks, link in cases:
        share = batch if each else batch / ranks
        step = step_seconds(ranks, share, machine, link)
        hidden = step_seconds(ranks, share, replace(machine, hidden=BACKWARD), link)
        alone = ranks * batch / step_seconds(1, batch, machine, link)
        steps, end = epoch_seconds(ranks, share, machine, link)
        lines.append(
            f"| {ranks} | {link.name if ranks > 1 else '-'} | {share * ranks:,.0f} | {1e3 * step:.1f} | "
            f"{share * ranks / step:,.0f} | {share * ranks / step / alone:.0%} | "
            f"{share * ranks / hidden / alone:.0%} | {steps + end:.2f} | {end / (steps + end):.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default)
    parser.add_argument("--batch-size", type=int, default=256, help="of all ranks together, then of each")
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2, 4, 8), help="with --bandwidth")
    parser.add_argument("--bandwidth", type=float, help="bytes/s between ranks; None: docs/scaling.md's three links")
    parser.add_argument("--latency", type=float, default=20e-6, help="with --bandwidth")
    options = parser.parse_args()
    machine = Machine(**{field.name: getattr(options, field.name) for field in fields(Machine)})
    cases = CASES
    if options.bandwidth is not None:
        cases = [(ranks, Link("--bandwidth", options.bandwidth, options.latency)) for ranks in options.ranks]
    print(table(machine, cases, options.batch_size, each=False), end="\n\n")
    print(table(machine, cases, options.batch_size, each=True))


if __name__ == "__main__":
    main()
