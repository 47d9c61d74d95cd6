"""How long the ranks wait at the end of an epoch: from the last validation batch to the first step of the next epoch.

    python benchmarks/epoch.py --json benchmarks/results/epoch.json

A training of one rank whose validation split has CelebA's size and 40 attributes. The loop is the program's own; the
logits are drawn, better ones each epoch, so that each writes best/, and they come when the checkpoint before is on the
disk. The first two epochs, which import what they use, are left out. Peers, an epoch each in turns:
    background   the results are written beside the next epoch's steps, as the program does
    waiting      the loop calibrates, and writes best/ and the rows, before the next epoch
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
from distrib.training.checkpoint import Progress, WriteFirst, nothing
from distrib.training.checkpointer import Checkpointer
from distrib.training.state import TrainState

TRAIN, VALID, TEST, BATCH = 32, 19_867, 1, 16
ATTRIBUTES = [f"Attribute_{number:02}" for number in range(40)]
PEERS = ("background", "waiting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    epochs = 2 * (1 + options.rounds) + 1  # after the last one there is no step
    with tempfile.TemporaryDirectory() as scratch:
        targets = lay_out(Path(scratch) / "celeba")
        validated, stepped = watch(targets)
        status = program.main(
            ["--data.root", f"{scratch}/celeba", "--run.folder", f"{scratch}/run", "--run.device", "cpu",
             "--data.image-size", "32", "32", "--train.batch-size", str(BATCH), "--train.epochs", str(epochs),
             "--train.precision", "no", "--explain.after-training", "False", "--tracking.mode", "disabled"]
        )  # fmt: skip
        assert status == 0
    waits = [min(each for each in stepped if each > end) - end for end in validated[2:-1]]
    peers = {name: spread(waits[place::2]) for place, name in enumerate(PEERS)}
    report({"machine": machine("torch", "scipy"), "wait_seconds": peers}, options.json)


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
    """Put drawn logits in the place of the validation's, and let the peers take turns.

    Returns:
        When the logits were there, and when each step began.
    """
    validated: list[float] = []
    stepped: list[float] = []
    random, step, save = np.random.default_rng(1), TrainState.step, Checkpointer.save

    def predict_logits(*_: Any, **__: Any) -> np.ndarray:
        signal = (2.0 * targets - 1) * 0.1 * (1 + len(validated))
        logits = (signal + random.normal(size=targets.shape)).astype(np.float32)
        time.sleep(2)
        validated.append(time.perf_counter())
        return logits

    def watched_step(self: TrainState, micro_batches: Any) -> None:
        stepped.append(time.perf_counter())
        step(self, micro_batches)

    def save_in_turns(self: Checkpointer, progress: Progress, first: WriteFirst = nothing) -> None:
        if PEERS[(progress.epoch - 1) % 2] == "waiting":
            first(self._state.net.net.state_dict())
            first = nothing
        save(self, progress, first)

    distrib.training.epoch.predict_logits = predict_logits
    TrainState.step = watched_step
    Checkpointer.save = save_in_turns
    return validated, stepped


if __name__ == "__main__":
    main()
