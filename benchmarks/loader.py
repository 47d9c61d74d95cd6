"""Images a second from the disk to batches on the device, against what else people load images with, in one run.

    python benchmarks/loader.py --root data/celeba --json benchmarks/results/loader.json --plot docs/loader.png

Two jobs: `centre`, the centred 178x178 of each image, where nothing is resized; and `crops`, random 85 to 100 % of each
side of the whole image, resized to 218x178, half of them mirrored. Every loader delivers uint8 batches of the same
images, and as many of them as the others, which is looked at. The peers are in `peers.py`, each at its best known use.
`pip install -e '.[benchmarks]'`, in an environment of its own, brings them; those that are not there are left out, and
said.

On a GPU DALI decodes there ("mixed"), as does its own reader; everything else decodes on the CPU.
"""

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import simplejpeg
import torch
from measure import alternate, in_memory, lay_out, machine, spread, write
from peers import PEERS, Again, Forms, Job, Peer
from plot_loader import plot

from distrib.config import Config
from distrib.data.decoders import dali_installed, make_decoder
from distrib.data.packing import pack
from distrib.data.plan import Plan
from distrib.data.resident import make_resident_decoder
from distrib.data.table import Table, read_table
from distrib.data.verification import examine

JOBS = {"centre": Job((178, 178), "square", 1.0), "crops": Job((218, 178), "full", 0.85)}
PACKAGES = [
    "torch", "torchvision", "pillow", "simplejpeg", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "webdataset",
    "litdata", "mosaicml-streaming", "spdl-core", "spdl-io",
]  # fmt: skip
Run = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CelebA, or a part of it, in a folder")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--batches", type=int, default=16, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="what others load with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()

    torch.set_num_threads(1)  # a loader has the threads that it is given, and none of OpenMP's beside them
    count = options.batches * options.batch_size
    rates: dict[str, dict[str, dict[str, float]]] = {}
    left_out: dict[str, str] = {}
    result = {
        "machine": machine(*filter(installed, PACKAGES)),
        "setting": {"batch_size": options.batch_size, "images": count, "rounds": options.rounds},
        "left_out": left_out,
        "images_per_second": rates,
    }
    with tempfile.TemporaryDirectory() as scratch:
        roots = other_forms(options.root, Path(scratch), count)
        for job in JOBS:
            for threads in options.threads:
                peers = PEERS if options.peers else {}
                measured = contenders(roots, JOBS[job], threads, options.batch_size, peers, left_out)
                seconds = alternate(measured, options.rounds, warmup=0)
                setting = f"{job}, {threads} thread{'s' * (threads > 1)}"
                rates[setting] = {name: spread([count / each for each in found]) for name, found in seconds.items()}
                print(in_markdown(setting, rates[setting]), flush=True)
                if options.json is not None:
                    write(result, options.json)  # each time: a limit may end the next
    for name, reason in left_out.items():
        print(f"left out: {name} ({reason})", file=sys.stderr)
    if options.plot is not None:
        plot(result, options.plot)


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def in_markdown(setting: str, rates: dict[str, dict[str, float]]) -> str:
    """The rates of one job and number of threads in Markdown, which a terminal shows as well."""
    bare = next(iter(rates.values()))["median"]
    heads = [f"{setting}: images/s", "median", "range", "of bare"]
    rows = [
        [name, f"{rate['median']:,.0f}", f"{rate['min']:,.0f}-{rate['max']:,.0f}", f"{rate['median'] / bare:.2f}"]
        for name, rate in rates.items()
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for name, *numbers in [heads, rule, *rows]:
        cells = [name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def other_forms(root: Path, scratch: Path, count: int) -> dict[str, Path]:
    """So many of the training images as a folder, as a zip archive beside the same table, and packed."""
    table = read_table(root)
    rows = np.flatnonzero(table.split == 0)[:count]
    if len(rows) < count:
        sys.exit(f"{root} has {len(rows)} training images, and {count} are asked for: take fewer or smaller batches")
    folder = scratch / "folder"
    lay_out(table, {"train": rows}, folder)
    archived = scratch / "zip"
    archived.mkdir()
    copy(folder / "table.csv", archived)
    with zipfile.ZipFile(archived / "images.zip", "w") as archive:
        for file in sorted((folder / "images").iterdir()):
            archive.write(file, f"images/{file.name}")
    pack(folder, scratch / "shards", "stop", 2, lambda *_: None)
    return {"folder": folder, "zip": archived, "shards": scratch / "shards"}


def contenders(
    roots: dict[str, Path], job: Job, threads: int, batch_size: int, peers: dict[str, Peer], left_out: dict[str, str]
) -> dict[str, Run]:
    """What is measured, by name; each goes through all images once, and has done so, to warm up.

    Peers that are not there, or fail (workers may lack shared memory), are told in `left_out`.
    """
    folder = read_table(roots["folder"])
    data = [folder.store.read(row) for row in range(len(folder))]
    count = len(data)
    bare = in_threads(lambda row: simplejpeg.decode_jpeg(data[row]), count, threads)
    verification = in_threads(lambda row: examine(folder.store.read(row), "x.jpg"), count, threads)
    runs = {"bare strict decode of bytes in memory": bare, "distrib, verification as pack does it": verification}
    for form, root in roots.items():
        for decoder in ("torch", "dali") if dali_installed() else ("torch",):
            batches = ours(read_table(root), job, decoder, threads, batch_size)
            runs[f"distrib, {form}, {decoder}"] = through(batches, count, job)
    for where in ("host", "device") if torch.cuda.is_available() else ("host",):
        batches = ours(folder, job, "torch", threads, batch_size, where)
        runs[f"distrib, resident ({where})"] = through(batches, count, job)
    for run in runs.values():
        run()
    files = [roots["folder"] / "images" / name for name in folder.names]
    own = roots["folder"].parent / "peers"
    own.mkdir(exist_ok=True)
    for name, peer in peers.items():
        try:
            run = through(peer(Forms(files, roots["shards"], own), job, threads, batch_size), count, job)
            run()
        except (ImportError, RuntimeError) as error:
            left_out[name] = str(error)
        else:
            runs[name] = run
    return runs


def in_threads(work: Callable[[int], object], count: int, threads: int) -> Run:
    def chunk(rows: range) -> None:
        for row in rows:
            work(row)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(chunk, [range(start, min(start + 32, count)) for start in range(0, count, 32)]))

    return run


def ours(table: Table, job: Job, decoder: str, threads: int, batch_size: int, resident: str = "never") -> Iterable[Any]:
    config = Config().data.model_copy(
        update={"image_size": job.size, "crop": job.crop, "threads": threads, "decoder": decoder}
    )
    plan = Plan(np.arange(len(table)), 0, batch_size, min_zoom=job.zoom, flip=job.zoom < 1)
    requests = [plan.batch(0, step) for step in range(plan.steps_per_epoch)]
    if resident == "never":
        made = make_decoder(config, table, device(), batch_size)
    else:
        images = in_memory(config, table, plan.rows, device() if resident == "device" else "cpu")
        made = make_resident_decoder(images, config, table, device())
    return Again(lambda: made.batches(requests))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def through(batches: Iterable[Any], count: int, job: Job) -> Run:
    """Take all batches to the device; that they are what was asked for is looked at in passing."""

    def run() -> None:
        seen = 0
        for batch in batches:
            images = getattr(batch, "images_BHWC", batch).to(device(), non_blocking=True)
            assert images.dtype == torch.uint8, images.dtype
            assert images.shape[1:] == (*job.size, 3), images.shape
            seen += len(images)
        assert seen == count, f"{seen} images came instead of {count}"
        images.sum().item()  # wait for the device

    return run


if __name__ == "__main__":
    main()
