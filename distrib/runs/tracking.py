"""Weights & Biases: what a run says about itself, in `wandb/` in the run folder and, with a key, on the server.

One daemon thread does everything that touches W&B; training only puts rows in a bounded queue. So nothing that W&B
does (a server that is down or silent, a service process that was killed or hangs) can stop or delay a step, and
`finish` has a time limit. W&B itself writes every row to the run folder first and uploads it from there; a part of the
run that the server has taken whole is marked as `wandb sync` marks it, so that this uploads what is missing elsewhere.

A resumed run has the same W&B id (`wandb_run_id` in the run folder) and continues as the same run: online the server
appends to it; offline each part is a folder `offline-run-TIME-ID` of its own, and `wandb sync` uploads the parts of one
id in the order of their start. The charts' axes are the logged "step" and "epoch", because steps that are trained again
after a resume are lower than the last one that W&B has, and W&B drops rows whose own counter does not grow.
"""

import contextlib
import json
import logging
import os
import queue
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from distrib.base.errors import UserError
from distrib.config import TrackingConfig
from distrib.ranks.stopping import STOP_BUTTON
from distrib.runs.folder import RunFolder
from distrib.runs.wandb_settings import (
    Mode,
    WandbSettings,
    give_back,
    import_wandb,
    keep,
    resolve_wandb,
    take_over,
    without_password,
)

if TYPE_CHECKING:
    from wandb import Run

# The time for reaching the server at the start, and for uploading what is left at the end.
INIT_SECONDS = 15.0
FINISH_SECONDS = 20.0
# What `finish` adds before it ends the service process by force: it covers going offline after a failed start.
GRACE_SECONDS = 10.0
KILL_SECONDS = 3.0
# W&B hears of its Stop button from the answers to what it sends, every 30 seconds at least, and looks every 15 seconds:
# so long after its start a run may be told of a press before it.
STALE_SECONDS = 60.0
# Rows that may wait for W&B: hours of training; beyond them rows are dropped rather than memory filled.
BACKLOG = 20_000

# W&B writes every SLURM_ variable to the run folder and uploads it. SLURM_JWT is a key to the whole cluster.
SLURM_SECRETS = re.compile("SLURM_.*(JWT|TOKEN|SECRET|PASS|CREDENTIAL|KEY)", re.IGNORECASE)

# What a run has no use for where it does not go to the server, and what may have been the reason why it cannot.
ONLINE_ALONE = {
    **dict.fromkeys(("api_key", "identity_token_file", "sweep_id", "sweep_param_path", "launch_config_path")),
    "launch": False,
}

# What is logged as an artifact, and its type there.
ARTIFACTS = {"best": "model", "profile": "profile"}

Task = Callable[["Run"], None]
TableRows = tuple[list[str], list[list[Any]]]  # columns and rows

_log = logging.getLogger("distrib")


