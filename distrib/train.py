"""Trains ResNet18 on face attributes.

accelerate launch --config_file launch/cpu.yaml distrib/train.py --config configs/celeba.yaml --optim.lr 3e-4
python distrib/train.py --config configs/celeba.yaml      # one process, the same options
"""

import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from distrib.ranks.stopping import StopRequests

    REQUESTS = StopRequests()
    REQUESTS.listen()  # the imports below take seconds

import psutil
from accelerate import Accelerator

from distrib.base.errors import UserError
from distrib.base.paths import fitting_name
from distrib.base.streams import standard_streams
from distrib.config import Config, load_config
from distrib.data.splits import Splits, digest, make_splits
from distrib.data.table import Table, read_table
from distrib.explaining.report import JOBS, check_options, check_photograph, explain, make_study
from distrib.model.network import AttributeClassifier
from distrib.model.weights import Origin, make_model
from distrib.ranks.ending import RankLost, run_program, stopped_status
from distrib.ranks.environment import launch_id, launcher, restarts
from distrib.ranks.machine import describe_machine, fallbacks, resolve, use_all_cores
from distrib.ranks.meeting import check_ranks, from_rank_0, make_accelerator, meet, on_every_rank
from distrib.ranks.printing import say, warn
from distrib.ranks.stopping import STOP_BUTTON, STOPPED, Agreement, Stopped, StopRequests
from distrib.ranks.watch import Watch
from distrib.runs.folder import LEAVES_WITHIN, RunFolder
from distrib.runs.tracking import NullTracker, Tracker, open_tracker
from distrib.runs.wandb_settings import resolve_wandb
from distrib.training.checkpoint import (
    Checkpoint,
    DamagedError,
    Progress,
    find_checkpoint,
    later_than,
    load_checkpoint,
    refuse_changes,
    remove_leftovers,
    set_aside,
)
from distrib.training.grouping import Grouping, check_batch, group_batch
from distrib.training.job import Outcome, TrainingRun, never
from distrib.training.loop import finished, train
from distrib.training.precision import Precision, choose_precision


@standard_streams()
def main(argv: Sequence[str] | None = None, requests: StopRequests | None = None) -> int:
    """Run the program.

    Args:
        argv: the command line; None: this process's own.
        requests: to stop; None: from this process's signals, while this runs.

    Returns:
        The exit status: 0; 1 if another rank was lost; 2 for what the user can mend; 3 if memory ran out; 75 if it was
        asked to stop and did, after saving.
    """
    show_log()
    requests = requests or StopRequests()

    def prepare() -> tuple[Config, Precision, Accelerator, list[str]]:
        asked, name = load_config(sys.argv[1:] if argv is None else argv)
        check_ranks(asked)
        config = resolve(asked)
        ranks = meet(config)
        config = from_rank_0(ranks, name_folder, config, name)
        precision = Precision(config.train.precision, {})
        if precision.name == "auto":
            precision = from_rank_0(ranks, choose_precision, config, ranks.num_processes)
            config = config.replace("train", precision=precision.name)
        return config, precision, make_accelerator(config), fallbacks(asked, config)

    with requests.listening():
        return run_program(prepare, lambda ready: run_training(*ready, requests), "distrib: interrupted")


