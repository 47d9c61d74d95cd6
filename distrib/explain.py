"""Scores, figures, explanations and the report page of a finished run; training ends with them too.

distrib explain runs/NAME                        # all of it
distrib explain runs/NAME --only roc occlusion   # these alone, and the page anew
distrib explain runs/NAME --data.root /elsewhere --explain.fill blur
"""

import csv
import hashlib
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # A script's own folder comes first on sys.path, where distrib/data and its like would hide other packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from distrib.config import Config, DataConfig, ExplainConfig, nearest, parse, read_yaml
from distrib.data.decoders import make_decoder
from distrib.data.plan import evaluation_batches
from distrib.data.splits import Splits, digest, make_splits, other_split, splits_of_training
from distrib.data.table import SPLITS, Table, read_table
from distrib.errors import UserError
from distrib.explaining.curves import read_metrics
from distrib.explaining.study import Finding, Job, Study
from distrib.paths import expanded_path
from distrib.prediction.model import TrainedModel, load
from distrib.scoring.predictions import Predictions, load_predictions, save_predictions
from distrib.streams import standard_streams
from distrib.training.preemption import STOP_BUTTON
from distrib.training.run_folder import RunFolder, to_json, write_whole
from distrib.training.runtime import fallbacks, rank, resolve, use_all_cores, warn
from distrib.training.tracking import Rows, Tracker, interrupt, open_tracker

# In the order of the page. Each is imported when it runs, so that one that cannot be imported costs the others nothing.
JOBS = {
    "curves": "curves",
    "scores": "scores",
    "roc": "scores",
    "precision_recall": "scores",
    "confusion": "scores",
    "calibration": "scores",
    "fairness": "scores",
    "correlation": "scores",
    "mistakes": "galleries",
    "labels": "galleries",
    "occlusion": "maps",
    "gradcam": "maps",
    "truth": "maps",
    "photograph": "maps",
    "activations": "features",
    "filters": "features",
}

Say = Callable[[str], None]


