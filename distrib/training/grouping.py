"""Which images BatchNorm normalises over together: what a step computes depends on that, whatever the ranks are.

The global batch is cut into groups of `train.norm_size` images (`Plan.rank_batches`), and each rank takes as many of
them, one after another, as its share of the batch holds: batch_size = norm_size x accumulation x ranks.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from distrib.base.errors import UserError
from distrib.base.words import plural
from distrib.config import Config, TrainConfig, read_yaml

if TYPE_CHECKING:
    from distrib.training.checkpoint import Checkpoint

# Below this many images the statistics of a group are noise: figure 1 of Wu and He, Group Normalization (ECCV 2018).
SMALL = 16
# ResNet18 halves its input this often, by its stem.
HALVINGS = {"imagenet": 5, "small": 3}
# Estimates, not measurements of this program: what the host takes to launch the kernels of a step, and what a GPU from
# Ampere on trains ResNet18 by in bf16, for each of its multiprocessors. The latter is FFCV's 10,000 images/s at 160 to
# 192 px on an A100 of 108 (github.com/libffcv/ffcv-imagenet), scaled to a Hopper's 1.5 times of that.
LAUNCH_SECONDS = 8e-3
PIXELS_PER_SECOND = 4.5e6


@dataclass(frozen=True)
class Grouping:
    """How a global batch is cut up.

    Attributes:
        norm_size: images that BatchNorm normalises over.
        accumulation: micro-batches of each rank in a step.
        micro_batch: images in each of them; less than `norm_size` only where `synchronised`.
        synchronised: whether BatchNorm normalises over all ranks' images, by torch's SyncBatchNorm.
        before: the images that the run has normalised over so far, if that changes here; None: it does not.
        notes: warnings for the user, a sentence each.
    """

    norm_size: int
    accumulation: int
    micro_batch: int
    synchronised: bool
    before: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Past:
    """What a checkpoint's run has done so far; `consecutive`: it cut a rank's share into consecutive micro-batches."""

    norm_size: int
    accumulation: Literal["auto"] | int  # as its configuration had it
    consecutive: bool


def check_batch(train: TrainConfig, ranks: int) -> None:
    """Refuse a global batch of which no rank can have a share.

    Raises:
        UserError: if the ranks do not divide it.
    """
    if train.batch_size % ranks:
        fits = next(number for number in range(ranks, 0, -1) if train.batch_size % number == 0)
        raise UserError(
            f"train.batch_size {train.batch_size} cannot be shared out evenly over {ranks} ranks: start "
            f"{plural(fits, 'rank')}, or, in a new run, choose a multiple of {ranks}"
        )


def group_batch(config: Config, ranks: int, checkpoint: "Checkpoint | None") -> Grouping:
    """How each step of a run cuts its batch up, on this number of ranks.

    What the run began with is kept. Where `train.norm_size` is auto and that cannot be, another size is taken, and a
    note says so.

    Args:
        config: of the run.
        ranks: that take part.
        checkpoint: that the run resumes from; None: it is new.

    Raises:
        UserError: if the batch cannot be cut up as the configuration asks, or leaves BatchNorm a single value.
    """
    train = config.train
    check_batch(train, ranks)
    past = None if checkpoint is None else _past(checkpoint)
    notes: list[str] = []
    accumulation = train.accumulation
    if past is not None and accumulation == past.accumulation:
        accumulation = "auto"  # it was set for as many ranks as there were then
    if train.norm_size == "batch":
        norm_size = _whole_batch(config, ranks)
    elif train.norm_size != "auto":
        norm_size = _as_asked(train, train.norm_size, accumulation, ranks)
    elif past is None:
        norm_size = _share(train, accumulation, ranks)
    else:
        norm_size = _as_before(train, past.norm_size, accumulation, ranks)
    synchronised = train.norm_size == "batch" and ranks > 1
    micro_batch = train.batch_size // ranks if synchronised else norm_size
    found = train.batch_size // ranks // micro_batch
    if train.accumulation not in ("auto", found):
        notes.append(
            f"train.accumulation is {found} and not {train.accumulation} on {plural(ranks, 'rank')}, so that BatchNorm "
            f"normalises over {norm_size} images"
        )
    before = None if past is None or norm_size == past.norm_size else past.norm_size
    if before is not None:
        notes.append(
            f"BatchNorm normalises over {norm_size} images (train.norm_size) from this step on, instead of over "
            f"{before} as before: what a step computes changes"
            + (", and which images are mixed (augment.mixup)" if config.augment.mixup else "")
        )
    if past is not None and past.consecutive:
        notes.append(
            "train.accumulation is more than 1: from here on, the images of a step are grouped differently than by the "
            "version of this program that began this run"
        )
    if not _keeps_all_statistics(config):
        _refuse_one_value(config, norm_size, ranks)
        if norm_size < SMALL:
            other = (
                "" if past is not None or train.norm_size != "auto" else ", raise train.batch_size or start fewer ranks"
            )
            notes.append(
                f"BatchNorm normalises over {plural(norm_size, 'image')} only, fewer than {SMALL}: their statistics "
                f"are noisy; raise train.norm_size{other}"
            )
    return Grouping(norm_size, found, micro_batch, synchronised, before, tuple(notes))


def launch_bound(micro_batch: int, image_size: tuple[int, int], multiprocessors: int) -> str | None:
    """A sentence where micro-batches are so small that a GPU waits for the host more than it computes; else None.

    Args:
        micro_batch: images of a rank's forward pass.
        image_size: height and width in pixels.
        multiprocessors: of the GPU.
    """
    height, width = image_size
    pixels_in_step = PIXELS_PER_SECOND * multiprocessors * LAUNCH_SECONDS
    if micro_batch * height * width >= pixels_in_step / 2:
        return None
    busy, launch = 1e3 * micro_batch * height * width / (PIXELS_PER_SECOND * multiprocessors), 1e3 * LAUNCH_SECONDS
    return (
        f"a rank's micro-batch is {plural(micro_batch, 'image')} of {height} x {width}, which keep this GPU busy for "
        f"some {busy:.1f} ms, while the host needs some {launch:.0f} ms to launch a step (both estimated): some "
        f"{pixels_in_step / height / width:.0f} images would fill it; in a new run raise train.batch_size (and "
        "train.norm_size, where it is a number), and with it optim.lr (configs/celeba_8gpu.yaml), start fewer ranks, "
        "or have CUDA graphs launch the step (train.compile reduce-overhead)"
    )


def halve(grouping: Grouping) -> Grouping | None:
    """Twice as many micro-batches of half the images; None where half is no whole number, or fewer than `SMALL`."""
    half, rest = divmod(grouping.norm_size, 2)
    if rest or half < SMALL:
        return None
    return replace(grouping, norm_size=half, accumulation=2 * grouping.accumulation, micro_batch=half)


def what_to_lower(config: Config, grouping: Grouping, ranks: int) -> str:
    """What takes less memory than a run does, with its numbers."""
    data, train, now = config.data, config.train, grouping.micro_batch
    share = train.batch_size // ranks
    ways = []
    smaller = next((size for size in range(now // 2, 1, -1) if share % size == 0), None)
    if smaller is not None:
        also = "" if train.accumulation == "auto" else ", and train.accumulation to auto"
        ways.append(
            f"set train.norm_size to {smaller}{also}, so that a rank holds {smaller} images at a time, not {now}"
        )
    if data.resident != "never":
        ways.append("set data.resident to never")
    height, width = data.image_size
    ways.append(f"lower, in a new run, train.batch_size ({train.batch_size}) or data.image_size ({height} {width})")
    if config.model.stem == "small":
        ways.append("set, in a new run, model.stem to imagenet")
    return "; or ".join(ways)


def _past(checkpoint: "Checkpoint") -> _Past:
    """What the run of a checkpoint has done; from model.json where the progress does not have it yet."""
    progress = checkpoint.progress
    asked = read_yaml(checkpoint.folder / "config.yaml").train
    if progress.norm_size is not None:
        return _Past(progress.norm_size, asked.accumulation, consecutive=False)
    try:
        ranks = int(json.loads((checkpoint.folder / "model.json").read_text(encoding="utf-8"))["training"]["ranks"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{checkpoint.folder / 'model.json'} does not say how many ranks the run had: name another checkpoint, or "
            "start anew in another run.folder"
        ) from None
    micro_batches = 1 if asked.accumulation == "auto" else asked.accumulation
    return _Past(asked.batch_size // ranks // micro_batches, asked.accumulation, consecutive=micro_batches > 1)


def _whole_batch(config: Config, ranks: int) -> int:
    """The batch size, for `train.norm_size: batch`."""
    batch, compile_mode = config.train.batch_size, config.train.compile
    if ranks > 1 and config.run.device == "cpu":
        raise UserError(
            f"train.norm_size is batch, which is torch's SyncBatchNorm and needs GPUs, and this run has {ranks} ranks "
            f"on the CPU: start one rank, or set train.norm_size to a number, such as {batch // ranks}"
        )
    if ranks > 1 and compile_mode not in ("auto", "no"):
        # It speaks with the other ranks amid the forward pass, which is no part of a graph that a rank compiles alone.
        raise UserError(
            f"train.norm_size is batch, which is torch's SyncBatchNorm on {ranks} ranks, and train.compile is "
            f"{compile_mode}, which does not compile that: set train.compile to no or auto, or train.norm_size to a "
            f"number, such as {batch // ranks}"
        )
    return batch


def _as_asked(train: TrainConfig, norm_size: int, accumulation: Literal["auto"] | int, ranks: int) -> int:
    """The configured size, where this many ranks can do it."""
    groups = train.batch_size // norm_size
    if groups % ranks:
        fewer = next(number for number in range(min(ranks, groups), 0, -1) if groups % number == 0)
        smaller = next(size for size in range(min(norm_size, train.batch_size // ranks), 0, -1)
                       if train.batch_size // ranks % size == 0)  # fmt: skip
        raise UserError(
            f"train.norm_size {norm_size} cuts train.batch_size {train.batch_size} into {plural(groups, 'group')}, "
            f"which {ranks} ranks cannot share out evenly: start {plural(fewer, 'rank')}, or set train.norm_size to "
            f"{smaller} or auto{'' if accumulation == 'auto' else ', and train.accumulation to auto'}"
        )
    if accumulation not in ("auto", groups // ranks):
        raise UserError(
            f"train.batch_size {train.batch_size} is not {plural(ranks, 'rank')} x train.accumulation {accumulation} x "
            f"train.norm_size {norm_size}: set train.accumulation to auto, which is {groups // ranks} here"
        )
    return norm_size


def _share(train: TrainConfig, accumulation: Literal["auto"] | int, ranks: int) -> int:
    """The size of a rank's micro-batches."""
    share, micro_batches = train.batch_size // ranks, 1 if accumulation == "auto" else accumulation
    if share % micro_batches:
        raise UserError(
            f"train.batch_size {train.batch_size} cannot be shared out evenly over {plural(ranks, 'rank')} x "
            f"train.accumulation {micro_batches}: choose a multiple of {ranks * micro_batches}, or another "
            "train.accumulation"
        )
    return share // micro_batches


