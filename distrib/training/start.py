"""How a training begins: its data, its folder, the checkpoint that it resumes from or its first weights."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch

from distrib.base.errors import UserError
from distrib.base.files import remove_leftovers
from distrib.base.paths import fitting_name
from distrib.base.threads import pool_for_torch
from distrib.base.words import plural
from distrib.config import RANDOM, Config
from distrib.data.batch import Request
from distrib.data.decoders import TorchDecoder, threads_of
from distrib.data.jpeg_hardware import describe_jpeg_hardware, has_jpeg_hardware
from distrib.data.plan import Plan
from distrib.model.network import AttributeClassifier
from distrib.model.patches import principal_filters
from distrib.model.weight_files import CONV1
from distrib.model.weights import Origin, make_model
from distrib.ranks.environment import launch_id, launcher, restarts
from distrib.ranks.machine import describe_machine
from distrib.ranks.meeting import from_rank_0, on_every_rank, on_rank_0
from distrib.ranks.printing import say, warn
from distrib.ranks.waiting import waiting, waiting_line
from distrib.ranks.watch import Watch
from distrib.runs.folder import LEAVES_WITHIN, RunFolder
from distrib.runs.wandb_settings import resolve_wandb
from distrib.training.checkpoint import (
    Checkpoint,
    DamagedError,
    Progress,
    find_checkpoint,
    later_than,
    load_checkpoint,
    refuse_changes,
    set_aside,
)
from distrib.training.compilation import mode_of
from distrib.training.grouping import Grouping, launch_bound
from distrib.training.loop import finished
from distrib.training.precision import Precision
from distrib.training.probe import Compilation
from distrib.training.residency import Residency, data_of
from distrib.training.training_run import TrainingRun

# Training images from whose patches the first filters are computed: some 700,000 patches.
IMAGES_OF_PATCHES = 1024
# The largest side in pixels of the images that `model.stem: small` is meant for.
SMALL_IMAGE = 64


def name_folder(config: Config, name: str) -> Config:
    """The configuration with a run folder in it; on rank 0.

    Raises:
        UserError: for what W&B refuses.
    """
    if config.run.folder is None:
        launched_by = launcher()  # and not now, so that a restart by it comes to the same folder
        began = time.localtime(time.time() if launched_by is None else launched_by.create_time())
        launched = time.strftime("%Y%m%d-%H%M%S", began)
        config = config.replace("run", folder=Path("runs") / fitting_name(name, f"-{launched}"))
    resolve_wandb(config.tracking, config.run.folder)
    return config


def read_start(run: TrainingRun) -> Checkpoint | None:
    """The checkpoint to resume from, on every rank; None for a new run.

    Rank 0 chooses it, and what it has read and verified to do so is not read again.

    Raises:
        UserError: on every rank, as `find_start` does on rank 0 or `verify_start` on any.
    """
    chosen = on_rank_0(run.accelerator, find_start, run.config, run.folder)
    path = from_rank_0(run.accelerator, lambda: None if chosen is None else chosen.folder)
    return None if path is None else on_every_rank(run.accelerator, verify_start, run, path, chosen)


def find_start(config: Config, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to resume from, None for a new run; locks a folder that is to be taken up; on rank 0.

    Raises:
        UserError: if the folder holds or is in use by another run, or no checkpoint is whole.
    """
    resume = folder.meant(config.run.resume)
    folder.check(resume)
    if resume == "never":
        if folder.path.is_dir():  # before anything takes its time
            folder.lock()
        return None
    if folder.path.is_dir():
        folder.lock(patience=LEAVES_WITHIN)
        remove_leftovers(folder.checkpoints)
    # A row of metrics.csv is written when the checkpoint of the row before is on the disk, or could not be written.
    if not any(folder.checkpoints.glob("step-*")) and folder.epochs() > 1 + len(folder.events("checkpoint_failed")):
        raise UserError(
            f"{folder.path} has a run of {folder.epochs()} epochs and no checkpoint of it in {folder.checkpoints}: "
            "put one back, or start anew in another run.folder"
        )
    return choose(folder, resume)


