"""The report of a run that has long finished, with options over the run's own: `distrib explain`."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event

from distrib.base.errors import UserError, afterwards
from distrib.base.streams import standard_streams
from distrib.config import Config, parse, read_yaml
from distrib.data.splits import other_split, splits_of_training
from distrib.data.table import Table
from distrib.explaining.options import check_options, check_photograph
from distrib.explaining.report import explain, open_run, read_data
from distrib.model.trained import TrainedModel, load
from distrib.ranks.machine import fallbacks, resolve, use_all_cores
from distrib.ranks.printing import warn
from distrib.ranks.stopping import STOP_BUTTON
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import interrupt, open_tracker


def explain_run(folder: Path, jobs: Sequence[str], options: Sequence[str]) -> int:
    """Make the report; returns the exit status: 0, 1 if a job failed, or 130 after Ctrl-C.

    Args:
        folder: of the run.
        jobs: names in `PANELS`.
        options: of the configuration, such as `--explain.fill blur`.

    Raises:
        UserError: for what the user can mend.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run: it has no config.yaml; name the folder that training has made")
    run_folder = RunFolder(folder)
    run_folder.lock()  # a run at work would change its best epoch, and is what W&B hears of
    with afterwards(run_folder.unlock):
        return _explain(folder, jobs, options)


def _explain(folder: Path, jobs: Sequence[str], options: Sequence[str]) -> int:
    asked, model, whole, notes = _config(folder, options)
    config = resolve(asked, like=model.description.precision)
    if config.run.device == "cpu":
        use_all_cores(local_ranks=1)
    for note in (*notes, *fallbacks(asked, config)):
        warn(note)
    check_options(config, whole)
    if any(option.startswith("--explain.photograph") for option in options):
        check_photograph(config)  # one that training was given may be left on another machine: its job says so
    run = open_run(folder, config, model, whole)
    stopped = Event()
    tracker = open_tracker(config.tracking, folder, config.model_dump(mode="json"), lambda: _stop(folder, stopped))

    def say(line: str) -> None:
        print(line)
        if stopped.is_set():  # a library may have swallowed the interruption
            raise KeyboardInterrupt

    try:
        with standard_streams(goes_on=True):
            failed = explain(run, jobs, tracker, say)
        tracker.finish()
    except KeyboardInterrupt:
        tracker.finish(exit_code=1)
        print(f"distrib: interrupted; what is missing is made by: distrib explain {folder}", file=sys.stderr)
        return 130
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    return 1 if failed else 0


def _stop(folder: Path, stopped: Event) -> None:
    """What W&B's Stop button does here; where that is written down, the next report does not obey it once more."""
    with suppress(UserError):  # the disk may be full
        RunFolder(folder).event("stop", reason=STOP_BUTTON)
    print(f"\ndistrib: {STOP_BUTTON}", file=sys.stderr, flush=True)
    stopped.set()
    interrupt()


def _config(folder: Path, options: Sequence[str]) -> tuple[Config, TrainedModel, Table, list[str]]:
    """The run's configuration, with what depends on the machine to be decided anew, and the options over it; its
    model; the table with all of the data set's attributes; and notes.

    A random split of the training means nothing for another data set: that one comes with its own.
    """
    of_run = read_yaml(folder / "config.yaml")
    of_run = of_run.replace("run", folder=folder, device="auto", ranks=None).replace(
        "data", decoder="auto", threads="auto"
    )
    if of_run.train.precision != "no":
        of_run = of_run.replace("train", precision="auto")

    def with_options(config: Config) -> Config:
        return parse(options, config, "distrib explain RUN [--only PART …]", "Makes the report of a finished run.")

    config, model = with_options(of_run), load(folder)
    model = model.with_thresholds(config.checkpoint.thresholds)
    if config.data.root == of_run.data.root or of_run.data.split == "official":
        return config, model, read_data(config.data), []
    drawn, config = config, with_options(of_run.replace("data", split="official", fold="none"))
    whole = read_data(config.data)
    table = model.labels(whole, config.data.root)
    if splits_of_training(table, of_run.data, model.description.training.get("data")):
        # The same data in another place; of a random split, the images of all of the data set's own are asked for.
        return drawn, model, whole if whole.split is None else read_data(drawn.data), []
    taken = config.data.split == "official" and whole.split is not None
    return config, model, whole, [other_split(config.data, of_run.data.split)] if taken else []
