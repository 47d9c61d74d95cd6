"""What a check is, and what it may find."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distrib.checking.images import make_images
from distrib.data.table import Table


@dataclass(frozen=True)
class Bench:
    """What the checks work on.

    Attributes:
        device: that is checked.
        table: of images that were drawn for it.
        folder: for what a check writes; it is removed afterwards.
    """

    device: torch.device
    table: Table
    folder: Path

    @classmethod
    def make(cls, device: torch.device, folder: Path) -> "Bench":
        """A bench in an empty folder; on a GPU with as many images as a batch has there."""
        images = folder / "images"
        images.mkdir()
        return cls(device, make_images(images, 256 if device.type == "cuda" else 20), folder)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def need_gpu(self, reason: str) -> None:
        """Raises LeftOut with a reason where there is none."""
        if not self.on_gpu:
            raise LeftOut(reason)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def collect(self) -> None:
        """Free the memory of what has ended; accelerate and DALI leave it in cycles."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Passed:
    """A promise that is kept.

    Attributes:
        sentence: what was seen.
        figures: the same for programs.
    """

    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)


class Failed(Exception):  # noqa: N818 - a finding about the machine, and no error of this program
    """A promise that is not kept; says what was seen, and what was expected."""

    def __init__(self, sentence: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.figures = figures or {}


class LeftOut(Exception):  # noqa: N818 - nor is this one
    """A check that has no meaning on this machine; says why."""


Check = Callable[[Bench], Passed]


def leave_out_if_exclusive(error: str) -> None:
    """Raises LeftOut if a process of a check's own could not have the GPU, which this one holds, beside it."""
    if "busy or unavailable" in error:  # cudaErrorDevicesUnavailable
        raise LeftOut("the GPU is in exclusive mode (nvidia-smi --compute-mode), and this needs a second process on it")


def expect(kept: bool, sentence: str, figures: Mapping[str, Any] | None = None) -> None:
    """Raises Failed with the sentence unless a promise is kept."""
    if not kept:
        raise Failed(sentence, figures)