def choose(folder: RunFolder, resume: str) -> Checkpoint | None:
    """The checkpoint that --resume, as auto or a path, means in this folder; None for a new run.

    Raises:
        UserError: as `find_checkpoint` does.
    """
    origin = folder.origin() if resume == "auto" else None
    if origin is not None and not origin.exists():
        raise UserError(
            f"the run in {folder.path} began from {origin}, which is gone, and has no checkpoint of its own yet: put "
            "it back, or start anew in another run.folder"
        )
    return find_checkpoint(folder.checkpoints, resume if origin is None else str(origin), warn)


def what_is_finished(config: Config, checkpoint: Checkpoint) -> str:
    """That there is nothing left to train after a checkpoint, and what would change that."""
    if checkpoint.progress.pruned:
        return f"{checkpoint.folder} is finished: its study gave it up after {checkpoint.progress.epoch} epochs"
    more = "train.epochs" if checkpoint.progress.epoch >= config.train.epochs else "train.early_stopping"
    return f"{checkpoint.folder} is finished: {checkpoint.progress.epoch} epochs; raise {more} to continue"


def as_trained(config: Config, checkpoint: Checkpoint) -> Config:
    """The configuration of a run that has been trained, with what it chose by itself in place of `auto`.

    Args:
        config: as it is asked for now.
        checkpoint: the run's last.
    """
    if config.train.compile == "auto":
        config = config.replace("train", compile=mode_of(checkpoint))
    if config.data.resident == "auto":
        config = config.replace("data", resident=data_of(checkpoint).resident)
    return config