@standard_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status: 0, 1 if a job failed, or 2 for what the user can mend."""
    if rank() > 0:
        print(f"distrib: rank {rank()} leaves: one process makes the report", file=sys.stderr)
        return 0
    try:
        run, only, options = _arguments(sys.argv[1:] if argv is None else list(argv))
        asked, model, whole, notes = _config(run, options)
        config = resolve(asked)
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


def check_options(config: Config, table: Table) -> None:
    """Refuse what would only fail at the end of a training.

    Args:
        config: whose `explain` is checked.
        table: with all of the data set's attributes.

    Raises:
        UserError: if a module or the group is not there, or the window does not fit the picture.
    """
    from distrib.explaining.features import check_modules
    from distrib.explaining.occlusion import make_grid

    options = config.explain
    check_modules(options.modules, options.filters)
    window, stride = ((side, side) if side is not None else None for side in (options.window, options.stride))
    make_grid(config.data.image_size, window, stride)
    if options.group != ExplainConfig().group and options.group not in table.attributes:
        flaw = table.flaws.get(options.group)
        hint = f" ({flaw.what})" if flaw else nearest(options.group, table.attributes)
        raise UserError(
            f"explain.group {options.group} is no attribute of {config.data.root}{hint}: choose one of "
            f"{', '.join(table.attributes)}"
        )


def check_photograph(config: Config) -> None:
    """Refuse a photograph that is not there.

    Raises:
        UserError: naming it.
    """
    photograph = config.explain.photograph
    if photograph is not None and not photograph.is_file():
        raise UserError(f"explain.photograph {photograph} is not a file: name a picture, or leave it out")


def explain(study: Study, jobs: Sequence[str], tracker: Tracker, say: Say) -> dict[str, str]:
    """Do the jobs, each for itself, and make the page.

    A job that fails is reported (here, in events.jsonl, on the page) and costs the others nothing.

    Args:
        study: of the run.
        jobs: names in `JOBS`.
        tracker: of the run; it gets figures and tables.
        say: where progress goes, a line at a time.

    Returns:
        The sentence of each job, and of each part of the page, that failed.
    """
    from distrib.reporting.page import render_report

    report, events = study.folder / "report", RunFolder(study.folder)
    _prepare(report, study)
    began, failed, step = time.monotonic(), {}, _last_step(study.folder)
    for number, name in enumerate(jobs, start=1):
        started = time.monotonic()
        finding, error = attempt(name, study)
        seconds = time.monotonic() - started
        try:
            media = keep(report, name, finding, error, seconds)
        except Exception as trouble:  # a figure that cannot be drawn, a disk that is full
            error = _sentence(trouble)
            media = keep(report, name, None, error, seconds)
        if error is not None:
            failed[name] = error
        tracker.media(*media, step)
        events.event("explain", job=name, seconds=round(seconds, 3), error=error)
        say(f"report:  {number:>2}/{len(jobs)} {name:<17} {seconds:6.1f} s{f'  failed: {error}' if error else ''}")
    parts = compose(study, report)
    for name, error in parts.items():
        say(f"report:  the page has no {name}: {error}")
    page = render_report(study.folder)
    tracker.page(page, step)
    events.event("report", page=str(page), seconds=round(time.monotonic() - began, 3), failed=sorted(failed))
    say(f"report:  {page}")
    if failed:
        say(
            f"report:  {len(failed)} of {len(jobs)} jobs failed ({', '.join(failed)}); make them again with: distrib "
            f"explain {study.folder} --only {' '.join(failed)}"
        )
    return failed | parts


def attempt(name: str, study: Study) -> tuple[Finding | None, str | None]:
    """What a job finds, or the sentence with which it failed; a bug's traceback goes to the terminal's error stream."""
    try:
        job: Job = getattr(import_module(f"distrib.explaining.{JOBS[name]}"), name)
        return job(study), None
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever it is, it costs this job alone
        return None, _sentence(error)


def keep(
    report: Path, name: str, finding: Finding | None, error: str | None, seconds: float
) -> tuple[dict[str, Path], dict[str, Rows]]:
    """Write what a job found to the report's folder; returns its figures and tables for W&B."""
    file = report / "data" / f"{name}.json"
    for earlier in _read(file).get("files", []):
        (report / earlier).unlink(missing_ok=True)  # the page must not show them beside something newer
    paths, files = {}, []
    if finding is not None:
        for label, figure in finding.figures.items():
            paths[label] = report / "figures" / f"{label}.png"
            figure.savefig(paths[label], dpi=150)
            files.append(f"figures/{label}.png")
        for label, (columns, rows) in finding.tables.items():
            with (report / "tables" / f"{label}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerows([columns, *rows])
            files.append(f"tables/{label}.csv")
    data = None if finding is None else finding.data
    write_whole(file, to_json({"job": name, "seconds": seconds, "error": error, "files": files, "data": data}))
    return paths, {} if finding is None else finding.tables


def compose(study: Study, report: Path) -> dict[str, str]:
    """Write what the page needs beside the jobs' own findings; returns the sentence of each part that failed.

    The parts: "overview", the head of the page, and "operating", the counts at every threshold.
    """

    def head() -> dict[str, Any]:
        from distrib.explaining.overview import overview

        found = {name: _read(report / "data" / f"{name}.json") for name in JOBS}
        return overview(study, {name: result for name, result in found.items() if result})

    def counts() -> dict[str, Any]:
        from distrib.explaining.scores import operating_points

        return operating_points(study.predictions["test"], study.model)

    failed = {}
    for name, make in (("overview", head), ("operating", counts)):
        file = report / "data" / f"{name}.json"
        try:
            write_whole(file, to_json(make()))
        except Exception as error:
            failed[name] = str(error) if isinstance(error, UserError) else _sentence(error)
            file.unlink(missing_ok=True)
    return failed


def make_study(run: Path, config: Config, model: TrainedModel | None = None, whole: Table | None = None) -> Study:
    """A finished run with its best model, and that model's predictions for validation and test.

    If a picture of the test split cannot be read, the jobs that need the predictions fail with that sentence, and the
    others do not.

    The data set may be another one than that of the training; of this one, a test split is all that is asked for.

    Args:
        run: folder of the run.
        config: resolved for this machine.
        model: of the run; None: it is read.
        whole: the table with all attributes, as `read_data` reads it; None: it is read.

    Raises:
        UserError: if the run has no model, or its data set is not here.
    """
    model = (model or load(run)).to(config.run.device)
    description = model.description
    config = config.replace("data", image_size=description.image_size, crop=description.crop)
    whole = read_data(config.data) if whole is None else whole
    table = model.labels(whole, config.data.root)
    splits = splits_of_training(table, config.data, description.training.get("data"))
    splits = splits or make_splits(table, config.data, needs=("test",))
    try:
        predictions = _predictions(run, model, config, table, splits)
    except UserError as error:
        predictions = _Unavailable(error)
    except Exception as error:  # such as a GPU without room for the pictures
        predictions = _Unavailable(UserError(f"the pictures could not be scored ({_sentence(error)})"))
    return Study(run, config, whole, table, splits, model, predictions)


def read_data(config: DataConfig) -> Table:
    """The table with all attributes; of the data set's own splits, the images of validation and test are asked for.

    Raises:
        UserError: if it is not as expected.
    """
    return read_table(config.root, config.missing, ("valid", "test") if config.split == "official" else SPLITS)


def _predictions(
    run: Path, model: TrainedModel, config: Config, table: Table, splits: Splits
) -> dict[str, Predictions]:
    """Those kept by an earlier report, where model, pictures and precision are the same; else made, and kept.

    Raises:
        UserError: if a picture cannot be read, or the run folder cannot be written.
    """
    file = run / "report/predictions.npz"
    with (run / "best/model.safetensors").open("rb") as weights:
        model_is = hashlib.file_digest(weights, "sha256").hexdigest()
    made_from = f"{model_is} {digest(table, splits.valid, splits.test)} {config.train.precision}"
    try:
        return load_predictions(file, made_from)
    except UserError:
        pass  # there are none of these
    predictions = [Predictions.of("test", table, splits.test, predict(model, config, table, splits.test))]
    if len(splits.valid):
        logits = _validation_logits(run, model, config, table, splits)
        predictions.append(Predictions.of("valid", table, splits.valid, logits))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_predictions(file, predictions, made_from)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): see to the disk") from None
    return {each.split: each for each in predictions}


