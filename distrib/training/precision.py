"""Which precision `train.precision: auto` is on a CPU: the one that a new training measures to be faster there.

A CPU that has instructions for bf16 may still be slower in it than in float32: of one with AVX-512-BF16 and without AMX
a training step took 1.4 times as long (docs/performance.md).
"""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from distrib.config import Config
from distrib.ranks.printing import warn
from distrib.runs.folder import RunFolder

# Seconds that measuring may take in all.
LONGEST = 1.0
# bf16 is less exact: it has to be faster by this factor to be taken.
WORTH_IT = 1.1
# The block is one of the network's second stage, which sees an eighth of the image's sides.
CHANNELS, SCALE = 128, 8
# More images tell no more about the speed of one.
IMAGES = 8


@dataclass(frozen=True)
class Precision:
    """What was decided.

    Attributes:
        name: "no" or "bf16".
        seconds: precision -> seconds that the block took, where it was measured.
    """

    name: str
    seconds: dict[str, float]

    @property
    def reason(self) -> str:
        """What was measured, as it stands behind the precision's name; nothing where nothing was."""
        if not self.seconds:
            return ""
        ratio = self.seconds["no"] / self.seconds["bf16"]
        return f" (measured here: bf16 is {ratio:.2f} times as fast as float32)"


def choose_precision(config: Config, ranks: int) -> Precision:
    """The precision of a training whose `train.precision` is `auto` on this CPU; on rank 0, which decides for all.

    A run that has begun keeps its precision where this CPU computes in it.

    Args:
        config: resolved but for the precision, and with a run folder.
        ranks: of the training.
    """
    before = _of_run(config)
    if before in ("no", "bf16"):
        return Precision(before, {})
    if before is not None:
        warn(f"this run was trained in {before}, which this CPU does not compute in: its precision is measured anew")
    seconds = measure(config, ranks)
    return Precision("bf16" if seconds["no"] >= WORTH_IT * seconds["bf16"] else "no", seconds)


def measure(config: Config, ranks: int) -> dict[str, float]:
    """Seconds of one block's forward and backward pass in each precision, by their median; `LONGEST` at most in all.

    The block takes turns, so that whatever else the machine does weighs on both.
    """
    height, width = (max(1, side // SCALE) for side in config.data.image_size)
    images = max(1, min(IMAGES, config.train.batch_size // ranks))
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    with torch.random.fork_rng(devices=[]):  # what is drawn here is not to move the training's own numbers
        block = BasicBlock(CHANNELS, CHANNELS, norm_layer=nn.BatchNorm2d).to(memory_format=layout)
        x_BCHW = torch.randn(images, CHANNELS, height, width).to(memory_format=layout).requires_grad_()
    found: dict[str, list[float]] = {"no": [], "bf16": []}
    began = time.monotonic()
    while True:
        for name, seconds in found.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
                y_BCHW = block(x_BCHW)
            y_BCHW.float().sum().backward()
            seconds.append(time.perf_counter() - started)
        turns = len(found["no"])
        spent = time.monotonic() - began
        if spent + spent / turns > LONGEST:  # another turn would take too long
            break
    # The first turn builds what the others use again.
    return {name: median(seconds[1:] or seconds) for name, seconds in found.items()}


def _of_run(config: Config) -> str | None:
    """The precision that the run in the folder was last started with; None for a new run."""
    if config.run.folder is None:
        return None
    folder = RunFolder(config.run.folder)
    if folder.meant(config.run.resume) == "never":
        return None
    starts = folder.events("start")
    return str(starts[-1]["precision"]) if starts and "precision" in starts[-1] else None