def verify_start(run: TrainingRun, path: Path, checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint that rank 0 has chosen.

    Args:
        run: that is to resume from it.
        path: its folder.
        checkpoint: the same as read and verified already; None: it is read here.

    Raises:
        UserError: if it is not whole on this machine, or is one of another training.
    """
    try:
        checkpoint = checkpoint or load_checkpoint(path)
    except DamagedError as damage:
        raise UserError(
            f"{path} is not a complete checkpoint here ({damage}): put the run folder where all machines see it"
        ) from None
    refuse_changes(checkpoint, run.config, run.data, run.colours)
    refuse_finished(checkpoint, run.config, run.folder)
    return checkpoint


def refuse_finished(checkpoint: Checkpoint, config: Config, folder: RunFolder) -> None:
    """Refuse a new run from a checkpoint elsewhere that would not train a step, and so have no best/ either.

    Raises:
        UserError: if it is one.
    """
    elsewhere = checkpoint.folder.parent.resolve() != folder.checkpoints.resolve()
    if elsewhere and finished(config, checkpoint.progress):
        raise UserError(f"{what_is_finished(config, checkpoint)}; nothing is left to train in {folder.path}")


def first_model(
    config: Config, attributes: Sequence[str], checkpoint: Checkpoint | None
) -> tuple[AttributeClassifier, Origin]:
    """The network, and where its weights come from.

    Raises:
        UserError: as `make_model` does.
    """
    if checkpoint is None:
        return make_model(config.model, attributes, config.train.channels_last, config.train.seed)
    progress = checkpoint.progress
    model = config.model
    net = AttributeClassifier(len(attributes), config.train.channels_last, model.frozen_statistics, model.stem)
    return net, Origin(f"resumes from {checkpoint.folder}: {progress.epoch} epochs and {progress.step} steps")


def start_from_patches(
    run: TrainingRun, net: AttributeClassifier, origin: Origin, checkpoint: Checkpoint | None
) -> Origin:
    """Give a new network the first filters that `model.weights patches` asks for; all ranks call this.

    Args:
        run: whose first training images are looked at, cropped, mirrored and resized as they will be trained on.
        net: on the CPU, and changed.
        origin: of its weights.
        checkpoint: that the run resumes from; None: it is new.

    Returns:
        Where its weights come from now.

    Raises:
        UserError: on every rank, if one of the images is broken, and `data.on_error` is stop.
        RankLost: if another rank has died or hangs meanwhile.
    """
    if checkpoint is not None or run.config.model.weights != "patches":
        return origin
    limit = run.config.run.start_timeout
    with Watch(run.accelerator, limit, limit, lambda _: None):
        # One rank computes them, as eigenvectors may differ in their last bits from processor to processor.
        filters, count = from_rank_0(run.accelerator, filters_of, run, net)
    with torch.no_grad():
        net.net.conv1.weight.copy_(filters)
    return replace(origin, summary=f"random weights, but {CONV1} from patches of {count:,} training images")


def filters_of(run: TrainingRun, net: AttributeClassifier) -> tuple[torch.Tensor, int]:
    """First filters from patches of a run's first training images, and how many images these are."""
    substitute = run.plan.substitute if run.config.data.on_error == "skip" else None
    # The reference, so that the filters do not depend on the machine's decoder.
    decoder = TorchDecoder(run.config.data, run.table, torch.device("cpu"), substitute)
    requests = first_images(run.plan, IMAGES_OF_PATCHES)
    images = (batch.images_BHWC for batch in decoder.batches(requests))
    with pool_for_torch(1, "patches") as pool:  # in one thread: the order of sums depends on the number of threads
        filters = pool.submit(principal_filters, net, images).result()
    return filters, sum(map(len, requests))


def first_images(plan: Plan, count: int) -> list[Request]:
    """So many images of the first epoch as a run begins with them, or all of those."""
    steps = min(plan.steps_per_epoch, -(-count // plan.batch_size))
    return [plan.batch(0, step)[: count - step * plan.batch_size] for step in range(steps)]


def open_folder(run: TrainingRun, checkpoint: Checkpoint | None) -> None:
    """Make the run folder, or take up an earlier run's; on rank 0.

    Raises:
        UserError: if it cannot be written, or is in use by another run.
    """
    config, folder = run.config, run.folder
    folder.make()
    folder.lock()
    if checkpoint is None and any(folder.checkpoints.glob("step-*")):
        raise UserError(f"run.folder {folder.path} has just been taken by another run: choose another, or resume it")
    folder.open()
    began = (launcher() or psutil.Process()).create_time()
    if folder.preempt.exists() and folder.preempt.stat().st_mtime < began:
        warn(f"{folder.preempt} is older than this run: it is removed")
        folder.preempt.unlink()
    progress = Progress() if checkpoint is None else checkpoint.progress
    steps = progress.epoch * run.plan.steps_per_epoch + progress.step
    # Wherever the checkpoint itself is: it may be named by a link, or be a copy.
    later = later_than(folder.checkpoints, steps)
    # What came after the checkpoint will be trained again.
    folder.forget_after(progress.epoch, steps)
    # Before the checkpoints that it goes by are set aside: a kill in between changes nothing then.
    if folder.recall_best(progress.best_epoch, bool(later)) and checkpoint is not None:
        kept = f" and is kept as {folder.passed_over_best}" if later else ""
        warn(f"{folder.best} is of an epoch later than {checkpoint.folder}{kept}: the next epoch takes its place")
    for each in later:
        aside = set_aside(each)
        warn(f"{each} is passed over, and is kept as {aside}, which no run reads")
    folder.write_config(config.to_yaml())


def introduce(
    run: TrainingRun,
    origin: Origin,
    precision: Precision,
    notes: list[str],
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    residency: Residency,
    compilation: Compilation,
) -> None:
    """Say what is about to be trained on what, on the terminal and in events.jsonl; on rank 0."""
    config, accelerator, table, splits = run.config, run.accelerator, run.table, run.splits
    notes = [*notes, *table.notes, *splits.notes, *config.ineffective(), *grouping.notes, *residency.notes]
    notes += [*idle_gpu(config, precision, grouping), *large_for_stem(config), *unmeasured_statistics(config)]
    notes += larger_than_trained_on(config)
    notes += compilation.notes
    sizes = {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)}
    attributes = plural(len(table.attributes), "attribute") if len(table.attributes) > 1 else table.attributes[0]
    machine = describe_machine(accelerator)
    fold = "" if config.data.fold == "none" else f" (fold {config.data.fold} of the training split)"
    how_many = f"{sizes['train']:,} train, {sizes['valid']:,} valid{fold}, {sizes['test']:,} test"
    say(f"data:    {config.data.root}, {attributes}; {how_many}")
    how = f"precision {precision.name}{precision.reason}, decoder {config.data.decoder}, {compilation.line}"
    say(f"machine: {plural(accelerator.num_processes, 'rank')} on {machine['device']}, {how}")
    by_dali = config.data.decoder == "dali" and config.run.device == "cuda"
    jpeg_hardware = has_jpeg_hardware() if by_dali else None
    if by_dali and residency.mode == "never":
        say(f"         {describe_jpeg_hardware(config.data, jpeg_hardware, threads_of(config.data))}")
    elif by_dali:
        say("         JPEG hardware: not used, so that the pixels of images in memory do not depend on their batch")
    if (line := waiting_line()) is not None:
        say(f"         {line}")
    say(f"images:  {residency.line}")
    if len(run.plan.sizes) > 1:
        parts = [f"{height} x {width} from step {first + 1} on" for first, (height, width) in run.plan.sizes.items()]
        say(f"         they grow (height x width in pixels): {', '.join(parts)}")
    stem = "" if config.model.stem == "imagenet" else f" with the stem {config.model.stem}"
    say(f"model:   {config.model.name}{stem}, {origin.summary}")
    for line in origin.lines():
        say(f"         {line}")
    for note in notes:
        warn(note)
    begins = Progress() if checkpoint is None else checkpoint.progress
    run.folder.event(
        "start",
        **machine,
        openmp=waiting(),
        precision=precision.name,
        precision_seconds=precision.seconds or None,
        decoder=config.data.decoder,
        compile=compilation.mode,
        compile_seconds=compilation.seconds or None,
        resident=residency.mode,
        jpeg_hardware=jpeg_hardware,
        deterministic=config.train.deterministic,
        norm_size=grouping.norm_size,
        accumulation=grouping.accumulation,
        splits=sizes,
        attributes=table.attributes,
        weights=asdict(origin),
        checkpoint=None if checkpoint is None else str(checkpoint.folder.resolve()),
        image_size=run.plan.size(begins.epoch * run.plan.steps_per_epoch + begins.step),
        freeze=config.model.freeze_in(begins.epoch + 1),
        warnings=notes,
        launch=launch_id(),
        restarts=restarts(),
    )
    if checkpoint is not None:
        progress = checkpoint.progress
        run.folder.event("resume", checkpoint=str(checkpoint.folder), epoch=progress.epoch, step=progress.step)
        if residency.before is not None:
            fields = {"before": residency.before, "now": residency.mode, "why": residency.why}
            run.folder.event("resident", **fields, epoch=progress.epoch, step=progress.step)
        if grouping.before is not None:
            now, before = grouping.norm_size, grouping.before
            run.folder.event("norm_size", before=before, now=now, epoch=progress.epoch, step=progress.step)


def idle_gpu(config: Config, precision: Precision, grouping: Grouping) -> list[str]:
    """A warning where a rank's micro-batches do not fill its GPU; none for one that is too slow to wait for a host,
    none for the small stem, whose images are so much more work, and none for CUDA graphs, which take few launches."""
    if config.run.device == "cpu" or precision.name == "no" or config.model.stem == "small":
        return []
    if config.train.compile in ("reduce-overhead", "max-autotune"):
        return []
    device = torch.cuda.get_device_properties()
    if device.major < 8:  # before Ampere
        return []
    note = launch_bound(grouping.micro_batch, config.data.image_size, device.multi_processor_count)
    return [] if note is None else [note]


def large_for_stem(config: Config) -> list[str]:
    """A warning where the small stem is at work on images that are not small."""
    height, width = config.data.image_size
    if config.model.stem == "imagenet" or max(height, width) <= SMALL_IMAGE:
        return []
    return [
        f"model.stem is small, and data.image_size is {height} {width}: it takes some 15 times the work and memory of "
        f"the stem imagenet, which suits images of more than {SMALL_IMAGE} pixels"
    ]


def larger_than_trained_on(config: Config) -> list[str]:
    """A warning where evaluation looks at less of an image than any training crop has."""
    data = config.data
    if data.eval_zoom >= data.min_zoom:
        return []
    return [
        f"data.eval_zoom is {data.eval_zoom:g}, and data.min_zoom {data.min_zoom:g}: evaluation looks at less of an "
        "image than the smallest training crop has, so it sees faces larger than any in training; set data.eval_zoom "
        f"to {(1 + data.min_zoom) / 2:g}, the mean of the crops' sides"
    ]


def unmeasured_statistics(config: Config) -> list[str]:
    """A warning where frozen layers with random weights keep the statistics that they were made with."""
    model = config.model
    random = model.weights in RANDOM and not model.trains_head_alone  # of which another warning speaks
    if not random or model.freeze == "none" or model.frozen_statistics == "updated":
        return []
    return [
        f"model.freeze is {model.freeze}, and model.weights {model.weights}: BatchNorm in frozen layers keeps the mean "
        "0 and the variance 1 that it was made with, and does not normalise: set model.frozen_statistics to updated"
    ]
