"""Whether the images of a run are decoded once and stay in memory, and where; and how they come there."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.base.memory import free_memory
from distrib.base.words import data_size
from distrib.config import Config, read_yaml
from distrib.data.resident import ResidentImages, decode_once, size_of_first
from distrib.ranks.environment import ranks_here
from distrib.ranks.meeting import from_rank_0, on_every_rank
from distrib.ranks.printing import warn
from distrib.ranks.shared_memory import share_memory
from distrib.runs.terminal import time_left
from distrib.training.checkpoint import Checkpoint
from distrib.training.training_run import TrainingRun

# Of what is free when a run begins: the rest is for activations, checkpoints, other programs.
SHARE_OF_MACHINE = 0.5
SHARE_OF_GPU = 0.6
# What `auto` tries, and what a run does that is resumed where its images do not fit any more.
_IN_TURN = ("device", "host", "never")
_WORDS = {
    "device": "decoded once, into the memory of each GPU",
    "host": "decoded once, into the memory of this machine",
    "never": "decoded for each batch",
}
_NAMED = 100  # broken images that are named at once


@dataclass(frozen=True)
class Residency:
    """Where a run has its decoded images.

    Attributes:
        mode: "device", "host" or "never".
        why: what a person is told.
        before: where a run had them that is resumed with them elsewhere; None: it is new, or has them there still.
    """

    mode: str
    why: str
    before: str | None = None

    @property
    def line(self) -> str:
        """What is done, and why."""
        return f"{_WORDS[self.mode]} ({self.why})"

    def notes(self, config: Config) -> list[str]:
        """What the change means for a run that is resumed, in a sentence; nothing where there is none."""
        if self.before is None:
            return []
        # What is cut out of a whole image is resized by the reference's filter, of which DALI's differs.
        decoded = "never" in (self.mode, self.before) and config.data.decoder == "dali"
        pixels = "differ by about 0.15 grey levels from those before" if decoded else "are the same"
        return [f"images are {_WORDS[self.mode]}, which were {_WORDS[self.before]}: the pixels {pixels}"]


@dataclass(frozen=True)
class Room:
    """Bytes that are free, at the least: in the memory of each machine, and of each GPU where the ranks have some.

    Attributes:
        machine: of a machine.
        gpu: of a GPU; None: the ranks are on CPUs.
        shared: whether several ranks of a machine decode together, which they do in its memory.
    """

    machine: int
    gpu: int | None
    shared: bool

    def refusal(self, mode: str, size: int) -> str | None:
        """Why images of so many bytes cannot be kept on the "device", or the "host"; None: they can."""
        if mode == "device":
            if self.gpu is None:
                return "this run is on the CPU"
            if size > SHARE_OF_GPU * self.gpu:
                return _exceeds(size, SHARE_OF_GPU, self.gpu, "on a GPU")
            if not self.shared:
                return None
        if size > SHARE_OF_MACHINE * self.machine:
            return _exceeds(size, SHARE_OF_MACHINE, self.machine, "in this machine's memory")
        return None


class CannotHoldError(Exception):
    """Says why the images of a run cannot stay in memory."""


def hold_images(run: TrainingRun, checkpoint: Checkpoint | None) -> tuple[TrainingRun, Residency]:
    """Decode the images of a run once, if it is to keep them in memory; all ranks call this.

    A run that is resumed has them where it had them, unless it is told otherwise or they do not fit there any more.

    Args:
        run: whose configuration may say `auto`.
        checkpoint: that it resumes from; None: it is new.

    Returns:
        The run with its images and with what was decided in its configuration, and the decision.

    Raises:
        UserError: if they do not fit where they are asked for, or an image is broken that may not be.
    """
    asked, before = run.config.data.resident, _before(checkpoint)
    images = None
    if asked not in ("auto", before):
        candidates: Sequence[str] = (asked,)
        why = "as data.resident says"
    elif before is not None:
        on_cpu = run.config.run.device == "cpu"
        candidates = (before, "never") if on_cpu else _IN_TURN[_IN_TURN.index(before) :]
        why = "as before"
    elif run.config.run.device == "cpu":
        candidates = ("never",)
        why = "data.resident auto: on a CPU the network takes far longer than decoding"
    else:
        candidates = _IN_TURN
        why = ""
    mode = candidates[0]
    if mode != "never":
        try:
            mode, why, images = _hold(run, candidates)
        except CannotHoldError as reason:
            if candidates[-1] != "never":
                raise UserError(
                    f"data.resident is {asked}, but {reason}: set it to auto, or to never", on_all_ranks=True
                ) from None
            mode, why = "never", str(reason)
    config = run.config.replace("data", resident=mode)
    return replace(run, config=config, images=images), Residency(mode, why, before if before != mode else None)


def _before(checkpoint: Checkpoint | None) -> str | None:
    """Where the run of a checkpoint had its images; None where there is none."""
    if checkpoint is None:
        return None
    resident = read_yaml(checkpoint.folder / "config.yaml").data.resident
    return "never" if resident == "auto" else resident  # of a version that kept none


def _hold(run: TrainingRun, candidates: Sequence[str]) -> tuple[str, str, ResidentImages]:
    """The first of the candidates that has room for the images, why it is not an earlier one, and the images.

    Raises:
        CannotHoldError: if none has room, or images have different sizes.
        UserError: if an image is broken that may not be.
    """
    rows = np.union1d(run.splits.train, run.splits.valid)
    whole, (height, width) = from_rank_0(run.accelerator, size_of_first, run.table, rows)
    shape = (len(rows), height, width, 3)
    size, room = int(np.prod(shape)), _room(run)
    refusals: list[str] = []
    for mode in candidates:
        if mode == "never":
            break
        refusal = room.refusal(mode, size)
        if refusal is None:
            why = f"{data_size(size)}" + "".join(f"; {each}" for each in refusals)
            return mode, why, _decode(run, mode, rows, whole, shape)
        refusals.append(refusal)
    raise CannotHoldError("; ".join(refusals))


def _room(run: TrainingRun) -> Room:
    """What is free where it is least, the same on every rank."""
    device, ranks = run.accelerator.device, run.accelerator.num_processes
    free = (free_memory(), torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0, ranks_here())
    machine, gpu, here = zip(*(gather_object([free]) if ranks > 1 else [free]), strict=True)
    return Room(min(machine), min(gpu) if device.type == "cuda" else None, max(here) > 1)


def _decode(run: TrainingRun, mode: str, rows: NDArray[np.int64], whole: int, shape: tuple[int, ...]) -> ResidentImages:
    """The images, each decoded by one of this machine's ranks.

    Args:
        run: that they are for.
        mode: "device" or "host".
        rows: int64 [N], of the table.
        whole: a row whose image is whole.
        shape: N, height, width, 3.

    Raises:
        CannotHoldError: if an image has another size, or memory cannot be shared.
        UserError: if an image is broken that may not be.
    """
    accelerator, here = run.accelerator, ranks_here()
    if mode == "device" and here == 1:
        pixels_NHWC = torch.empty(shape, dtype=torch.uint8, device=accelerator.device)
    else:
        try:
            pixels_NHWC = torch.from_numpy(share_memory(accelerator, int(np.prod(shape)))).view(shape)
        except UserError as error:
            raise CannotHoldError(str(error)) from None
    mine = np.array_split(np.arange(len(rows)), here)[max(0, accelerator.local_process_index)]
    progress = time_left("decoding", len(mine)) if accelerator.is_main_process else nullcontext(lambda _: None)
    with progress as decoded:
        found = on_every_rank(
            accelerator, decode_once, run.config.data, run.table, accelerator.device, rows[mine], whole,
            pixels_NHWC[slice(mine[0], mine[-1] + 1) if len(mine) else slice(0)], decoded,
        )  # fmt: skip
    everywhere = gather_object([found]) if accelerator.num_processes > 1 else [found]
    for each in everywhere:
        for row, (height, width) in each.others.items():
            size, others = f"{height} pixels high and {width} wide", f"{shape[1]} and {shape[2]}"
            raise CannotHoldError(f"images differ in size: {run.table.store.name(row)} is {size}, others {others}")
    broken = {row: reason for each in everywhere for row, reason in each.broken.items()}
    _refuse_broken(run, broken)
    return ResidentImages(pixels_NHWC.to(accelerator.device if mode == "device" else "cpu"), rows, broken)


def _refuse_broken(run: TrainingRun, broken: dict[int, str]) -> None:
    """Raises UserError if there are broken images that may not be; each has been named then."""
    evaluated = set(run.splits.valid.tolist())
    reasons = [
        reason for row, reason in sorted(broken.items()) if run.config.data.on_error == "stop" or row in evaluated
    ]
    if len(reasons) == 1:
        raise UserError(reasons[0], on_all_ranks=True)
    for reason in reasons[:_NAMED]:
        warn(reason)
    if reasons:
        named = "they" if len(reasons) <= _NAMED else f"the first {_NAMED}"
        raise UserError(
            f"{len(reasons):,} images of {run.config.data.root} cannot be decoded; {named} are named above",
            on_all_ranks=True,
        )


def _exceeds(size: int, share: float, free: int, where: str) -> str:
    return f"{data_size(size)} are more than {share:.0%} of the {data_size(free)} that are free {where}"
