"""What makes the report of a finished run: the analyses, each for itself, and the page of what they found."""

import csv
import hashlib
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from distrib.base.errors import UserError, first_line
from distrib.base.files import write_whole
from distrib.base.json import to_json
from distrib.config import Config, DataConfig
from distrib.data.decoders import make_decoder
from distrib.data.reader import other_colours, sample_colours
from distrib.data.splits import Splits, digest, make_splits, splits_of_training
from distrib.data.table import SPLITS, Table, read_table
from distrib.explaining.finished_run import Analysis, Finding, FinishedRun, read_finding
from distrib.model.trained import TrainedModel, load
from distrib.ranks.printing import warn
from distrib.reporting.panels import PANELS, SUMMARY
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import read_metrics
from distrib.runs.tracking import TableRows, Tracker
from distrib.scoring.evaluation import AUTOCAST, score_rows
from distrib.scoring.predictions import Predictions, load_predictions, save_predictions

Say = Callable[[str], None]


def explain(run: FinishedRun, jobs: Sequence[str], tracker: Tracker, say: Say) -> dict[str, str]:
    """Do the jobs, each for itself, and make the page; it can be opened before the slow ones are done.

    A job that fails is reported (here, in events.jsonl, on the page) and costs the others nothing.

    Args:
        run: of the run.
        jobs: names in `PANELS`; that of the summary is done in any case, at the end.
        tracker: of the run; it gets figures and tables.
        say: where progress goes, a line at a time.

    Returns:
        The sentence of each job that failed.

    Raises:
        UserError: if the report cannot be written.
    """
    try:
        return _explain(run, jobs, tracker, say)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UserError(
            f"{run.folder / 'report'} cannot be written ({reason}): check the disk and its permissions, and make the "
            f"report with: distrib explain {run.folder}"
        ) from None


def _explain(run: FinishedRun, jobs: Sequence[str], tracker: Tracker, say: Say) -> dict[str, str]:
    from distrib.reporting.page import render_report

    report, events = run.folder / "report", RunFolder(run.folder)
    _prepare(report, run)
    jobs = (*(name for name in jobs if name != SUMMARY), SUMMARY)
    began, failed, step = time.monotonic(), {}, _last_step(run.folder)
    for number, name in enumerate(jobs, start=1):
        if PANELS[name].slow and number > 1:
            to_come = jobs[number - 1 : -1]
            with suppress(UserError, OSError):  # a page that cannot be written costs no job; the last one says so
                keep(report, SUMMARY, *attempt(SUMMARY, run), 0.0)
                page = render_report(run.folder, to_come)
                say(f"report:  {page} can be opened; still to come: {', '.join(to_come)}")
        started = time.monotonic()
        finding, error = attempt(name, run)
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
    page = render_report(run.folder)
    tracker.page(page, step)
    events.event("report", page=str(page), seconds=round(time.monotonic() - began, 3), failed=sorted(failed))
    say(f"report:  {page}")
    if failed:
        say(
            f"report:  {len(failed)} of {len(jobs)} parts failed ({', '.join(failed)}); make them again with: distrib "
            f"explain {run.folder} --only {' '.join(failed)}"
        )
    return failed


def attempt(name: str, run: FinishedRun) -> tuple[Finding | None, str | None]:
    """What a job finds, or the sentence with which it failed; a bug's traceback goes to the terminal's error stream."""
    try:
        # Imported when it runs, so that one that cannot be imported costs the others nothing.
        job: Analysis = getattr(import_module(f"distrib.explaining.{PANELS[name].module}"), name)
        return job(run), None
    except UserError as error:
        return None, str(error)
    except Exception as error:  # whatever it is, it costs this job alone
        return None, _sentence(error)


def keep(
    report: Path, name: str, finding: Finding | None, error: str | None, seconds: float
) -> tuple[dict[str, Path], dict[str, TableRows]]:
    """Write what a job found to the report's folder; returns its figures and tables for W&B."""
    file = report / "data" / f"{name}.json"
    for earlier in read_finding(report, name).get("files", []):
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


def open_run(
    folder: Path, config: Config, model: TrainedModel | None = None, whole: Table | None = None
) -> FinishedRun:
    """A finished run with its best model, and that model's predictions for validation and test.

    If an image of the test split cannot be read, the jobs that need the predictions fail with that sentence, and the
    others do not.

    The data set may be another one than that of the training; of this one, a test split is all that is asked for.

    Args:
        folder: of the run.
        config: resolved for this machine.
        model: of the run; None: it is read.
        whole: the table with all attributes, as `read_data` reads it; None: it is read.

    Raises:
        UserError: if the run has no model, or its data set is not here.
    """
    model = (model or load(folder)).to(config.run.device)
    description = model.description
    config = config.replace("data", **description.view)
    whole = read_data(config.data) if whole is None else whole
    table = model.labels(whole, config.data.root)
    splits = splits_of_training(table, config.data, description.training.get("data"))
    # A fold was of the data of the training.
    splits = splits or make_splits(table, config.data.model_copy(update={"fold": "none"}), needs=("test",))
    images = _digests(table, splits)
    try:
        predictions = _predictions(folder, model, config, table, splits, images)
    except UserError as error:
        predictions = _Unavailable(error)
    except Exception as error:  # such as a GPU without room for the images
        predictions = _Unavailable(UserError(f"the images could not be scored ({_sentence(error)})"))
    return FinishedRun(folder, config, whole, table, splits, model, images, predictions)