class _Unavailable(dict[str, Predictions]):
    """Predictions that could not be made: who needs them gets the reason."""

    def __init__(self, reason: UserError) -> None:
        super().__init__()
        self._reason = reason

    def __missing__(self, split: str) -> NoReturn:
        raise self._reason


@torch.inference_mode()
def predict(model: TrainedModel, config: Config, table: Table, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits float32 [rows, attributes] in this one process, in the precision of the configuration.

    Raises:
        UserError: if a picture cannot be read.
    """
    size = min(256, config.train.batch_size)
    decoder = make_decoder(config.data, table, model.device, size)
    with autocast(config, model.device):
        parts = [
            model.net(batch.images_BHWC).float().cpu().numpy()
            for batch in decoder.batches(evaluation_batches(rows, size, 0, 1))
        ]
    return np.concatenate(parts)


def autocast(config: Config, device: torch.device) -> Any:
    """The context in which the network computes as it did in training."""
    if config.train.precision == "no":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if config.train.precision == "bf16" else torch.float16)


def _validation_logits(
    run: Path, model: TrainedModel, config: Config, table: Table, splits: Splits
) -> NDArray[np.float32]:
    """Those that were scored in training, where this is the same validation split; else anew."""
    try:
        logits: NDArray[np.float32] = safetensors.torch.load_file(run / "best/validation.safetensors")["logits"].numpy()
    except (OSError, KeyError, safetensors.SafetensorError):
        return predict(model, config, table, splits.valid)
    known = model.description.training.get("data") == digest(table, splits.train, splits.valid)
    if known and logits.shape == (len(splits.valid), len(model.attributes)):
        return logits
    warn("the training or validation images are not those of the training: validation is scored anew")
    return predict(model, config, table, splits.valid)


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


def _prepare(report: Path, study: Study) -> None:
    """Make the folders of a report; what an earlier one left is removed, for a report is of one model and data."""
    with (study.folder / "best/model.safetensors").open("rb") as weights:
        model = hashlib.file_digest(weights, "sha256").hexdigest()
    made_from = f"{model} {digest(study.table, study.splits.valid, study.splits.test)}"
    known = report / "data/model.txt"
    # Earlier reports name their model alone, and are of the run's own data.
    earlier = known.read_text(encoding="utf-8") if known.exists() else ""
    if earlier != made_from and not (earlier == model and study.on_data_of_training):
        for folder in ("data", "figures", "tables"):
            shutil.rmtree(report / folder, ignore_errors=True)
    for folder in ("data", "figures", "tables"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    write_whole(known, made_from)


def _sentence(error: Exception) -> str:
    """An error that nobody foresaw, in one line; its traceback goes to the terminal's error stream."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _read(file: Path) -> dict[str, Any]:
    """What a job left, {} where there is nothing to read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_step(run: Path) -> int:
    """Where the training ended: W&B drops what comes earlier than what it has."""
    try:
        columns, rows = read_metrics(run)
    except UserError:
        return 0
    return int(rows[-1][columns.index("step")])


if __name__ == "__main__":
    sys.exit(main())
