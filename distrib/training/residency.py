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
from distrib.base.words import data_size, plural
from distrib.config import DataConfig, read_yaml
from distrib.data.resident import ResidentImages, decode_once, sizes_of_some
from distrib.ranks.environment import ranks_here, trials_on_gpu
from distrib.ranks.meeting import from_rank_0, on_every_rank
from distrib.ranks.printing import say, warn
from distrib.ranks.shared_memory import exceeds, share_memory
from distrib.ranks.watch import Watch
from distrib.runs.terminal import time_left
from distrib.training.checkpoint import Checkpoint
from distrib.training.training_run import TrainingRun

# Of the memory that is free when a run begins, of a machine or a GPU: the rest is for activations and other programs.
SHARE = 0.5
# What `auto` tries, and a run that is resumed where its images do not fit any more.
_IN_TURN = ("device", "host", "never")
_WORDS = {
    "device": "decoded once, into the memory of each GPU",
    "host": "decoded once, into the memory of the machine",
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
        notes: warnings, a sentence each.
    """

    mode: str
    why: str
    before: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What is done, and why."""
        return f"{_WORDS[self.mode]} ({self.why})"


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
            if size > SHARE * self.gpu:
                return exceeds(size, SHARE, self.gpu, "on a GPU")
            if not self.shared:
                return None
        if size > SHARE * self.machine:
            return exceeds(size, SHARE, self.machine, "in this machine's memory")
        return None

    def free(self, mode: str) -> str:
        """What is free there, for a person."""
        where = " on a GPU" if mode == "device" else ""
        return f"{data_size(self.gpu or 0) if where else data_size(self.machine)} that is free{where}"


class CannotHoldError(Exception):
    """Says why the images of a run cannot stay in memory."""


def hold_images(run: TrainingRun, checkpoint: Checkpoint | None) -> tuple[TrainingRun, Residency]:
    """Decode the images of a run once, if it is to keep them in memory; all ranks call this.

    A run that is resumed has them where it had them, or where it is told to, and elsewhere if they do not fit there.

    Args:
        run: whose configuration may say `auto`.
        checkpoint: that it resumes from; None: it is new.

    Returns:
        The run with its images and with what was decided in its configuration, and the decision.

    Raises:
        UserError: if a new run is to have them where they do not fit, or an image is broken that may not be.
        RankLost: if another rank has died or hangs meanwhile.
    """
    asked, on_cpu = run.config.data.resident, run.config.run.device == "cpu"
    then = None if checkpoint is None else from_rank_0(run.accelerator, data_of, checkpoint)
    before = None if then is None else then.resident
    wanted = before or asked if asked == "auto" else asked
    if wanted == "auto" and on_cpu:
        candidates: Sequence[str] = ("never",)
        why = "data.resident auto: on a CPU it saves little"
    elif wanted == "auto":
        candidates, why = _IN_TURN, ""
    else:
        later = ("never",) if on_cpu else _IN_TURN[_IN_TURN.index(wanted) + 1 :]
        candidates = (wanted, *(() if checkpoint is None else later))
        why = "as before" if wanted == before else f"data.resident {asked}"
    mode, images = "never", None
    if candidates[0] != "never":
        try:
            mode, why, images = _hold(run, candidates)
        except CannotHoldError as reason:
            if candidates[-1] != "never":
                raise UserError(
                    f"data.resident is {asked}, but {reason}: set it to auto, or to never", on_all_ranks=True
                ) from None
            why = str(reason)
            torch.cuda.empty_cache()  # what was reserved for them, and DALI cannot use; nothing on a CPU
    config = run.config.replace("data", resident=mode)
    notes = [] if then is None or then.resident == mode else [_change(then, config.data)]
    if images is not None and images.broken:
        notes.append(f"{plural(len(images.broken), 'training image')} cannot be decoded, and others take their place")
    residency = Residency(mode, why, None if before == mode else before, tuple(notes))
    return replace(run, config=config, images=images), residency


def data_of(checkpoint: Checkpoint) -> DataConfig:
    """How the run of a checkpoint had its images."""
    data = read_yaml(checkpoint.folder / "config.yaml").data
    # A version that kept no images wrote down nothing.
    return data.model_copy(update={"resident": "never"}) if data.resident == "auto" else data


def _change(then: DataConfig, now: DataConfig) -> str:
    """What it means for the pixels that images are elsewhere from here on."""
    # The torch decoder's are the same from wherever it takes them; DALI resizes by itself, unless they are in memory.
    one, other = ((data.decoder, data.decoder == "dali" and data.resident != "never") for data in (then, now))
    pixels = "stay the same" if one == other else "differ slightly"
    if one != other and then.decoder == now.decoder:
        pixels += ", by about 0.15 grey levels where an image is resized"
    return f"images were {_WORDS[then.resident]}, and are now {_WORDS[now.resident]}: their pixels {pixels}"


def _hold(run: TrainingRun, candidates: Sequence[str]) -> tuple[str, str, ResidentImages]:
    """The first of the candidates that has room for the images, why it is not an earlier one, and the images.

    Raises:
        CannotHoldError: if none has room, or images have different sizes.
        UserError: if an image is broken that may not be.
    """
    rows = np.union1d(run.splits.train, run.splits.valid)
    sizes = from_rank_0(run.accelerator, sizes_of_some, run.table, rows)
    (whole, (height, width)), *others = sizes.items()
    for row, size in others:
        _refuse_other_size(run, row, size, (height, width))
    shape = (len(rows), height, width, 3)
    total, room = int(np.prod(shape)), _room(run)
    refusals: list[str] = []
    for mode in candidates:
        if mode == "never":
            break
        refusal = room.refusal(mode, total)
        if refusal is None:
            why = "; ".join([f"{data_size(total)} of the {room.free(mode)}", *refusals])
            say(f"images:  {len(rows):,} are decoded now, into {data_size(total)} of memory")
            return mode, why, _decode(run, mode, room.shared, rows, whole, shape)
        refusals.append(refusal)
    raise CannotHoldError("; ".join(refusals))


def _refuse_other_size(run: TrainingRun, row: int, size: tuple[int, int], usual: tuple[int, int]) -> None:
    """Raises CannotHoldError if the image of a row has not the usual height and width."""
    if size != usual:
        name, found = run.table.store.name(row), f"{size[0]} pixels high and {size[1]} wide"
        raise CannotHoldError(f"images differ in size: {name} is {found}, others {usual[0]} and {usual[1]}")


def _room(run: TrainingRun) -> Room:
    """What is free where it is least, the same on every rank.

    Raises:
        CannotHoldError: if a launcher does not say how many ranks a machine has.
    """
    accelerator, device = run.accelerator, run.accelerator.device
    # Trials that share a GPU look at it at the same time: each may count on its part of what is free.
    gpu = torch.cuda.mem_get_info(device)[0] // trials_on_gpu() if device.type == "cuda" else 0
    own = (free_memory(), gpu, ranks_here(), accelerator.local_process_index)
    machines, gpus, here, local = zip(*(gather_object([own]) if accelerator.num_processes > 1 else [own]), strict=True)
    if any(not 0 <= place < count for place, count in zip(local, here, strict=True)):
        raise CannotHoldError("the launcher does not say how many ranks each machine has (LOCAL_WORLD_SIZE)")
    return Room(min(machines), min(gpus) if device.type == "cuda" else None, max(here) > 1)


def _decode(
    run: TrainingRun, mode: str, shared: bool, rows: NDArray[np.int64], whole: int, shape: tuple[int, ...]
) -> ResidentImages:
    """The images, each decoded by one of this machine's ranks.

    Args:
        run: that they are for.
        mode: "device" or "host".
        shared: whether several ranks of a machine decode together.
        rows: int64 [N], of the table.
        whole: a row whose image is whole.
        shape: N, height, width, 3.

    Raises:
        CannotHoldError: if an image has another size, or memory cannot be shared.
        UserError: if an image is broken that may not be.
        RankLost: if another rank has died or hangs.
    """
    accelerator = run.accelerator
    on_device = torch.empty(shape, dtype=torch.uint8, device=accelerator.device) if mode == "device" else None
    if on_device is not None and not shared:
        pixels_NHWC = on_device
    else:
        try:
            pixels_NHWC = torch.from_numpy(share_memory(accelerator, int(np.prod(shape)), SHARE)).view(shape)
        except UserError as error:
            raise CannotHoldError(str(error)) from None
    mine = np.array_split(np.arange(len(rows)), ranks_here())[accelerator.local_process_index]
    bar = time_left("decoding", len(mine)) if accelerator.is_main_process else nullcontext(lambda _: None)
    limit = run.config.run.start_timeout
    with bar as show, Watch(accelerator, limit, limit, lambda _: None) as watch:

        def decoded(count: int) -> None:
            show(count)
            watch.progress()

        found = on_every_rank(
            accelerator, decode_once, run.config.data, run.table, accelerator.device, rows[mine], whole,
            pixels_NHWC[slice(mine[0], mine[-1] + 1) if len(mine) else slice(0)], decoded,
        )  # fmt: skip
    everywhere = gather_object([found]) if accelerator.num_processes > 1 else [found]
    for each in everywhere:
        for row, size in each.others.items():
            _refuse_other_size(run, row, size, (shape[1], shape[2]))
    broken = {row: reason for each in everywhere for row, reason in each.broken.items()}
    _refuse_broken(run, broken)
    if on_device is not None and pixels_NHWC is not on_device:
        pixels_NHWC = on_device.copy_(pixels_NHWC)
    return ResidentImages(pixels_NHWC, rows, broken)


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
