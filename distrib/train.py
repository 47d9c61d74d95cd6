"""Trains ResNet18 on face attributes.

accelerate launch --config_file launch/cpu.yaml distrib/train.py --config configs/celeba.yaml --optim.lr 3e-4
python distrib/train.py --config configs/celeba.yaml      # one process, the same options
"""

import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate import Accelerator

from distrib.config import Config, load_config
from distrib.data.splits import Splits, make_splits
from distrib.data.table import Table, read_table
from distrib.errors import UserError
from distrib.explain import JOBS, check_options, check_photograph, explain, make_study
from distrib.training.checkpoint import (
    Checkpoint,
    DamagedError,
    drop_later,
    find_checkpoint,
    load_checkpoint,
    refuse_changes,
)
from distrib.training.loop import Job, finished, train
from distrib.training.model import AttributeClassifier, make_model
from distrib.training.run_folder import RunFolder
from distrib.training.runtime import (
    check_ranks,
    describe_machine,
    fallbacks,
    from_rank_0,
    on_every_rank,
    resolve,
    run_program,
    say,
    start_ranks,
    use_all_cores,
    warn,
)
from distrib.training.tracking import NullTracker, open_tracker, tracking_mode


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, or 2 for what the user can mend."""
    show_log()

    def prepare() -> tuple[Config, str, Accelerator, list[str]]:
        asked, name = load_config(sys.argv[1:] if argv is None else argv)
        check_ranks(asked)
        config = resolve(asked)
        return config, name, start_ranks(config), fallbacks(asked, config)

    return run_program(prepare, lambda ready: run(*ready), "distrib: interrupted; go on with --resume auto")


def show_log() -> None:
    """Let what the package logs, such as an outage of W&B, appear beside its own lines."""
    log = logging.getLogger("distrib")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("distrib: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


def run(config: Config, name: str, accelerator: Accelerator, notes: list[str]) -> None:
    """Prepare a run, train, and say where the results are; nothing is written before what can be checked is.

    Args:
        config: resolved.
        name: of the run, where the configuration does not name its folder.
        accelerator: of this rank.
        notes: warnings about how the configuration was resolved.

    Raises:
        UserError: for all that the user can mend.
    """
    table, splits = on_every_rank(accelerator, read_data, config)
    config, path = from_rank_0(accelerator, choose_folder, config, name)
    assert config.run.folder is not None
    folder = RunFolder(config.run.folder)
    job = Job(config, accelerator, table, splits, folder, NullTracker())
    checkpoint = None
    if path is not None:
        checkpoint = on_every_rank(accelerator, read_checkpoint, path, job)
        if finished(config, checkpoint.progress):
            more = "train.epochs" if checkpoint.progress.epoch >= config.train.epochs else "train.early_stopping"
            say(f"{checkpoint.folder} is finished: {checkpoint.progress.epoch} epochs; raise {more} to go on")
            accelerator.end_training()
            return
    net, origin = on_every_rank(accelerator, first_model, config, len(table.attributes), checkpoint)
    from_rank_0(accelerator, open_folder, config, checkpoint)
    if accelerator.is_main_process:
        introduce(job, origin, notes)
        if checkpoint is not None:
            progress = checkpoint.progress
            folder.event("resume", checkpoint=str(checkpoint.folder), epoch=progress.epoch, step=progress.step)
        job = replace(job, tracker=open_tracker(config.tracking, folder.path, config.model_dump(mode="json")))
    try:
        progress = train(job, net, checkpoint)
    except BaseException:
        job.tracker.finish(exit_code=1)
        raise
    early = progress.epoch < config.train.epochs
    if accelerator.is_main_process:
        folder.event("end", epochs=progress.epoch, best_epoch=progress.best_epoch, stopped_early=early)
    del net
    accelerator.free_memory()
    accelerator.end_training()  # the other ranks end now, and hold no GPU while rank 0 draws
    report = explain_run(job) if accelerator.is_main_process and config.explain.after_training else ""
    job.tracker.finish()
    best = "undefined" if progress.best_score is None else f"{progress.best_score:.4f}"
    if early:
        say(f"\nstopped after {progress.epoch} epochs, {config.train.early_stopping} of them without a better score")
    say(f"\nbest epoch: {progress.best_epoch} ({config.checkpoint.best_score} {best}), its weights in {folder.best}")
    say(f"run folder: {folder.path} (metrics.csv, metrics_by_attribute.csv, events.jsonl, config.yaml, checkpoints/)")
    if report:
        say(report)


def explain_run(job: Job) -> str:
    """Make the report of a run that has been trained; whatever happens here, the trained model is safe.

    On rank 0, once the others have left.

    Returns:
        A line on how it went.
    """
    if job.config.run.device == "cpu":
        use_all_cores(local_ranks=1)
    say("")
    again = f"distrib explain {job.folder.path}"
    try:
        failed = explain(make_study(job.folder.path, job.config), tuple(JOBS), job.tracker, say)
    except KeyboardInterrupt:
        return f"report: interrupted; the model is safe, and this makes the report: {again}"
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        return f"report: none ({error}); the model is safe, and this makes the report: {again}"
    page = f"report: {job.folder.path / 'report/index.html'}"
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


def choose_folder(config: Config, name: str) -> tuple[Config, Path | None]:
    """The run folder and what to go on from; on rank 0.

    Returns:
        The configuration with the folder in it, and the checkpoint.

    Raises:
        UserError: if the folder holds another run, no checkpoint is whole, or W&B cannot be online as asked.
    """
    tracking_mode(config.tracking)
    if config.run.folder is None:
        config = config.replace("run", folder=Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    assert config.run.folder is not None
    folder, resume = RunFolder(config.run.folder), config.run.resume
    folder.check(resume)
    checkpoint = None if resume == "never" else find_checkpoint(folder.checkpoints, resume, warn)
    return config, None if checkpoint is None else checkpoint.folder


def read_checkpoint(path: Path, job: Job) -> Checkpoint:
    """The checkpoint that rank 0 has chosen.

    Raises:
        UserError: if it is not whole on this machine, or is one of another training.
    """
    try:
        checkpoint = load_checkpoint(path)
    except DamagedError as damage:
        raise UserError(
            f"{path} is no whole checkpoint here ({damage}): put the run folder where all machines see it"
        ) from None
    refuse_changes(checkpoint, job.config, job.data)
    return checkpoint


def first_model(config: Config, attributes: int, checkpoint: Checkpoint | None) -> tuple[AttributeClassifier, str]:
    """The network, and a sentence on where its weights come from.

    Raises:
        UserError: as `make_model` does.
    """
    if checkpoint is None:
        return make_model(config.model, attributes, config.train.channels_last, config.train.seed)
    progress = checkpoint.progress
    net = AttributeClassifier(attributes, config.model.freeze, config.train.channels_last)
    return net, f"goes on from {checkpoint.folder}: {progress.epoch} epochs and {progress.step} steps"


def open_folder(config: Config, checkpoint: Checkpoint | None) -> None:
    """Make the run folder, or take up an earlier run's; on rank 0.

    Raises:
        UserError: if it cannot be written.
    """
    assert config.run.folder is not None
    folder = RunFolder(config.run.folder)
    folder.open()
    if checkpoint is not None:  # what came after it will be trained again
        folder.forget_after(checkpoint.progress.epoch)
        if folder.forget_best(checkpoint.progress.best_epoch):
            warn(f"{folder.best} is of an epoch later than {checkpoint.folder}: the next epoch takes its place")
        if checkpoint.folder.parent.resolve() == folder.checkpoints.resolve():
            drop_later(checkpoint.folder)
    folder.write_config(config.to_yaml())


def introduce(job: Job, origin: str, notes: list[str]) -> None:
    """Say what is about to be trained on what, on the terminal and in events.jsonl; on rank 0."""
    config, accelerator, table, splits = job.config, job.accelerator, job.table, job.splits
    notes = [*notes, *table.notes, *splits.notes, *config.ineffective()]
    sizes = {"train": len(splits.train), "valid": len(splits.valid), "test": len(splits.test)}
    attributes = f"{len(table.attributes)} attributes" if len(table.attributes) > 1 else table.attributes[0]
    machine = describe_machine(accelerator)
    ranks = f"{accelerator.num_processes} rank{'s' if accelerator.num_processes > 1 else ''}"
    say(f"data:    {config.data.root}, {attributes}; " + ", ".join(f"{n:,} {name}" for name, n in sizes.items()))
    say(f"machine: {ranks} on {machine['device']}, precision {config.train.precision}, decoder {config.data.decoder}")
    say(f"model:   {config.model.name}, {origin}")
    for note in notes:
        warn(note)
    job.folder.event(
        "start",
        **machine,
        precision=config.train.precision,
        decoder=config.data.decoder,
        splits=sizes,
        attributes=table.attributes,
        warnings=notes,
    )


if __name__ == "__main__":
    sys.exit(main())
