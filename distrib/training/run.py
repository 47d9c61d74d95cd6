"""A training from its preparation to its end: what surrounds the loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

from accelerate import Accelerator

from distrib.base.errors import OutOfMemory, UserError, out_of_memory
from distrib.base.streams import standard_streams
from distrib.base.words import data_size, duration, percent
from distrib.config import Config
from distrib.model.network import AttributeClassifier
from distrib.ranks.ending import RankLost, stopped_status
from distrib.ranks.meeting import from_rank_0, on_every_rank, on_rank_0
from distrib.ranks.printing import say, warn
from distrib.ranks.stopping import STOP_BUTTON, STOPPED, Agreement, Stopped, StopRequests
from distrib.ranks.watch import Watch
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import model_flops_utilisation, peak_memory, read_speed, seconds_by_part
from distrib.runs.tracking import Tracker, open_tracker
from distrib.training.check import read_data
from distrib.training.checkpoint import Checkpoint, Progress
from distrib.training.grouping import Grouping, group_batch, what_to_lower
from distrib.training.loop import finished, train
from distrib.training.precision import Precision
from distrib.training.probe import try_step
from distrib.training.residency import hold_images
from distrib.training.speed import SpeedClock
from distrib.training.start import (
    as_trained,
    first_model,
    introduce,
    open_folder,
    read_start,
    start_from_patches,
    what_is_finished,
)
from distrib.training.training_run import Judge, Outcome, TrainingRun


@standard_streams(goes_on=True)
def run_training(
    config: Config,
    precision: Precision,
    accelerator: Accelerator,
    notes: list[str],
    requests: StopRequests,
    open_judge: Callable[[RunFolder], Judge],
    make_report: Callable[[TrainingRun], str],
) -> int:
    """Prepare a run, train, and say where the results are; nothing is written before what can be checked is.

    Args:
        config: resolved, and with a run folder.
        precision: as it was chosen.
        accelerator: of this rank.
        notes: warnings about how the configuration was resolved.
        requests: to stop.
        open_judge: gives the judge of the run in a folder; on rank 0.
        make_report: makes the report of a run that has been trained, on rank 0, and returns a line on how that went.

    Returns:
        The exit status.

    Raises:
        UserError: for all that the user can mend.
        RankLost: if another rank has died or hangs.
    """
    clock = SpeedClock(accelerator, config.model.stem)
    table, splits = on_every_rank(accelerator, read_data, config)
    assert config.run.folder is not None
    folder = RunFolder(config.run.folder)
    run = TrainingRun(config, accelerator, table, splits, folder, Tracker())
    try:
        checkpoint = read_start(run)
        outcome = None
        if checkpoint is not None and finished(config, checkpoint.progress):
            outcome = Outcome(checkpoint.progress)
            say(what_is_finished(config, checkpoint))
            if from_rank_0(accelerator, is_done, run, outcome):
                accelerator.end_training()
                return 0
            run = replace(run, config=from_rank_0(accelerator, as_trained, config, checkpoint))
        grouping = from_rank_0(accelerator, group_batch, config, accelerator.num_processes, checkpoint)
        net, origin = on_every_rank(accelerator, first_model, config, table.attributes, checkpoint)
        if outcome is None:
            with written_down(run):
                run, residency = hold_images(run, checkpoint)
                origin = start_from_patches(run, net, origin, checkpoint)
                run, grouping, compilation = try_step(run, net, checkpoint, grouping)
        config = run.config
        # One rank alone looks for the file, so that what is written down as the reason is the file.
        with requests.deferred(folder.preempt if accelerator.is_main_process else None):
            from_rank_0(accelerator, open_folder, run, checkpoint)
            if accelerator.is_main_process:
                if outcome is None:
                    introduce(run, origin, precision, notes, checkpoint, grouping, residency, compilation)
                run = replace(run, judge=open_judge(folder))
            settings, stop = config.model_dump(mode="json"), partial(requests.ask, STOP_BUTTON)
            tracker = on_rank_0(accelerator, open_tracker, config.tracking, folder.path, settings, stop)
            run = replace(run, tracker=tracker or run.tracker)
            _ = run.colours  # read now, and not while all ranks wait for the first checkpoint
            outcome = outcome or watched(run, net, checkpoint, grouping, requests, clock)
            if outcome.stopped_by is not None:
                return leave_stopped(run, outcome, clock)
            if accelerator.is_main_process:
                progress = outcome.progress
                early = progress.epoch < config.train.epochs
                fields = {"stopped_early": early, "pruned": progress.pruned}
                folder.event("end", epochs=progress.epoch, best_epoch=progress.best_epoch, **fields)
            run = replace(run, images=None)
            del net
            accelerator.free_memory()
            accelerator.end_training()  # the other ranks end now, and hold no GPU while rank 0 draws
        return conclude(run, outcome, clock, requests, make_report) if accelerator.is_main_process else 0
    except BaseException:
        run.tracker.finish(exit_code=1)
        raise
    finally:
        folder.unlock()


def watched(
    run: TrainingRun,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    requests: StopRequests,
    clock: SpeedClock,
) -> Outcome:
    """Train, with the ranks watching each other.

    Raises:
        UserError: as `train` does.
        OutOfMemory: in place of what torch or DALI raises for it.
        RankLost: if another rank has died or hangs.
    """

    def give_up(sentence: str) -> None:
        if run.accelerator.is_main_process:
            run.folder.event("lost", reason=sentence)

    limits = run.config.run
    try:
        with (
            written_down(run),
            Watch(run.accelerator, limits.timeout, limits.start_timeout, give_up, requests.pressed) as watch,
        ):
            return train(run, net, checkpoint, grouping, Agreement(requests, run.accelerator), watch, clock)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        lower = what_to_lower(run.config, grouping, run.accelerator.num_processes)
        raise OutOfMemory(str(error), lower) from error
    except RankLost as lost:
        with suppress(UserError):  # the disk may be full
            give_up(str(lost))
        raise


@contextmanager
def written_down(run: TrainingRun) -> Iterator[None]:
    """Write what the user has to mend into the run's events, where a job sees it that would start again otherwise."""
    try:
        yield
    except UserError as error:
        # A rank's own error is its own to write down. Of what may pass a job is started again, as after a crash.
        if not error.may_pass and (run.accelerator.is_main_process or not error.on_all_ranks):
            with suppress(UserError):
                run.folder.make()
                run.folder.event("error", reason=str(error))
        raise