def read_data(config: DataConfig) -> Table:
    """The table with all attributes; of the data set's own splits, the images of validation and test are asked for.

    Raises:
        UserError: if it is not as expected.
    """
    scored_alone = config.split == "official" and config.fold == "none"
    return read_table(config.root, config.missing, ("valid", "test") if scored_alone else SPLITS)


def _predictions(
    folder: Path, model: TrainedModel, config: Config, table: Table, splits: Splits, images: str
) -> dict[str, Predictions]:
    """Those kept by an earlier report, where model, images and precision are the same; else made, and kept.

    Raises:
        UserError: if an image cannot be read, or the run folder cannot be written.
    """
    file = folder / "report/predictions.npz"
    made_from = f"{_digest_of_model(folder)} {images} {config.train.precision}"
    try:
        kept = load_predictions(file, made_from)
    except UserError:
        pass  # there are none of these
    else:
        # The same images may be other rows of the table today, and be known to be of other people.
        rows = {"test": splits.test, "valid": splits.valid}
        return {split: Predictions.of(split, table, rows[split], each.logits_NA) for split, each in kept.items()}
    predictions = [Predictions.of("test", table, splits.test, predict(model, config, table, splits.test))]
    if len(splits.valid):
        logits = _validation_logits(folder, model, config, table, splits)
        predictions.append(Predictions.of("valid", table, splits.valid, logits))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_predictions(file, predictions, made_from)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}): check the disk") from None
    return {each.split: each for each in predictions}


class _Unavailable(dict[str, Predictions]):
    """Predictions that could not be made: who needs them gets the reason."""

    def __init__(self, reason: UserError) -> None:
        super().__init__()
        self._reason = reason

    def __missing__(self, split: str) -> NoReturn:
        raise self._reason


def predict(model: TrainedModel, config: Config, table: Table, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits float32 [rows, attributes] in this one process, in the precision of the configuration.

    Raises:
        UserError: if an image cannot be read.
    """
    size = min(256, config.train.batch_size)
    decoder = make_decoder(config.data, table, model.device, size)
    precision = AUTOCAST[config.train.precision]
    of_batch = len(model.attributes), size
    return score_rows(model.net, decoder, rows, *of_batch, model.device, precision, zoom=config.data.eval_zoom)


def _validation_logits(
    folder: Path, model: TrainedModel, config: Config, table: Table, splits: Splits
) -> NDArray[np.float32]:
    """Those that were scored in training, where this is the same validation split; else anew."""
    try:
        kept = safetensors.numpy.load_file(folder / "best/validation.safetensors")
        logits: NDArray[np.float32] = kept["logits"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return predict(model, config, table, splits.valid)
    training = model.description.training
    known = training.get("data") == digest(table, splits.train, splits.valid)
    if known and "colours" in training:  # an earlier version kept none
        known = not other_colours(training["colours"], sample_colours(table, splits.train))
    if known and logits.shape == (len(splits.valid), len(model.attributes)):
        return logits
    warn("the training or validation images are not those of the training: validation is scored anew")
    return predict(model, config, table, splits.valid)


def _prepare(report: Path, run: FinishedRun) -> None:
    """Make the folders of a report; what an earlier one left is removed, for a report is of one model and data."""
    model, tuned_for = _digest_of_model(run.folder), run.model.description.tuned_for
    names, colours = run.images.split()
    by_names = f"{model} {names}" if tuned_for == "f1" else f"{model} {names} {tuned_for}"
    made_from = f"{by_names} {colours}"
    known = report / "data/model.txt"
    # Earlier reports name no colours, and before that their model alone, and are then of the run's own data.
    earlier = known.read_text(encoding="utf-8") if known.exists() else ""
    of_the_same = earlier in (made_from, by_names) or (earlier == model and tuned_for == "f1")
    if earlier != made_from and not (of_the_same and run.on_data_of_training):
        for folder in ("data", "figures", "tables"):
            shutil.rmtree(report / folder, ignore_errors=True)
    for folder in ("data", "figures", "tables"):
        (report / folder).mkdir(parents=True, exist_ok=True)
    write_whole(known, made_from)


def _digests(table: Table, splits: Splits) -> str:
    """What `FinishedRun.images` is; by the colours other images under the same names are noticed."""
    colours = sample_colours(table, np.concatenate([splits.valid, splits.test]))
    return f"{digest(table, splits.valid, splits.test)} {hashlib.sha256(repr(colours).encode()).hexdigest()}"


def _digest_of_model(folder: Path) -> str:
    with (folder / "best/model.safetensors").open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def _sentence(error: Exception) -> str:
    """An error that nobody foresaw, in one line; its traceback goes to the terminal's error stream."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _last_step(folder: Path) -> int:
    """Where the training ended: W&B drops what comes earlier than what it has."""
    try:
        columns, rows = read_metrics(folder)
    except UserError:
        return 0
    return int(rows[-1][columns.index("step")])
