"""The loop: what a run does, from the first step to the last score."""

import time
from dataclasses import replace
from functools import partial

from distrib.config import Config
from distrib.data.batch import Replacement
from distrib.model.network import AttributeClassifier
from distrib.ranks.meeting import from_rank_0
from distrib.ranks.stopping import Agreement, Stopped
from distrib.ranks.watch import Watch
from distrib.runs.terminal import make_terminal
from distrib.training.checkpoint import Checkpoint, Progress
from distrib.training.checkpointer import Checkpointer
from distrib.training.epoch import (
    look_back,
    report_growth,
    report_non_finite,
    report_replaced,
    score_epoch,
    validate,
    write_results,
)
from distrib.training.grouping import Grouping
from distrib.training.profiling import StepProfile
from distrib.training.speed import SpeedClock
from distrib.training.state import TrainState
from distrib.training.training_run import Outcome, TrainingRun


def train(
    run: TrainingRun,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    agreement: Agreement,
    watch: Watch,
    clock: SpeedClock,
) -> Outcome:
    """Train to the end of the run, or until the ranks agree to stop, from its beginning or from a checkpoint.

    Raises:
        UserError: if an image cannot be read, the run folder cannot be written, or the loss is not finite.
    """
    config, accelerator, plan = run.config, run.accelerator, run.plan
    rank, ranks, accumulation = accelerator.process_index, accelerator.num_processes, grouping.accumulation
    substitute = plan.substitute if config.data.on_error == "skip" else None
    train_decoder = run.make_decoder(grouping.micro_batch, substitute)
    valid_decoder = run.make_decoder(grouping.micro_batch)
    state = TrainState(run, net, grouping, agreement, checkpoint)
    progress = Progress() if checkpoint is None else checkpoint.progress
    progress = replace(progress, norm_size=grouping.norm_size, accumulation=accumulation)
    replaced: list[Replacement] = []
    to_tell = False  # whether a rank has replaced images that the others do not know of
    total_steps, epochs = plan.steps_per_epoch * config.train.epochs, config.train.epochs
    terminal = make_terminal(accelerator.is_main_process, total_steps, state.position.run_step, epochs)

    def between_batches() -> None:
        watch.progress()
        if agreement.round().stop:
            raise Stopped(agreement.reason)

    profile = StepProfile(run, state.position)
    with terminal, Checkpointer(run, state, watch) as checkpointer, profile:
        clock.begin_steps(config.train.precision)
        while not finished(config, progress):
            clock.enter("steps")
            # The epoch says which layers are trained: a stage that frees more has DDP put around the network anew.
            freeze = config.model.freeze_in(progress.epoch + 1)
            if state.enter_epoch(progress) and accelerator.is_main_process:
                run.folder.event("freeze", epoch=progress.epoch + 1, freeze=freeze)
            began = time.monotonic() - progress.seconds

            # The plan says what every step trains on, so an epoch resumes wherever it was interrupted.
            batches = train_decoder.batches(plan.rank_batches(progress.epoch, progress.step, rank, ranks, accumulation))
            steps = clock.steps(zip(*[batches] * accumulation, strict=True), freeze)
            for micro_batches in profile.steps(steps, state.position):
                replaced += [each for batch in micro_batches for each in batch.replaced.values()]
                # What one rank alone knows goes to all in the step's own all-reduce, as does a request to stop.
                agreement.wish(checkpointer.overdue(), checkpointer.has_failed(), replaced=bool(replaced))
                watch.progress()  # a rank that waits for its images is behind those that wait for the rank
                report_growth(run, state.position)
                state.step(micro_batches)
                watch.progress()
                agreed, position = agreement.answer(), state.position
                to_tell |= agreed.replaced

                # An ordinary step ends here: the host begins the next one while the device is still at work, for which
                # only what needs its state waits. The end of an epoch is saved once it is validated.
                save = not position.at_end_of_epoch and (checkpointer.due(position) or agreed.save)
                wait = save or agreed.stop or agreed.failed or position.at_end_of_epoch
                if wait or position.run_step % config.train.log_every == 0:
                    if wait:
                        state.wait()
                    state.look(time.monotonic() - began, clock.look())
                    # What is saved names all that was replaced.
                    if wait or to_tell:
                        progress, to_tell = report_replaced(run, progress, replaced), False

                # A checkpoint that could not be written ends the run, with the same sentence on every rank.
                if agreed.failed:
                    checkpointer.wait()

                # Steps that were not finite come first: what follows them is not kept.
                for look in state.looks(wait):
                    report_non_finite(run, progress, look.stats)
                    metrics, progress = look_back(run, progress, look)
                    run.tracker.step(metrics, look.position.run_step)
                    terminal.step(progress.epoch + 1, look.position.run_step, metrics)
                if save or agreed.stop:
                    clock.enter("checkpoints")
                    checkpointer.save(progress)
                if agreed.stop:
                    return checkpointer.stop(progress, agreement.reason)

            clock.enter("validation")
            # Wishes of the last step have been met or are about to be; during validation only a stop is asked for.
            agreement.settle()
            # Every validation image once. A stop meanwhile keeps the epoch's steps; it is validated on resuming.
            try:
                logits, raw_logits = validate(run, state, valid_decoder, grouping.micro_batch, between_batches)
            except Stopped:
                checkpointer.save(progress)
                return checkpointer.stop(progress, agreement.reason)
            seconds = time.monotonic() - began

            # The results of an epoch wait for the checkpoint under way, so that they are at most one epoch ahead.
            clock.enter("checkpoints")
            checkpointer.wait()
            clock.enter("validation")
            row, scores, progress = from_rank_0(
                accelerator, score_epoch, run, state, progress, logits, raw_logits, seconds
            )
            terminal.epoch(row, best=progress.best_epoch == progress.epoch)
            clock.enter("checkpoints")
            speed = clock.row(progress.epoch, state.position.run_step)
            run.tracker.speed(speed)

            # The next epoch begins here, and so does a run that resumes from this checkpoint, which is written once the
            # results are.
            state.position = state.position.after_epoch()
            checkpointer.save(progress, partial(write_results, run, progress, row, scores, logits, speed))
            watch.started()
    return Outcome(progress)


def finished(config: Config, progress: Progress) -> bool:
    """Whether a run has had all its epochs, is to stop early, or was given up."""
    patience = config.train.early_stopping
    counted_from = max(progress.best_epoch, config.growing_epochs)
    stale = patience is not None and progress.epoch - counted_from >= patience
    return progress.pruned or progress.epoch >= config.train.epochs or (stale and progress.step == 0)