def show_log() -> None:
    """Let what the package logs, such as an outage of W&B, appear beside its own lines."""
    log = logging.getLogger("distrib")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("distrib: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


@standard_streams(goes_on=True)
def run_training(
    config: Config, precision: Precision, accelerator: Accelerator, notes: list[str], requests: StopRequests
) -> int:
    """Prepare a run, train, and say where the results are; nothing is written before what can be checked is.

    Args:
        config: resolved, and with a run folder.
        precision: as it was chosen.
        accelerator: of this rank.
        notes: warnings about how the configuration was resolved.
        requests: to stop.

    Returns:
        The exit status.

    Raises:
        UserError: for all that the user can mend.
        RankLost: if another rank has died or hangs.
    """
    table, splits = on_every_rank(accelerator, read_data, config)
    assert config.run.folder is not None
    folder = RunFolder(config.run.folder)
    run = TrainingRun(config, accelerator, table, splits, folder, NullTracker())
    try:
        checkpoint = read_start(run)
        outcome = None
        if checkpoint is not None and finished(config, checkpoint.progress):
            outcome = Outcome(checkpoint.progress)
            say(what_is_finished(config, checkpoint))
            if from_rank_0(accelerator, is_done, run, outcome):
                accelerator.end_training()
                return 0
        grouping = from_rank_0(accelerator, group_batch, config, accelerator.num_processes, checkpoint)
        net, origin = on_every_rank(accelerator, first_model, config, table.attributes, checkpoint)
        # One rank alone looks for the file, so that what is written down as the reason is the file.
        with requests.deferred(folder.preempt if accelerator.is_main_process else None):
            from_rank_0(accelerator, open_folder, config, folder, checkpoint)
            if accelerator.is_main_process:
                if outcome is None:
                    introduce(run, origin, precision, notes, checkpoint, grouping)
                run = replace(run, judge=open_judge(folder))
            run = replace(run, tracker=open_tracker_on_rank_0(run, requests))
            outcome = outcome or watched(run, net, checkpoint, grouping, requests)
            if outcome.stopped_by is not None:
                return leave_stopped(run, outcome)
            if accelerator.is_main_process:
                progress = outcome.progress
                early = progress.epoch < config.train.epochs
                fields = {"stopped_early": early, "pruned": progress.pruned}
                folder.event("end", epochs=progress.epoch, best_epoch=progress.best_epoch, **fields)
            del net
            accelerator.free_memory()
            accelerator.end_training()  # the other ranks end now, and hold no GPU while rank 0 draws
        return conclude(run, outcome, requests) if accelerator.is_main_process else 0
    except BaseException:
        run.tracker.finish(exit_code=1)
        raise
    finally:
        folder.unlock()


def open_tracker_on_rank_0(run: TrainingRun, requests: StopRequests) -> Tracker:
    """The tracker of a run; on the other ranks one that records nothing.

    Raises:
        UserError: on every rank, as `open_tracker` does on rank 0.
    """
    trackers: list[Tracker] = []

    def open_here() -> None:
        settings = run.config.model_dump(mode="json")
        stop = partial(requests.ask, STOP_BUTTON)
        trackers.append(open_tracker(run.config.tracking, run.folder.path, settings, stop))

    from_rank_0(run.accelerator, open_here)
    return trackers[0] if trackers else NullTracker()


def watched(
    run: TrainingRun,
    net: AttributeClassifier,
    checkpoint: Checkpoint | None,
    grouping: Grouping,
    requests: StopRequests,
) -> Outcome:
    """Train, with the ranks watching each other.

    Raises:
        UserError: as `train` does.
        RankLost: if another rank has died or hangs.
    """

    def give_up(sentence: str) -> None:
        if run.accelerator.is_main_process:
            run.folder.event("lost", reason=sentence)

    limits = run.config.run
    try:
        with Watch(run.accelerator, limits.timeout, limits.start_timeout, give_up) as watch:
            return train(run, net, checkpoint, grouping, Agreement(requests, run.accelerator), watch)
    except RankLost as lost:
        with suppress(UserError):  # the disk may be full
            give_up(str(lost))
        raise
    except UserError as error:
        # A rank's own error is its own to write down. Of what may pass a job is started again, as after a crash.
        if not error.may_pass and (run.accelerator.is_main_process or not error.on_all_ranks):
            with suppress(UserError):
                run.folder.event("error", reason=str(error))
        raise


def leave_stopped(run: TrainingRun, outcome: Outcome) -> int:
    """Say how to go on after a stop, and leave together with the other ranks; returns the exit status."""
    progress = outcome.progress
    run.tracker.finish(exit_code=STOPPED)
    say(
        f"\nstopped by {outcome.stopped_by} in epoch {progress.epoch + 1}, {progress.step} steps into it, and saved; "
        f"go on with --config {run.folder.path / 'config.yaml'} --resume auto"
    )
    # A launcher ends all ranks as soon as one has left with another status than 0.
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return stopped_status()


def conclude(run: TrainingRun, outcome: Outcome, requests: StopRequests) -> int:
    """Make the report of a run that has been trained, and say where everything is; on rank 0, the others have left."""
    config, folder, progress = run.config, run.folder, outcome.progress
    report, status = "", 0
    try:
        if wants_report(config, outcome):
            with requests.raised(folder.preempt):
                report = explain_run(run)
    except Stopped as stop:
        again = f"--config {folder.path / 'config.yaml'} --resume auto, or distrib explain {folder.path}"
        report = f"report: stopped by {stop}; the model is safe, and this makes the report: {again}"
        folder.event("stop", reason=str(stop), epoch=progress.epoch, step=progress.step)
        folder.preempt.unlink(missing_ok=True)
        status = stopped_status()
    run.tracker.finish(status)
    best = "undefined" if progress.best_score is None else f"{progress.best_score:.4f}"
    if progress.pruned:
        say(f"\npruned by its study after epoch {progress.epoch}; no report is made")
    elif progress.epoch < config.train.epochs:
        say(f"\nstopped after {progress.epoch} epochs, {config.train.early_stopping} of them without a better score")
    say(f"\nbest epoch: {progress.best_epoch} ({config.checkpoint.best_score} {best}), its weights in {folder.best}")
    say(f"run folder: {folder.path} (metrics.csv, metrics_by_attribute.csv, events.jsonl, config.yaml, checkpoints/)")
    if report:
        say(report)
    return status


def wants_report(config: Config, outcome: Outcome) -> bool:
    """Whether a report belongs to this run; not to a trial that its study has given up."""
    return config.explain.after_training and not outcome.progress.pruned


def is_done(run: TrainingRun, outcome: Outcome) -> bool:
    """Whether a finished run has all that belongs to it; on rank 0, as a file may reach other machines later."""
    report = not wants_report(run.config, outcome) or run.folder.has_report()
    return report and bool(run.folder.events("end"))


def open_judge(folder: RunFolder) -> Callable[[Mapping[str, float]], bool]:
    """Who says after each epoch whether to go on: the study, where this run is a trial of one; on rank 0.

    A study that cannot be reached prunes nothing, and ends nothing.
    """
    if not folder.trial.exists():
        return never
    from distrib.studies.search import Judge

    try:
        judge = Judge(folder.trial)
    except Exception as error:
        warn(f"the study of this run cannot be reached ({error}): it goes on without pruning")
        return never

    def judged(row: Mapping[str, float]) -> bool:
        try:
            return judge(row)
        except Exception as error:  # databases and file systems each have their own
            warn(f"the study of this run cannot be reached ({error}): it goes on")
            return False

    return judged


def explain_run(run: TrainingRun) -> str:
    """Make the report of a run that has been trained; whatever happens here, the trained model is safe.

    Returns:
        A line on how it went.
    """
    if run.config.run.device == "cpu":
        use_all_cores(local_ranks=1)
    say("")
    again = f"distrib explain {run.folder.path}"
    try:
        failed = explain(make_study(run.folder.path, run.config), tuple(JOBS), run.tracker, say)
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        return f"report: none ({error}); the model is safe, and this makes the report: {again}"
    page = f"report: {run.folder.page}"
    return f"{page} (failed: {', '.join(failed)}; make it again with: {again})" if failed else page


def read_data(config: Config) -> tuple[Table, Splits]:
    """The table with the chosen attributes, and its splits.

    Raises:
        UserError: if the data set is not as the configuration says.
    """
    whole = read_table(config.data.root, config.data.missing)
    if config.explain.after_training:
        check_options(config, whole)
        check_photograph(config)
    table = whole.select(config.data.attributes)
    splits = make_splits(table, config.data)
    if len(splits.train) < config.train.batch_size:
        raise UserError(
            f"train.batch_size {config.train.batch_size} exceeds the training split of {len(splits.train)} images: "
            "choose a smaller one"
        )
    return table, splits


def check_start(config: Config, ranks: int) -> tuple[Table, Splits]:
    """What can be known before the ranks are started; nothing is written.

    Raises:
        UserError: if the batch cannot be shared out, the data set is not as the configuration says, the first weights
            cannot be had, W&B refuses one of its settings, the run folder holds another run, or what there is to go on
            from is damaged, of another training or finished elsewhere.
    """
    check_batch(config.train, ranks)
    resolve_wandb(config.tracking, config.run.folder)
    table, splits = read_data(config)
    checkpoint = None
    if config.run.folder is not None:
        folder, resume = RunFolder(config.run.folder), config.run.resume
        folder.check(resume)
        checkpoint = choose(folder, resume)
        if checkpoint is not None:
            refuse_changes(checkpoint, config, digest(table, splits.train, splits.valid))
            refuse_finished(checkpoint, config, folder)
    group_batch(config, ranks, checkpoint)
    if checkpoint is None:
        first_model(config, table.attributes, None)
    return table, splits


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
    chosen: list[Checkpoint] = []

    def choose_here() -> Path | None:
        checkpoint = find_start(run.config, run.folder)
        if checkpoint is None:
            return None
        chosen.append(checkpoint)
        return checkpoint.folder

    path = from_rank_0(run.accelerator, choose_here)
    if path is None:
        return None
    return on_every_rank(run.accelerator, verify_start, run, path, chosen[0] if chosen else None)


def find_start(config: Config, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to go on from, None for a new run; locks a folder that is to be taken up; on rank 0.

    Raises:
        UserError: if the folder holds or is in use by another run, or no checkpoint is whole.
    """
    resume = config.run.resume
    if restarts() > 0 and any(event.get("launch") == launch_id() for event in folder.events("start")):
        resume = "auto"  # after this run's earlier self, which the launcher has started again
    folder.check(resume)
    if resume == "never":
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
    """The checkpoint that --resume means in this folder; None for a new run.

    Raises:
        UserError: as `find_checkpoint` does.
    """
    if resume == "never":
        return None
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
    return f"{checkpoint.folder} is finished: {checkpoint.progress.epoch} epochs; raise {more} to go on"


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
            f"{path} is no whole checkpoint here ({damage}): put the run folder where all machines see it"
        ) from None
    refuse_changes(checkpoint, run.config, run.data)
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
    net = AttributeClassifier(len(attributes), config.train.channels_last, config.model.frozen_statistics)
    return net, Origin(f"goes on from {checkpoint.folder}: {progress.epoch} epochs and {progress.step} steps")


def open_folder(config: Config, folder: RunFolder, checkpoint: Checkpoint | None) -> None:
    """Make the run folder, or take up an earlier run's; on rank 0.

    Raises:
        UserError: if it cannot be written, or is in use by another run.
    """
    folder.make()
    folder.lock()
    if checkpoint is None and any(folder.checkpoints.glob("step-*")):
        raise UserError(
            f"run.folder {folder.path} has just been taken by another run: choose another, or go on with it"
        )
    folder.open()
    began = (launcher() or psutil.Process()).create_time()
    if folder.preempt.exists() and folder.preempt.stat().st_mtime < began:
        warn(f"{folder.preempt} is older than this run: it is removed")
        folder.preempt.unlink()
    progress = Progress() if checkpoint is None else checkpoint.progress
    later = []
    if checkpoint is not None and checkpoint.folder.parent.resolve() == folder.checkpoints.resolve():
        later = later_than(checkpoint.folder)
    folder.forget_after(progress.epoch)  # what came after the checkpoint will be trained again
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
) -> None:
    """Say what is about to be trained on what, on the terminal and in events.jsonl; on rank 0."""
    config, accelerator, table, splits = run.config, run.accelerator, run.table, run.splits
    notes = [*notes, *table.notes, *splits.notes, *config.ineffective(), *grouping.notes]
    sizes = {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)}
    attributes = f"{len(table.attributes)} attributes" if len(table.attributes) > 1 else table.attributes[0]
    machine = describe_machine(accelerator)
    ranks = f"{accelerator.num_processes} rank{'s' if accelerator.num_processes > 1 else ''}"
    say(f"data:    {config.data.root}, {attributes}; " + ", ".join(f"{n:,} {name}" for name, n in sizes.items()))
    how = f"precision {precision.name}{precision.reason}, decoder {config.data.decoder}"
    say(f"machine: {ranks} on {machine['device']}, {how}")
    say(f"model:   {config.model.name}, {origin.summary}")
    for line in origin.lines():
        say(f"         {line}")
    for note in notes:
        warn(note)
    run.folder.event(
        "start",
        **machine,
        precision=precision.name,
        precision_seconds=precision.seconds or None,
        decoder=config.data.decoder,
        norm_size=grouping.norm_size,
        accumulation=grouping.accumulation,
        splits=sizes,
        attributes=table.attributes,
        weights=asdict(origin),
        checkpoint=None if checkpoint is None else str(checkpoint.folder.resolve()),
        freeze=config.model.freeze_in(1 if checkpoint is None else checkpoint.progress.epoch + 1),
        warnings=notes,
        launch=launch_id(),
        restarts=restarts(),
    )
    if checkpoint is not None:
        progress = checkpoint.progress
        run.folder.event("resume", checkpoint=str(checkpoint.folder), epoch=progress.epoch, step=progress.step)
        if grouping.before is not None:
            now, before = grouping.norm_size, grouping.before
            run.folder.event("norm_size", before=before, now=now, epoch=progress.epoch, step=progress.step)


if __name__ == "__main__":
    sys.exit(main(requests=REQUESTS))
