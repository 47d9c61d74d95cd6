"""Scores, figures, explanations and the report page of a finished run; training ends with them too.

distrib explain runs/NAME                        # all of it
distrib explain runs/NAME --only roc occlusion   # these alone, and the page anew
distrib explain runs/NAME --data.root /elsewhere --explain.fill blur
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distrib.base.errors import UserError
from distrib.base.paths import expanded_path
from distrib.base.streams import standard_streams
from distrib.base.words import nearest
from distrib.config import Config, parse, read_yaml
from distrib.data.splits import other_split, splits_of_training
from distrib.data.table import Table
from distrib.explaining.report import JOBS, check_options, check_photograph, explain, make_study, read_data
from distrib.model.trained import TrainedModel, load
from distrib.ranks.environment import rank
from distrib.ranks.machine import fallbacks, resolve, use_all_cores
from distrib.ranks.printing import warn
from distrib.ranks.stopping import STOP_BUTTON
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import interrupt, open_tracker


@standard_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, 1 if a job failed, or 2 for what the user can mend."""
    if rank() > 0:
        print(f"distrib: rank {rank()} leaves: one process makes the report", file=sys.stderr)
        return 0
    try:
        run, only, options = _arguments(sys.argv[1:] if argv is None else list(argv))
        asked, model, whole, notes = _config(run, options)
        config = resolve(asked, like=model.description.precision)
        if config.run.device == "cpu":
            use_all_cores(local_ranks=1)
        for note in (*notes, *fallbacks(asked, config)):
            warn(note)
        check_options(config, whole)
        if any(option.startswith("--explain.photograph") for option in options):
            check_photograph(config)  # one that training was given may be left on another machine: its job says so
        study = make_study(run, config, model, whole)
        tracker = open_tracker(config.tracking, run, config.model_dump(mode="json"), lambda: _stop(run))
    except UserError as error:
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    try:
        with standard_streams(goes_on=True):
            failed = explain(study, only or tuple(JOBS), tracker, print)
        tracker.finish()
    except UserError as error:
        tracker.finish(exit_code=1)
        print(f"distrib: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        tracker.finish(exit_code=1)
        print(f"distrib: interrupted; what is missing is made by: distrib explain {run}", file=sys.stderr)
        return 130
    except BaseException:
        tracker.finish(exit_code=1)
        raise
    return 1 if failed else 0


def _stop(run: Path) -> None:
    """What W&B's Stop button does here; where that is written down, the next report does not obey it once more."""
    with suppress(UserError):  # the disk may be full
        RunFolder(run).event("stop", reason=STOP_BUTTON)
    print(f"\ndistrib: {STOP_BUTTON}", file=sys.stderr, flush=True)
    interrupt()


def _arguments(argv: list[str]) -> tuple[Path, tuple[str, ...], list[str]]:
    """The run, the jobs after --only, and the configuration's options."""
    only: list[str] = []
    rest: list[str] = []
    taking = False
    for argument in argv:
        if argument == "--only" or argument.startswith("--only="):
            taking = True
            only += argument.split("=", 1)[1:]
        elif argument.startswith("-"):
            taking = False
            rest.append(argument)
        else:
            (only if taking else rest).append(argument)
    if taking and not only:
        raise UserError(f"--only needs the names of jobs: {', '.join(JOBS)}")
    for name in only:
        if name not in JOBS:
            raise UserError(
                f"--only {name}: there is no such job{nearest(name, list(JOBS))}: choose of {', '.join(JOBS)}"
            )
    if rest and rest[0] not in ("-h", "--help") and not rest[0].startswith("-"):
        return expanded_path(rest[0]), tuple(only), rest[1:]
    if "-h" in rest or "--help" in rest:
        print(__doc__)
        print(f"jobs: {', '.join(JOBS)}\n\nOptions, with the run's own settings as defaults:\n")
        parse(["--help"], Config(), "distrib explain RUN [--only JOB …]", "Makes the report of a finished run.")
    raise UserError("name the run first: distrib explain runs/NAME")


def _config(run: Path, options: Sequence[str]) -> tuple[Config, TrainedModel, Table, list[str]]:
    """The run's configuration, with what depends on the machine to be decided anew, and the options over it; its
    model; the table with all of the data set's attributes; and notes.

    A random split of the training means nothing for another data set: that one comes with its own.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run: it has no config.yaml; name the folder that training has made")
    of_run = read_yaml(run / "config.yaml")
    of_run = of_run.replace("run", folder=run, device="auto", ranks=None).replace("data", decoder="auto")
    if of_run.train.precision != "no":
        of_run = of_run.replace("train", precision="auto")

    def with_options(config: Config) -> Config:
        return parse(options, config, "distrib explain RUN [--only JOB …]", "Makes the report of a finished run.")

    config, model = with_options(of_run), load(run)
    if config.data.root == of_run.data.root or of_run.data.split == "official":
        return config, model, read_data(config.data), []
    drawn, config = config, with_options(of_run.replace("data", split="official"))
    whole = read_data(config.data)
    table = model.labels(whole, config.data.root)
    if splits_of_training(table, of_run.data, model.description.training.get("data")):
        # The same data in another place; of a random split, the images of all of the data set's own are asked for.
        return drawn, model, whole if whole.split is None else read_data(drawn.data), []
    taken = config.data.split == "official" and whole.split is not None
    return config, model, whole, [other_split(config.data, of_run.data.split)] if taken else []
