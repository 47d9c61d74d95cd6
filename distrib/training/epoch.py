"""What the steps of an epoch have come to: read from the device, scored, written down."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.data.batch import Replacement
from distrib.data.decoders import Decoder
from distrib.model.card import model_card
from distrib.model.trained import Description
from distrib.ranks.printing import say, warn
from distrib.runs.metrics import METRICS, RAW_LOSS
from distrib.scoring.calibration import fit_temperature, sigmoid, tune_thresholds
from distrib.scoring.evaluation import predict_logits
from distrib.scoring.metrics import Scores, better, mean_loss, mean_of_defined, score
from distrib.training.checkpoint import Progress
from distrib.training.ema import SideBySide
from distrib.training.position import Position
from distrib.training.state import Look, TrainState
from distrib.training.step import StepStats
from distrib.training.training_run import TrainingRun, describe

_SAID = 5  # replaced images that the terminal names at once


def look_back(run: TrainingRun, progress: Progress, look: Look) -> tuple[dict[str, float], Progress]:
    """What the steps since the last look have come to.

    Args:
        run: that they belong to.
        progress: at the last look.
        look: at the steps of the epoch so far.

    Returns:
        The metrics of these steps, by their names in W&B, and the progress at the moment of the look.
    """
    steps, stats = look.position.step - progress.step, look.stats
    skipped = len(stats.bad) - len(progress.skipped)
    metrics = {
        "train/loss": (stats.loss_sum - progress.loss_sum) / max(1, steps - skipped),
        "train/lr": look.learning_rate,
        "train/gradient_norm": stats.gradient_norm,
        "train/images_per_second": steps * run.plan.batch_size / (look.seconds - progress.seconds),
        **look.speed,
    }
    if (size := run.plan.size(look.position.run_step - 1)) and run.config.data.grow != "none":
        metrics["train/image_height"] = size[0]
    now = replace(progress, step=look.position.step, loss_sum=stats.loss_sum, seconds=look.seconds, skipped=stats.bad)
    return metrics, now


def report_growth(run: TrainingRun, position: Position) -> None:
    """Write down where the next step's images have another size than those of the step before."""
    size = run.plan.sizes.get(position.run_step)
    if size is None or position.run_step == 0 or not run.accelerator.is_main_process:
        return
    step, epoch = position.run_step + 1, position.epoch + 1
    run.folder.event("grow", epoch=epoch, step=step, image_size=size)
    say(f"images:  {size[0]} x {size[1]} pixels from step {step} on (epoch {epoch})")


def report_non_finite(run: TrainingRun, progress: Progress, stats: StepStats) -> None:
    """Write down which images the steps had whose loss was not finite, and stop where there were too many of them.

    Every rank that looks reads the same.

    Raises:
        UserError: if the run is to stop.
    """
    per_epoch = run.plan.steps_per_epoch
    for step in stats.bad[len(progress.skipped) :]:
        epoch, within = divmod(step, per_epoch)
        ids = run.plan.batch(epoch, within).ids
        if run.accelerator.is_main_process:
            images = [str(run.table.names[row]) for row in ids]
            run.folder.event("nonfinite", epoch=epoch + 1, step=step + 1, ids=ids.tolist(), images=images)
        if step != stats.fatal:
            warn(f"step {step + 1} (epoch {epoch + 1}) was skipped: its loss or gradient was not finite")
    if stats.fatal is None:
        return
    skips = run.config.train.on_nonfinite == "skip"
    seen = f", after {stats.allowed} that were skipped (train.nonfinite_limit)" if skips else ""
    raise UserError(
        f"the loss or its gradient was not finite in step {stats.fatal + 1} (epoch {stats.fatal // per_epoch + 1})"
        f"{seen}; no weight has moved since: lower optim.lr, set optim.clip_norm, or train.precision no; the images of "
        f"that step are in {run.folder.path / 'events.jsonl'}",
        on_all_ranks=True,
    )


def report_replaced(run: TrainingRun, progress: Progress, mine: list[Replacement]) -> Progress:
    """Write down which images were trained on in place of broken ones since the last look.

    All ranks call it together.

    Args:
        run: that they belong to.
        progress: at the last look.
        mine: those of this rank; they are taken from the list.

    Returns:
        The progress with their rows.
    """
    if run.config.data.on_error == "stop":
        return progress
    found = sorted(gather_object(mine), key=lambda each: each.row)
    mine.clear()
    if run.accelerator.is_main_process:
        for each in found:
            names = run.table.names[each.row], run.table.names[each.by]
            run.folder.event(
                "replaced", epoch=each.epoch + 1, row=each.row, image=names[0], by=names[1], why=each.reason
            )
        for each in found[:_SAID]:
            warn(f"{each.reason}; {run.table.names[each.by]} is trained on in its place (epoch {each.epoch + 1})")
        if len(found) > _SAID:
            warn(f"{len(found) - _SAID} more images were replaced: {run.folder.path / 'events.jsonl'} names them")
    return replace(progress, replaced=tuple(sorted({*progress.replaced, *(each.row for each in found)})))


