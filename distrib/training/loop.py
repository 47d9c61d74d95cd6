"""The loop: what a run does, from the first step to the last score."""

import time
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from distrib.base.errors import UserError
from distrib.config import Config
from distrib.data.decoders import make_decoder
from distrib.model.card import model_card
from distrib.model.network import AttributeClassifier
from distrib.model.trained import Description
from distrib.ranks.meeting import from_rank_0
from distrib.ranks.printing import warn
from distrib.ranks.stopping import Agreement, Stopped
from distrib.ranks.watch import Watch
from distrib.runs.folder import METRICS
from distrib.runs.terminal import make_terminal
from distrib.scoring.calibration import fit_temperature, sigmoid, tune_thresholds
from distrib.scoring.evaluation import predict_logits
from distrib.scoring.metrics import Scores, better, score
from distrib.training.checkpoint import Checkpoint, Progress
from distrib.training.grouping import Grouping
from distrib.training.job import Job, Outcome, describe
from distrib.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from distrib.training.saving import Saver, restore
from distrib.training.step import Reading, TrainStep


def train(
    job: Job,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    agreement: Agreement,
    watch: Watch,
) -> Outcome:
    """Train to the end of the run, or until the ranks agree to stop, from its beginning or from a checkpoint.

    Raises:
        UserError: if a picture cannot be read, the run folder cannot be written, or the loss is not finite.
    """
    config, accelerator, plan = job.config, job.accelerator, job.plan
    rank, ranks, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    per_epoch, epochs, accumulation = plan.steps_per_epoch, config.train.epochs, grouping.accumulation
    train_decoder = make_decoder(config.data, job.table, device, grouping.micro_batch)
    valid_decoder = make_decoder(config.data, job.table, device, grouping.micro_batch)

    net.to(device)
    if grouping.synchronised:
        net.synchronise_norms()
    # One optimiser for all that is ever trained, which is what is trained at the end: each stage frees more.
    net.freeze(config.model.freeze_in(epochs))
    optimizer = make_optimizer(net, config.optim)
    net.freeze(config.model.freeze_in(1 if checkpoint is None else checkpoint.progress.epoch + 1))
    # The graph is the same every step, but no_sync, which accumulation needs, is not made for static graphs.
    accelerator.ddp_handler.static_graph = accumulation == 1
    model, optimizer = accelerator.prepare(net, optimizer)
    progress = Progress() if checkpoint is None else restore(checkpoint, net, optimizer, accelerator)
    progress = replace(progress, norm_size=grouping.norm_size, accumulation=accumulation)
    weight = positive_weight(job)
    one_step = TrainStep(config, accelerator, model, optimizer, weight, agreement, progress.skipped)
    saver = Saver(job, net, optimizer)
    if progress.step > per_epoch:
        assert checkpoint is not None
        raise UserError(
            f"{checkpoint.folder} is at step {progress.step} of an epoch of {per_epoch} steps: name another, or start "
            "anew in another run.folder"
        )
    done = progress.epoch * per_epoch + progress.step

    def between_batches() -> None:
        watch.progress()
        if agreement.round():
            raise Stopped(agreement.reason)

    with make_terminal(accelerator.is_main_process, per_epoch * epochs, done, epochs) as terminal, saver:
        while not finished(config, progress):
            policy = config.model.freeze_in(progress.epoch + 1)
            if net.freeze(policy):
                del model, one_step  # and with the last reference to DDP its hooks
                model = wrap_again(accelerator, net)
                one_step = TrainStep(config, accelerator, model, optimizer, weight, agreement, progress.skipped)
                if accelerator.is_main_process:
                    job.folder.event("freeze", epoch=progress.epoch + 1, freeze=policy)
            model.train()
            one_step.begin_epoch(progress.loss_sum)
            began = time.monotonic() - progress.seconds
            mine = plan.rank_batches(progress.epoch, progress.step, rank, ranks, accumulation)
            batches = train_decoder.batches(mine)
            for micro_batches in zip(*[batches] * accumulation, strict=True):
                watch.progress()  # a rank that waits for its pictures is behind those that wait for the rank
                set_learning_rate(optimizer, learning_rate(config.optim, done, per_epoch, epochs))
                one_step(micro_batches, done)
                watch.progress()
                done += 1
                step = done - progress.epoch * per_epoch
                stopping, save_now, old = agreement.reached(), saver.due(step), saver.old()
                all_look = stopping or save_now or done % config.train.log_every == 0 or step == per_epoch
                if not (all_look or old):
                    continue
                reading, seconds = one_step.read(), time.monotonic() - began
                if all_look:
                    report_non_finite(job, progress, reading)
                elif reading.bad != progress.skipped:  # rank 0 looks alone: this is for all of them to see
                    continue
                metrics = {
                    "train/loss": (reading.loss_sum - progress.loss_sum) / max(1, counted(progress, reading, step)),
                    "train/lr": learning_rate(config.optim, done - 1, per_epoch, epochs),
                    "train/gradient_norm": reading.gradient_norm,
                    "train/images_per_second": (step - progress.step) * plan.batch_size / (seconds - progress.seconds),
                }
                progress = replace(progress, step=step, loss_sum=reading.loss_sum, seconds=seconds, skipped=reading.bad)
                if stopping or save_now or (old and step < per_epoch):
                    saver.save(progress, done)
                job.tracker.step(metrics, done)
                terminal.step(progress.epoch + 1, done, metrics)
                if stopping:
                    return saver.stop(progress, agreement.reason)
            try:
                logits = predict_logits(
                    accelerator, model, valid_decoder, job.splits.valid, len(job.table.attributes),
                    grouping.micro_batch, between_batches,
                )  # fmt: skip
            except Stopped:
                saver.save(progress, done)
                return saver.stop(progress, agreement.reason)
            lr = learning_rate(config.optim, done - 1, per_epoch, epochs)
            seconds = time.monotonic() - began
            row, progress = from_rank_0(accelerator, end_epoch, job, net, saver, progress, logits, lr, seconds)
            terminal.epoch(row, best=progress.best_epoch == progress.epoch)
            saver.save(progress, done)
            watch.started()
    return Outcome(progress)


