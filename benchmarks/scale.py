"""A data set of CelebA's size: packing it, the way to the first batch, memory over an epoch, and the plan far beyond.

    python benchmarks/scale.py --root data/celeba --json benchmarks/results/scale.json

From the images of `--root`, which may be few, 202,599 hard links are made under CelebA's names. What is measured of
packing takes no two of them for alike, as in CelebA itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, report

from distrib.data.plan import Plan
from distrib.data.table import read_table

IMAGES, TRAIN, VALID = 202_599, 162_770, 19_867

PACK = """
import hashlib, itertools, sys
from pathlib import Path
from distrib.cli import prepare
from distrib.data import packing
look, number = packing.examine, itertools.count()
def unlike(data, file):
    key = hashlib.sha256(str(next(number)).encode()).hexdigest()
    return look(data, file)._replace(sha256=key, pixels=key)
packing.examine = unlike
status = prepare.main(["pack", "--root", sys.argv[1], "--out", sys.argv[2]])
# Not getrusage's, which begins with what the parent had.
lines = Path("/proc/self/status").read_text().splitlines()
print(int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024)
sys.exit(status)
"""
FIRST_BATCH = """
import json, sys, time
from pathlib import Path
began = time.time()
import torch
from distrib.config import Config
from distrib.data.decoders import make_decoder
from distrib.data.plan import Plan
from distrib.data.splits import make_splits
from distrib.data.table import read_table
def own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024
config = Config().data.model_copy(update={"root": Path(sys.argv[1]), "decoder": "torch", "crop": "full",
    "image_size": tuple(map(int, sys.argv[3:])), "min_zoom": 0.85})
table = read_table(config.root)
plan = Plan(make_splits(table, config).train, 0, 256, min_zoom=0.85)
batches = make_decoder(config, table, torch.device("cpu"), 256).batches(plan.rank_batches(0, 0, 0, 1))
next(batches)
first, memory = time.time() - began, [own_memory()]
for number, _ in zip(range(int(sys.argv[2])), batches):
    if number % 50 == 49:
        memory.append(own_memory())
print(json.dumps({"seconds": first, "memory_MiB": memory}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a data set with some images")
    parser.add_argument("--batches", type=int, default=600, help="batches of 256 over which memory is watched")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, packed = Path(scratch) / "celeba", Path(scratch) / "packed"
        lay_out(options.root, folder)
        began = time.monotonic()
        done = run(PACK, folder, packed)
        packing = {"seconds": time.monotonic() - began, "memory_MiB": float(done.splitlines()[-1])}
        first = {"packed": first_batch(packed, options.batches), "folder": first_batch(folder)}
        archive(folder)
        first["zip"] = first_batch(folder)
    report(
        {
            "machine": machine("torch", "simplejpeg"),
            "images": IMAGES,
            "packing": packing,
            "first_batch": first,
            "plan": {str(rows): plan_of(rows) for rows in (IMAGES, 10**6, 10**7)},
        },
        options.json,
    )


def lay_out(root: Path, folder: Path) -> None:
    """CelebA's layout with its numbers of images, each a hard link to one of a few."""
    table = read_table(root)
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    few = []
    for row in range(min(500, len(table))):
        few.append(folder / f"{row}.few")
        few[-1].write_bytes(table.store.read(row))
    names = [f"{number + 1:06}.jpg" for number in range(IMAGES)]
    for number, name in enumerate(names):
        os.link(few[number % len(few)], images / name)
    for file in few:
        file.unlink()
    labels = [" ".join(" 1" if label else "-1" for label in row) for row in table.targets[: len(few)]]
    lines = [f"{name} {labels[number % len(labels)]}" for number, name in enumerate(names)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(IMAGES), " ".join(table.attributes), *lines]) + "\n")
    split = np.where(np.arange(IMAGES) < TRAIN, 0, np.where(np.arange(IMAGES) < TRAIN + VALID, 1, 2))
    (folder / "list_eval_partition.txt").write_text("".join(f"{n} {s}\n" for n, s in zip(names, split, strict=True)))


def archive(folder: Path) -> None:
    """The images in CelebA's archive, and no longer in a folder."""
    images = folder / "img_align_celeba"
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as opened:
        for file in sorted(images.iterdir()):
            opened.write(file, f"img_align_celeba/{file.name}")
            file.unlink()
    images.rmdir()


def first_batch(root: Path, batches: int = 0, height: int = 218, width: int = 178) -> dict[str, Any]:
    """Seconds to the first batch of 256, and the program's own memory then and after every 50 of some more (MiB)."""
    result: dict[str, Any] = json.loads(run(FIRST_BATCH, root, batches, height, width))
    return result


def run(program: str, *arguments: object) -> str:
    """What a program prints, in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def plan_of(rows: int) -> dict[str, float]:
    """Seconds of an epoch's order and of a batch, and the most memory of this process by then."""
    plan = Plan(np.arange(rows), 0, 256)
    began = time.perf_counter()
    plan.batch(1, 0)
    ordered = time.perf_counter()
    for step in range(1, 101):
        plan.batch(1, step)
    return {
        "order_seconds": ordered - began,
        "batch_seconds": (time.perf_counter() - ordered) / 100,
        "memory_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