def validate(
    run: TrainingRun, state: TrainState, decoder: Decoder, batch_size: int, before_batch: Callable[[], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits float32 [validation images, A], the same on every rank; each image is decoded once.

    All ranks call it together.

    Args:
        run: that the epoch belongs to.
        state: as trained.
        decoder: of this rank.
        batch_size: images in a forward pass of one rank.
        before_batch: as in `predict_logits`.

    Returns:
        Those of the weights that are kept; and where these are an average, those of the trained network itself.
    """
    accelerator, rows, count = run.accelerator, run.splits.valid, len(run.table.attributes)
    how: dict[str, Any] = {"zoom": run.config.data.eval_zoom, "before_batch": before_batch}
    if state.average is None:
        return predict_logits(accelerator, state.model, decoder, rows, count, batch_size, **how), None
    trained = accelerator.unwrap_model(state.model, keep_fp32_wrapper=True)
    both = SideBySide(state.average.net, trained)
    logits = predict_logits(accelerator, both, decoder, rows, 2 * count, batch_size, **how)
    kept, raw = (np.ascontiguousarray(half) for half in np.split(logits, 2, axis=1))
    return kept, raw


def score_epoch(
    run: TrainingRun,
    state: TrainState,
    progress: Progress,
    logits: NDArray[np.float32],
    raw_logits: NDArray[np.float32] | None,
    seconds: float,
) -> tuple[dict[str, float], Scores, Progress]:
    """Score the epoch and decide how the run continues, which is all that the ranks wait for; on rank 0.

    The results of the epoch before are on the disk.

    Args:
        run: that the epoch belongs to.
        state: as trained.
        progress: at the epoch's last step.
        logits: float32 [validation images, A], of the weights that are kept.
        raw_logits: of the trained network itself, where those are its average; else None.
        seconds: the epoch took, evaluation included.

    Returns:
        The row of metrics.csv, the scores of each attribute, and the progress with which the next epoch begins.
    """
    chosen, plan, epoch = run.config.checkpoint.best_score, run.plan, progress.epoch + 1
    skipped = sum(step // plan.steps_per_epoch == progress.epoch for step in progress.skipped)
    targets = run.table.targets[run.splits.valid]
    scores = score(run.table.attributes, logits, targets)
    means = scores.mean()
    values = {
        "epoch": epoch,
        "step": epoch * plan.steps_per_epoch,
        "train_loss": progress.loss_sum / max(1, plan.steps_per_epoch - skipped),
        **{f"val_{name}": value for name, value in means.items()},
        "lr": state.learning_rate,
        "images_per_second": plan.steps_per_epoch * plan.batch_size / progress.seconds,
        "seconds": seconds,
    }
    row = {name: values[name] for name in METRICS}
    if raw_logits is not None:
        row[RAW_LOSS] = float(mean_of_defined(mean_loss(raw_logits, targets)))
    after = replace(progress, epoch=epoch, step=0, loss_sum=0.0, seconds=0.0)
    counts = epoch > run.config.growing_epochs  # before that it was trained on smaller images
    if counts and (not run.folder.best.exists() or better(chosen, means[chosen], progress.best_score)):
        after.best_epoch = epoch
        after.best_score = None if np.isnan(means[chosen]) else means[chosen]
    run.tracker.epoch(row, scores.by_attribute(), epoch * plan.steps_per_epoch)
    # Told of every epoch that counts; a run that has come to its end is not given up any more.
    after.pruned = counts and run.judge(row) and epoch < run.config.train.epochs
    return row, scores, after


def write_results(
    run: TrainingRun,
    progress: Progress,
    row: Mapping[str, float],
    scores: Scores,
    logits: NDArray[np.float32],
    speed: Mapping[str, float | None],
    weights: dict[str, torch.Tensor],
) -> None:
    """Write an epoch down, and keep its weights, calibrated, if they are the best; beside the steps of the next epoch.

    Args:
        run: that the epoch belongs to.
        progress: with which the next epoch begins.
        row: of metrics.csv.
        scores: of each attribute.
        logits: float32 [validation images, A].
        speed: row of speed.csv.
        weights: that are kept, as they are at the end of the epoch, by torchvision's names.

    Raises:
        UserError: if the run folder cannot be written.
    """
    epoch = progress.epoch
    if progress.best_epoch == epoch:
        best = calibrate(describe(run, epoch), scores, logits, run.table.targets[run.splits.valid])
        run.folder.save_best(weights, logits, best.model_dump(mode="json"), model_card(best))
        chosen = run.config.checkpoint.best_score
        run.tracker.best(run.folder.best, {"epoch": epoch, chosen: row[f"val_{chosen}"]})
    run.folder.epoch(row, scores)
    run.folder.speed(speed)
    run.folder.event("epoch", epoch=epoch, best_epoch=progress.best_epoch)


def calibrate(
    description: Description, scores: Scores, logits: NDArray[np.float32], targets: NDArray[np.uint8]
) -> Description:
    """The description with the scores, temperatures and thresholds that validation gives.

    Args:
        description: of the network; `tuned_for` says which thresholds decide.
        scores: of the validation split.
        logits: float32 [validation images, A].
        targets: uint8 [validation images, A].
    """
    temperature = fit_temperature(logits, targets)
    found = tune_thresholds(sigmoid(logits / temperature), targets)
    thresholds = {score: tuple(each.tolist()) for score, each in found.items()}
    return description.model_copy(
        update={
            "temperature": tuple(temperature.tolist()),
            "thresholds": thresholds.pop(description.tuned_for),
            "other_thresholds": thresholds,
            "validation": {"images": len(targets), **scores.mean()},
            "validation_by_attribute": scores.by_attribute(),
        }
    )