def wrap_again(accelerator: Accelerator, net: AttributeClassifier) -> torch.nn.Module:
    """The network as `accelerator.prepare` returns it, for a net of which another part is trained than before.

    DDP knows the parameters that were trained when it was made. Of the earlier one there is no reference left but the
    accelerator's.
    """
    accelerator.free_memory()
    if accelerator.num_processes > 1:
        # Without this it would put autocast around autocast.
        accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    model: torch.nn.Module = accelerator.prepare(net)
    return model


def finished(config: Config, progress: Progress) -> bool:
    """Whether a run has had all its epochs, is to stop early, or was given up."""
    patience = config.train.early_stopping
    stale = patience is not None and progress.epoch - progress.best_epoch >= patience
    return progress.pruned or progress.epoch >= config.train.epochs or (stale and progress.step == 0)


def end_epoch(
    job: Job,
    net: AttributeClassifier,
    saver: Saver,
    progress: Progress,
    logits: NDArray[np.float32],
    lr: float,
    seconds: float,
) -> tuple[dict[str, float], Progress]:
    """Score the epoch, write it down and keep its weights if they are the best; on rank 0.

    Args:
        job: of the run.
        net: as trained.
        saver: of the checkpoints. A checkpoint is at most one epoch behind metrics.csv and best/.
        progress: at the epoch's last step.
        logits: float32 [validation images, A].
        lr: learning rate of the last step.
        seconds: the epoch took, evaluation included.

    Returns:
        The row of metrics.csv, and the progress with which the next epoch begins.
    """
    chosen, plan, epoch = job.config.checkpoint.best_score, job.plan, progress.epoch + 1
    skipped = sum(step // plan.steps_per_epoch == progress.epoch for step in progress.skipped)
    targets = job.table.targets[job.splits.valid]
    scores = score(job.table.attributes, logits, targets)
    means = scores.mean()
    values = {
        "epoch": epoch,
        "step": epoch * plan.steps_per_epoch,
        "train_loss": progress.loss_sum / max(1, plan.steps_per_epoch - skipped),
        **{f"val_{name}": value for name, value in means.items()},
        "lr": lr,
        "images_per_second": plan.steps_per_epoch * plan.batch_size / progress.seconds,
        "seconds": seconds,
    }
    row = {name: values[name] for name in METRICS}
    saver.wait()
    after = replace(progress, epoch=epoch, step=0, loss_sum=0.0, seconds=0.0)
    if not job.folder.best.exists() or better(chosen, means[chosen], progress.best_score):
        after.best_epoch = epoch
        after.best_score = None if np.isnan(means[chosen]) else means[chosen]
        best = calibrate(describe(job, epoch), scores, logits, targets)
        job.folder.save_best(net.net.state_dict(), logits, best.model_dump(mode="json"), model_card(best))
        job.tracker.best(job.folder.best, {"epoch": epoch, chosen: means[chosen]})
    job.folder.epoch(row, scores)
    job.folder.event("epoch", epoch=epoch, best_epoch=after.best_epoch)
    job.tracker.epoch(row, scores.by_attribute(), epoch * plan.steps_per_epoch)
    # Told of every epoch; a run that has come to its end is not given up any more.
    after.pruned = job.judge(row) and epoch < job.config.train.epochs
    return row, after


def calibrate(
    description: Description, scores: Scores, logits: NDArray[np.float32], targets: NDArray[np.uint8]
) -> Description:
    """The description with the scores, temperatures and thresholds that validation gives.

    Args:
        description: of the network.
        scores: of the validation split.
        logits: float32 [validation images, A].
        targets: uint8 [validation images, A].
    """
    temperature = fit_temperature(logits, targets)
    thresholds = tune_thresholds(sigmoid(logits / temperature), targets)
    return description.model_copy(
        update={
            "temperature": tuple(temperature.tolist()),
            "thresholds": tuple(thresholds.tolist()),
            "validation": {"images": len(targets), **scores.mean()},
            "validation_by_attribute": scores.by_attribute(),
        }
    )


def positive_weight(job: Job) -> torch.Tensor | None:
    """Negatives / positives of each attribute in the training split, float [A]; None where the loss is not weighted."""
    if job.config.train.positive_weight == "none":
        return None
    positives = job.table.targets[job.splits.train].sum(axis=0, dtype=np.int64)
    weight = (len(job.splits.train) - positives) / np.maximum(positives, 1)
    return torch.tensor(weight, dtype=torch.float32, device=job.accelerator.device)


def counted(progress: Progress, reading: Reading, step: int) -> int:
    """How many steps since the last look count in the mean of the loss: those that were not skipped."""
    return step - progress.step - (len(reading.bad) - len(progress.skipped))


def report_non_finite(job: Job, progress: Progress, reading: Reading) -> None:
    """Write down which images the steps had whose loss was not finite, and stop where there were too many of them.

    Every rank that looks reads the same.

    Raises:
        UserError: if the run is to stop.
    """
    per_epoch = job.plan.steps_per_epoch
    for step in reading.bad[len(progress.skipped) :]:
        epoch, within = divmod(step, per_epoch)
        ids = job.plan.batch(epoch, within).ids
        if job.accelerator.is_main_process:
            images = [str(job.table.names[row]) for row in ids]
            job.folder.event("nonfinite", epoch=epoch + 1, step=step + 1, ids=ids.tolist(), images=images)
        if step != reading.fatal:
            warn(f"step {step + 1} (epoch {epoch + 1}) was skipped: its loss or gradient was not finite")
    if reading.fatal is None:
        return
    skips = job.config.train.on_nonfinite == "skip"
    seen = f", after {reading.allowed} that were skipped (train.nonfinite_limit)" if skips else ""
    raise UserError(
        f"the loss or its gradient was not finite in step {reading.fatal + 1} (epoch {reading.fatal // per_epoch + 1})"
        f"{seen}; no weight has moved since: lower optim.lr, set optim.clip_norm, or train.precision no; the images of "
        f"that step are in {job.folder.path / 'events.jsonl'}",
        on_all_ranks=True,
    )
