"""Where the time of a training goes, and what share of the device's peak its steps reach (MFU).

All clocks are the host's, and none waits for a device. On a GPU, "data" is the time in which the host waits for the
decoder's next batch, while the device may still be at work on earlier steps; "steps" has the looks at the device, in
which the host waits for it.

MFU is the model FLOPs utilisation of PaLM (Chowdhery et al., 2022, appendix B): the FLOPs that the model needs for the
images it was trained on, by the seconds it took and by the device's peak. Only the model's own products and
convolutions count, forward and backward, and of the seconds those of steps and of the wait for their images.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch
from accelerate import Accelerator
from torch.autograd.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from distrib.base.memory import peak_memory
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.devices import peak_flops
from distrib.ranks.printing import warn
from distrib.runs.metrics import PARTS, SPEED

WAITING = "waiting for data"  # its name in a profile


@cache
def flops_per_image(
    attributes: int, image_size: tuple[int, int], freeze: str, stem: Literal["imagenet", "small"] = "imagenet"
) -> float:
    """FLOPs of forward and backward pass for one image, as torch counts them: 2 for a multiplication and an addition.

    They are counted on a network without numbers, so nothing is computed.

    Args:
        attributes: of the network.
        image_size: height and width.
        freeze: policy of `model.freeze`; frozen layers need no gradients.
        stem: as `model.stem`.
    """
    images = 2  # BatchNorm refuses one whose last activations are a single pixel
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = AttributeClassifier(attributes, stem=stem)
        net.freeze(freeze)
        logits_BA = net(torch.empty(images, *image_size, 3, dtype=torch.uint8))
        logits_BA.sum().backward()
    return float(counter.get_total_flops()) / images


@dataclass
class Spent:
    """What has been spent since some moment.

    Attributes:
        seconds: part of the training -> the host's seconds.
        flops: of this rank's steps.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    flops: float = 0.0

    def share(self, part: str) -> float:
        """Of all these seconds."""
        return self.seconds[part] / sum(self.seconds.values())

    def mfu(self, peak: float | None) -> float | None:
        """FLOP/s of the steps and the wait for their images as a share of a peak; None: of an unknown one, or of none.

        Args:
            peak: of the device, in FLOP/s.
        """
        training = self.seconds["data"] + self.seconds["steps"]
        return self.flops / training / peak if peak and self.flops else None


class SpeedClock:
    """Tells what this rank is at: `enter` says what follows, until the next time; first it is the preparation.

    Rank 0's clock is written down: shares and MFU are those of rank 0 and its device. They begin with this process, so
    that the first row after a resume has what came after it alone.

    Args:
        accelerator: of this rank.
        stem: of the network, as `model.stem`.
    """

    def __init__(self, accelerator: Accelerator, stem: Literal["imagenet", "small"]) -> None:
        self._stem = stem
        self._device, self._written_down = accelerator.device, accelerator.is_main_process
        self._peak: float | None = None
        self._since_row, self._since_look = Spent(), Spent()
        self._part, self._entered = "preparation", time.monotonic()

    def begin_steps(self, precision: str) -> None:
        """The preparation ends, with a look for the device's peak.

        Args:
            precision: as `train.precision`, resolved.
        """
        if self._written_down:
            if self._device.type == "cuda":  # what was tried before the first step is not the training's
                torch.cuda.reset_peak_memory_stats(self._device)
            self._peak = peak_flops(self._device, precision)
            if self._peak is None:
                name = torch.cuda.get_device_name(self._device)
                warn(
                    f"no MFU is given: the peak of {name} (train.precision {precision}) is not in "
                    "distrib/ranks/devices.py"
                )
        self.enter("steps")
        self._since_look = Spent()

    def enter(self, part: str) -> None:
        """Count what follows as this part of the training, one of `PARTS`."""
        now = time.monotonic()
        for spent in (self._since_row, self._since_look):
            spent.seconds[self._part] += now - self._entered
        self._part, self._entered = part, now

    def steps(self, batches: Iterable[Sequence[Batch]], freeze: str) -> Iterator[Sequence[Batch]]:
        """The same micro-batches, of each step; until they are there the time is data's, and then that of steps.

        Args:
            batches: of an epoch.
            freeze: policy of `model.freeze` in it.
        """
        iterator = iter(batches)
        while True:
            self.enter("data")
            with record_function(WAITING):
                micro_batches = next(iterator, None)
            self.enter("steps")
            if micro_batches is None:
                return
            if self._written_down:
                self._count(micro_batches, freeze)
            yield micro_batches

    def look(self) -> dict[str, float]:
        """Since the last look: the share of time that went into waiting for data, and MFU; by their names in W&B."""
        self.enter(self._part)
        spent, self._since_look = self._since_look, Spent()
        mfu = spent.mfu(self._peak)
        return {"train/data_share": spent.share("data")} | ({} if mfu is None else {"train/mfu": mfu})

    def row(self, epoch: int, step: int) -> dict[str, float | None]:
        """A row of speed.csv, of what came after the last one, or after this process began.

        Args:
            epoch: that has ended, counted from 1; the last one also for what has come after it.
            step: of the run at its end.
        """
        self.enter(self._part)
        spent, self._since_row = self._since_row, Spent()
        on_gpu = self._device.type == "cuda"
        values = {
            "epoch": epoch,
            "step": step,
            "seconds": sum(spent.seconds.values()),
            **{f"{part}_share": spent.share(part) for part in PARTS},
            "flops": spent.flops,
            "peak_flops_per_second": self._peak,
            "mfu": spent.mfu(self._peak),
            "device_memory": torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
            "host_memory": peak_memory(),
        }
        return {name: values[name] for name in SPEED}

    def _count(self, micro_batches: Sequence[Batch], freeze: str) -> None:
        height, width = micro_batches[0].images_BHWC.shape[1:3]
        attributes = micro_batches[0].targets_BA.shape[1]
        flops = flops_per_image(attributes, (height, width), freeze, self._stem) * sum(map(len, micro_batches))
        for spent in (self._since_row, self._since_look):
            spent.flops += flops