def leave_stopped(run: TrainingRun, outcome: Outcome, clock: SpeedClock) -> int:
    """Say how to resume after a stop, and leave together with the other ranks; returns the exit status."""
    progress = outcome.progress
    if run.accelerator.is_main_process:
        write_last_speed(run, progress, clock)
    run.tracker.finish(exit_code=STOPPED)
    say(
        f"\nstopped by {outcome.stopped_by} in epoch {progress.epoch + 1}, {progress.step} steps into it, and saved; "
        f"resume with --config {run.folder.path / 'config.yaml'} --resume auto"
    )
    # A launcher ends all ranks as soon as one has left with another status than 0.
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return stopped_status()


def conclude(
    run: TrainingRun,
    outcome: Outcome,
    clock: SpeedClock,
    requests: StopRequests,
    make_report: Callable[[TrainingRun], str],
) -> int:
    """Make the report of a run that has been trained, and say where everything is; on rank 0, the others have left."""
    config, folder, progress = run.config, run.folder, outcome.progress
    report, status, began = "", 0, time.monotonic()
    try:
        if wants_report(config, outcome):
            clock.enter("report")
            with requests.raised(folder.preempt):
                report = make_report(run)
            run.tracker.report_seconds(time.monotonic() - began)
    except Stopped as stop:
        again = f"--config {folder.path / 'config.yaml'} --resume auto, or distrib explain {folder.path}"
        report = f"report: stopped by {stop}; the model is safe; make the report with: {again}"
        folder.event("stop", reason=str(stop), epoch=progress.epoch, step=progress.step)
        folder.preempt.unlink(missing_ok=True)
        status = stopped_status()
    write_last_speed(run, progress, clock)
    run.tracker.finish(status)
    best = "undefined" if progress.best_score is None else f"{progress.best_score:.4f}"
    if progress.pruned:
        say(f"\npruned by its study after epoch {progress.epoch}; no report is made")
    elif progress.epoch < config.train.epochs:
        say(f"\nstopped after {progress.epoch} epochs, {config.train.early_stopping} of them without a better score")
    say(f"\nbest epoch: {progress.best_epoch} ({config.checkpoint.best_score} {best}), its weights in {folder.best}")
    if spent := where_the_time_went(folder):
        say(spent)
    kept = "metrics.csv, metrics_by_attribute.csv, speed.csv, events.jsonl, config.yaml, checkpoints/"
    say(f"run folder: {folder.path} ({kept})")
    if report:
        say(report)
    return status


def write_last_speed(run: TrainingRun, progress: Progress, clock: SpeedClock) -> None:
    """Write down what this process did after its last whole epoch; where that fails, nothing else is lost."""
    step = progress.epoch * run.plan.steps_per_epoch + progress.step
    try:
        run.folder.speed(clock.row(progress.epoch, step))
    except UserError as error:
        warn(f"speed.csv lacks its last row, of what this process did after its last whole epoch: {error.__context__}")


def where_the_time_went(folder: RunFolder) -> str:
    """The shares of a run's parts in a line, and in another how its device was used; empty where nothing is known."""
    try:
        rows = read_speed(folder.path)
    except UserError as error:
        return f"time: unknown ({error})"
    seconds = seconds_by_part(rows)
    total = sum(seconds.values())
    if not total:
        return ""
    shares = (f"{part} {percent(spent / total)}" for part, spent in seconds.items() if spent)
    mfu, peaks = model_flops_utilisation(rows), peak_memory(rows)
    used = [f"MFU {percent(mfu)}"] if math.isfinite(mfu) else []
    used += [f"at most {data_size(size)} of the {place}'s memory" for place, size in peaks.items()]
    return f"time: {duration(total)}: {', '.join(shares)}" + (f"\nrank 0: {', '.join(used)}" if used else "")


def wants_report(config: Config, outcome: Outcome) -> bool:
    """Whether a report belongs to this run; not to a trial that its study has given up."""
    return config.explain.after_training and not outcome.progress.pruned


def is_done(run: TrainingRun, outcome: Outcome) -> bool:
    """Whether a finished run has all that belongs to it; on rank 0, as a file may reach other machines later."""
    report = not wants_report(run.config, outcome) or run.folder.has_report()
    return report and bool(run.folder.events("end"))
