"""How long the ranks wait at the end of an epoch: from the last validation batch to the first step of the next epoch.

    python benchmarks/epoch.py --json benchmarks/results/epoch.json

A training of one rank whose validation split has CelebA's size and 40 attributes. The loop is the program's own; the
logits are drawn, better ones each epoch, so that each writes best/, and they come when the checkpoint before is on the
disk. The first epoch, which imports what it uses, is left out.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, report, spread
from PIL import Image

import distrib.training.loop
from distrib import train as program
from distrib.training.state import TrainState

TRAIN, VALID, TEST, BATCH = 32, 19_867, 1, 16
ATTRIBUTES = [f"Attribute_{number:02}" for number in range(40)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        targets = lay_out(Path(scratch) / "celeba")
        validated, stepped = watch(targets)
        status = program.main(
            ["--data.root", f"{scratch}/celeba", "--run.folder", f"{scratch}/run", "--run.device", "cpu",
             "--data.image-size", "32", "32", "--train.batch-size", str(BATCH), "--train.epochs", str(options.epochs),
             "--train.precision", "no", "--explain.after-training", "False", "--tracking.mode", "disabled"]
        )  # fmt: skip
        assert status == 0
    starts = [min(each for each in stepped if each > end) for end in validated[1:-1]]
    waits = [start - end for start, end in zip(starts, validated[1:-1], strict=True)]
    report({"machine": machine("torch", "scipy"), "wait_seconds": spread(waits)}, options.json)


def lay_out(folder: Path) -> np.ndarray:
    """CelebA's layout, every image a hard link to the same one.

    Returns:
        The labels of the validation split, uint8 [VALID, 40].
    """
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(folder / "image.jpg")
    names = [f"{number:06}.jpg" for number in range(TRAIN + VALID + TEST)]
    for name in names:
        os.link(folder / "image.jpg", images / name)
    targets = np.random.default_rng(0).integers(0, 2, (len(names), len(ATTRIBUTES)), np.uint8)
    rows = [f"{name} {' '.join(map(str, 2 * row.astype(int) - 1))}" for name, row in zip(names, targets, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(rows)), " ".join(ATTRIBUTES), *rows, ""]))
    splits = [0] * TRAIN + [1] * VALID + [2] * TEST
    lines = "".join(f"{name} {split}\n" for name, split in zip(names, splits, strict=True))
    (folder / "list_eval_partition.txt").write_text(lines)
    return targets[TRAIN : TRAIN + VALID]


def watch(targets: np.ndarray) -> tuple[list[float], list[float]]:
    """Put drawn logits in the place of the validation's; when they were there, and when each step began."""
    validated: list[float] = []
    stepped: list[float] = []
    random, step = np.random.default_rng(1), TrainState.step

    def predict_logits(*_: Any) -> np.ndarray:
        signal = (2.0 * targets - 1) * 0.2 * (1 + len(validated))
        logits = (signal + random.normal(size=targets.shape)).astype(np.float32)
        time.sleep(2)
        validated.append(time.perf_counter())
        return logits

    def watched_step(self: TrainState, micro_batches: Any) -> None:
        stepped.append(time.perf_counter())
        step(self, micro_batches)

    distrib.training.loop.predict_logits = predict_logits
    TrainState.step = watched_step
    return validated, stepped


if __name__ == "__main__":
    main()