class Tracker:
    """Where the numbers of a run go. No method raises or waits for a server; `finish` alone takes (bounded) time.

    This one records nothing: for ranks other than 0 and for `tracking.mode: disabled`.
    """

    def step(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of a training step, under complete names such as `train/loss`."""

    def epoch(self, row: Mapping[str, float], by_attribute: Mapping[str, Mapping[str, float]], step: int) -> None:
        """Record a row of metrics.csv, and the scores of each attribute (attribute -> score -> value)."""

    def speed(self, row: Mapping[str, float | None]) -> None:
        """Record a row of speed.csv, as speed/NAME; None: nothing is known."""

    def report_seconds(self, seconds: float) -> None:
        """Note how long the report took, which is in the last row of speed.csv."""

    def profile(self, folder: Path) -> None:
        """Log the folder of a profile as an artifact."""

    def best(self, folder: Path, summary: Mapping[str, float]) -> None:
        """Note that `folder` holds the best weights so far; `summary` (epoch, roc_auc, ...) is shown as best/..."""

    def media(self, figures: Mapping[str, Path], tables: Mapping[str, TableRows], step: int) -> None:
        """Record images (name -> PNG file) and tables (name -> columns and rows) as report/NAME and tables/NAME."""

    def page(self, file: Path, step: int) -> None:
        """Record the report page, which is one HTML file."""

    def finish(self, exit_code: int = 0) -> None:
        """Write out what is left and end the run; 0: it went well. Later calls do nothing."""


def interrupt() -> None:
    """Stop this program as W&B's Stop button does by itself, which is as Ctrl-C does; from any thread."""
    os.kill(os.getpid(), signal.SIGINT)


def open_tracker(
    config: TrackingConfig, folder: Path, settings: Mapping[str, Any], stop: Callable[[], None] = interrupt
) -> Tracker:
    """The tracker of a run; to be called on rank 0 alone. Slurm's keys leave this process's environment, and W&B's
    variables do until `finish`.

    Args:
        config: Where to log, as far as the options say.
        folder: The run folder; the files go to `wandb/` in it, the run's W&B id to `wandb_run_id`.
        settings: The resolved configuration, shown as the run's configuration in W&B.
        stop: Called once, from another thread, when somebody presses the Stop button of the run's page.

    Raises:
        UserError: as `resolve_wandb` does, or if the run folder cannot be written.
    """
    resolved = resolve_wandb(config, folder)
    for note in resolved.notes:
        _log.warning(note)
    if resolved.mode == "disabled":
        return Tracker()
    for name in filter(SLURM_SECRETS.match, list(os.environ)):
        del os.environ[name]
    folder = folder.resolve()
    try:
        identity = keep(resolved, folder)
    except OSError as error:
        raise UserError(f"{folder / 'wandb_run_id'} cannot be written ({error.strerror}): check the disk") from None
    return WandbTracker(config, resolved, folder, identity, settings, stop)


def epoch_names(row: Mapping[str, float], by_attribute: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A row of metrics.csv under its names in W&B: val_loss is val/loss, train_loss train/epoch_loss, and so on."""
    named: dict[str, float] = {}
    for key, value in row.items():
        if key in ("epoch", "step"):
            named[key] = value
        elif key.startswith("val_"):
            named[f"val/{key.removeprefix('val_')}"] = value
        else:
            named[f"train/epoch_{key.removeprefix('train_')}"] = value
    for attribute, scores in by_attribute.items():
        for score, value in scores.items():
            named[f"val/by_attribute/{score}/{attribute}"] = value
    return named


class WandbTracker(Tracker):
    """A W&B run behind a queue. Where W&B fails, the run continues as an offline one; where that fails too, without."""

    def __init__(
        self,
        config: TrackingConfig,
        resolved: WandbSettings,
        folder: Path,
        identity: str,
        settings: Mapping[str, Any],
        stop: Callable[[], None],
    ) -> None:
        self._config = config
        self._resolved = resolved
        self._folder = folder
        self._identity = identity
        self._settings = dict(settings)
        self._stop = stop
        self._stopped_before = any(stop.get("reason") == STOP_BUTTON for stop in RunFolder(folder).events("stop"))
        self._jobs: queue.Queue[Task] = queue.Queue(BACKLOG)
        self._counter = -1
        self._best: Path | None = None
        self._accepting = True
        self._finishing = False
        self._late = False
        self._over = threading.Event()
        self._variables = take_over(folder)
        self._thread = threading.Thread(target=self._work, args=(resolved.mode,), name="wandb-tracker", daemon=True)
        self._thread.start()

    def step(self, metrics: Mapping[str, float], step: int) -> None:
        row = {**metrics, "step": step}
        self._put(lambda run: self._write(run, row, step))

    def epoch(self, row: Mapping[str, float], by_attribute: Mapping[str, Mapping[str, float]], step: int) -> None:
        named = {**epoch_names(row, by_attribute), "step": step}
        self._put(lambda run: self._write(run, named, step))

    def speed(self, row: Mapping[str, float | None]) -> None:
        named = {f"speed/{name}": value for name, value in row.items() if value is not None}
        named |= {name: named.pop(f"speed/{name}") for name in ("epoch", "step")}
        self._put(lambda run: self._write(run, named, int(named["step"])))

    def report_seconds(self, seconds: float) -> None:
        self._put(lambda run: run.summary.update({"speed/report_seconds": seconds}))

    def profile(self, folder: Path) -> None:
        self._put(lambda run: self._log_artifact(run, folder, "profile"))

    def best(self, folder: Path, summary: Mapping[str, float]) -> None:
        self._best = folder
        named = {f"best/{key}": value for key, value in summary.items()}
        self._put(lambda run: run.summary.update(named))

    def media(self, figures: Mapping[str, Path], tables: Mapping[str, TableRows], step: int) -> None:
        figures, tables = dict(figures), dict(tables)

        def log(run: "Run") -> None:
            wandb = import_wandb()
            row: dict[str, Any] = {f"report/{name}": wandb.Image(str(path)) for name, path in figures.items()}
            for name, (columns, rows) in tables.items():
                # W&B wants one type a column, and a number that is not defined is a missing one there.
                row[f"tables/{name}"] = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            self._write(run, row, step)

        if figures or tables:
            self._put(log)

    def page(self, file: Path, step: int) -> None:
        def log(run: "Run") -> None:
            self._write(run, {"report/page": import_wandb().Html(file.read_text(encoding="utf-8"))}, step)

        self._put(log)

    def finish(self, exit_code: int = 0) -> None:
        self._finishing = True
        self._put(lambda run: self._close(run, exit_code))
        self._accepting = False
        limits = self._defaults()
        limit = max(limits["init_timeout"], limits["finish_timeout"]) + GRACE_SECONDS
        self._thread.join(min(threading.TIMEOUT_MAX, limit))
        if self._thread.is_alive():
            # A server that does not answer holds up a table, and with it what comes behind: all of that goes offline.
            self._late = True
            _kill_service()
            self._thread.join(GRACE_SECONDS)
        if self._thread.is_alive():
            _log.warning("W&B does not finish and is stopped; %s", self._upload())
            self._over.set()
            _kill_service()
            self._thread.join(KILL_SECONDS)
        give_back(self._variables)
        self._variables = {}

    def _put(self, job: Task) -> None:
        if not self._accepting:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._accepting = False
            _log.warning("W&B has left %d rows waiting: nothing more is tracked, and training continues", BACKLOG)

    def _work(self, mode: Mode) -> None:
        """Do the jobs in their order. A job that fails is done again after going offline."""
        attempts: tuple[Mode, ...] = (mode, "offline")
        job: Task | None = None
        run: Run | None = None
        reasons: list[str] = []
        for attempt in attempts:
            try:
                run = self._start(attempt)
                if reasons:
                    consequence = f"the run is tracked offline from here on, and {self._upload()}"
                    _log.warning("W&B failed (%s): %s", reasons[0], consequence)
                while not self._over.is_set():
                    job = job or self._jobs.get()
                    job(run)
                    job = None
                return
            except Exception as error:
                if run is not None:
                    with contextlib.suppress(Exception):
                        run.finish(exit_code=1)  # so that its threads end, and what it has is written out
                # Else the next start, and Python's exit, would keep talking to a service that is gone.
                _teardown()
                if self._over.is_set():
                    return
                reasons.append("it does not finish" if self._late else _first_line(error))
                run = None
        self._accepting = False
        why = "; then: ".join(dict.fromkeys(reasons))
        _log.warning("W&B failed (%s): nothing more is tracked, and training continues; %s", why, self._upload())

    def _start(self, mode: Mode) -> "Run":
        wandb = import_wandb()
        from wandb.sdk import wandb_setup

        self._started = time.monotonic()
        changes: dict[str, Any] = {
            "mode": mode, "root_dir": str(self._folder), "run_id": self._identity, "silent": True,
            "finish_timeout_raises": True,
        }  # fmt: skip
        if mode == "offline":
            changes.update(ONLINE_ALONE, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        settings = self._resolved.values.model_copy(update={**self._defaults(), **changes})
        # W&B reads its files once more: what this run has resolved wins, where that is nothing too. `wandb.setup` would
        # start the service as well, under the lock that W&B needs to say why that failed, and wait for itself.
        loaded = wandb_setup.singleton().settings
        for name in settings.model_fields_set:
            setattr(loaded, name, getattr(settings, name))
        wandb.termsetup(loaded, None)  # it was set up as the files and variables alone say
        settings.stop_fn = lambda: self._stop_pressed()  # no bound method: W&B copies its settings in depth
        run: Run = wandb.init(
            config=self._settings,
            allow_val_change=True,  # a resumed run may have been given other settings
            settings=settings,
        )
        for axis, names in (("step", "train/*"), ("epoch", "val/*"), ("epoch", "speed/*")):
            run.define_metric(axis)
            run.define_metric(names, step_metric=axis)
        self._counter = max(self._counter, run.starting_step - 1)
        if mode == "online" and not (self._resolved.values.silent or self._resolved.values.quiet):
            _log.info("W&B run: %s", without_password(run.url or ""))
        return run

    def _defaults(self) -> dict[str, Any]:
        """Settings that W&B's variables and files may change."""
        values = self._resolved.values
        defaults = {
            # A remote's address can hold a token, and nobody asked for their code to be uploaded.
            "disable_git": True,
            "disable_code": not values.save_code,
            "save_code": False,
            "init_timeout": INIT_SECONDS,
            "finish_timeout": FINISH_SECONDS,
        }
        return {name: getattr(values, name) if name in values.model_fields_set else defaults[name] for name in defaults}

    def _write(self, run: "Run", row: Mapping[str, Any], step: int) -> None:
        # W&B's own counter has to grow with every row, which the step does not: see the top of this file.
        self._counter = max(self._counter + 1, step)
        run.log(dict(row), step=self._counter, commit=True)

    def _close(self, run: "Run", exit_code: int) -> None:
        if self._best is not None and self._config.upload_best:
            # Made once, of the best folder as it is at the end.
            self._log_artifact(run, self._best, "best")
        part, online = Path(run.sync_dir), not run.offline
        try:
            run.finish(exit_code)
            failure = _failed_upload(part) if online else None
        except TimeoutError:
            failure = f"{self._defaults()['finish_timeout']:.0f} seconds were not enough"
        if failure is not None:
            _log.warning("W&B has not taken all of the run (%s): %s", failure, self._upload())
        elif online:
            with contextlib.suppress(OSError):
                (part / f"run-{self._identity}.wandb.synced").touch()  # as `wandb sync` does
        _teardown()
        self._over.set()

    def _upload(self) -> str:
        """What can be done about what W&B's server has not taken; `wandb sync` refuses a folder without a run."""
        files = self._folder / "wandb"
        if not any(files.glob("*run-*/*.wandb")):
            return "nothing of it is in the run folder"
        return f"`wandb sync --include-online {shlex.quote(str(files))}` uploads it"

    def _stop_pressed(self) -> None:
        """Called by W&B, once from each start on, when it knows that the run's Stop button was pressed at some time."""
        if self._stopped_before and time.monotonic() - self._started < STALE_SECONDS:
            _log.warning(
                "W&B still has the Stop that an earlier part of this run has obeyed: the run continues, and the button "
                "cannot stop it again (touch %s can)",
                RunFolder(self._folder).preempt,
            )
            return
        if not self._finishing:  # else there is nothing left to stop
            self._stop()

    def _log_artifact(self, run: "Run", folder: Path, name: str) -> None:
        try:
            # "immutable" uploads the files from where they are, without copies of them under the home folder.
            artifact = import_wandb().Artifact(f"{name}-{self._identity}", type=ARTIFACTS[name])
            artifact.add_dir(str(folder), policy="immutable")
            run.log_artifact(artifact, aliases=[name])
        except Exception as error:
            _log.warning("W&B refuses an artifact of %s (%s)", folder, _first_line(error))


def _teardown() -> None:
    """End W&B's service process and forget its state, so that a later start begins afresh."""
    with contextlib.suppress(Exception):
        import_wandb().teardown()


def _kill_service() -> None:
    """End W&B's processes under this one by force: Python's exit would wait for them without a limit."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.name().startswith("wandb-"):
                child.kill()


def _failed_upload(part: Path) -> str | None:
    """The last upload of a part of the run that has failed for good; W&B, when silent, says so in its log alone."""
    failure = None
    with contextlib.suppress(OSError):
        log = (part / "logs/debug-internal.log").read_text(encoding="utf-8", errors="replace")
        for line in log.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["level"].startswith("ERROR") and "upload" in entry["msg"]:
                    failure = entry["msg"]
    return failure


def _first_line(error: Exception) -> str:
    return without_password(str(error).partition("\n")[0]) or type(error).__name__