def _as_before(train: TrainConfig, norm_size: int, accumulation: Literal["auto"] | int, ranks: int) -> int:
    """The size that the run has had so far; the next smaller one that these ranks can do where they cannot."""
    share = train.batch_size // ranks
    if share % norm_size:
        if accumulation != "auto":
            return _share(train, accumulation, ranks)
        # Smaller rather than larger: a device that had room for the groups so far has room for these.
        return next(size for size in range(min(norm_size, share), 0, -1) if share % size == 0)
    if accumulation not in ("auto", share // norm_size):
        raise UserError(
            f"train.accumulation {accumulation} on {plural(ranks, 'rank')} does not let BatchNorm "
            f"normalise over {norm_size} images, as it has in this run so far: set it to auto, which is "
            f"{share // norm_size} here, or set train.norm_size to {_share(train, accumulation, ranks)} to change what "
            "a step computes from here on"
        )
    return norm_size


def _keeps_all_statistics(config: Config) -> bool:
    """Whether BatchNorm normalises by the statistics that it began with in the whole network, for the whole run."""
    return config.model.trains_head_alone and config.model.frozen_statistics == "kept"


def _refuse_one_value(config: Config, norm_size: int, ranks: int) -> None:
    """Refuse groups of one image whose last feature map is one value: it has no variance."""
    (_, smallest), *larger_ones = config.data.stages
    shrinks = 2 ** HALVINGS[config.model.stem]
    if norm_size > 1 or any(math.ceil(side / shrinks) > 1 for side in smallest):
        return
    (height, width), grows = smallest, bool(larger_ones)
    where = f"{height} x {width} pixels, the first of data.grow" if grows else f"data.image_size {height} {width}"
    train, larger = config.train, shrinks + 1
    fits = [number for number in range(1, ranks + 1) if train.batch_size % number == 0 and train.batch_size > number]
    remedy = "begin data.grow with 48 or more" if grows else f"data.image_size to {larger} {larger} or more"
    remedy = f"set train.batch_size to {2 * ranks} or more, or {remedy}"
    if train.norm_size == 1:
        remedy = "set train.norm_size to 2 or more, or to auto"
    elif train.batch_size > ranks:  # it is train.accumulation that cuts it so small
        remedy = "set train.accumulation to auto"
    elif fits:
        remedy = f"start {plural(fits[-1], 'rank')}, or, in a new run, {remedy}"
    raise UserError(
        f"BatchNorm would normalise over 1 image, whose last feature map is 1 x 1 at {where}, "
        f"and one value has no variance: {remedy}"
    )
