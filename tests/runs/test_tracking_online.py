"""Tracking against a server: the real W&B client, and `wandb sync`, talk to `tests/support/wandb_backend.py`."""

import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from launching import launch, read_events
from PIL import Image
from small_run import settings
from wandb_backend import Backend, ServedRun

from distrib import train as program
from distrib.cli import explain
from distrib.config import TrackingConfig
from distrib.ranks.stopping import STOP_BUTTON, STOPPED
from distrib.runs import tracking
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import Tracker, open_tracker

# W&B's own defaults are 15 seconds each; whole seconds.
OFTEN = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1", "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1"}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Backend]:
    """A server, and a machine on which nothing but its address and a key is configured."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Backend() as backend:
        for name in {**backend.environment, **OFTEN}:
            monkeypatch.setenv(name, "")  # so that it is gone afterwards
        yield backend
        assert backend.faults == []


def log_in(backend: Backend) -> None:
    """Configure the server for the next program in this process; a tracker may leave nothing of it."""
    os.environ.update({**backend.environment, **OFTEN})


def begin(backend: Backend, folder: Path, settings: dict[str, Any] | None = None, **config: Any) -> Tracker:
    """A part of a run."""
    log_in(backend)
    return open_tracker(TrackingConfig(**config), folder, settings or {})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INIT_SECONDS", 3.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    monkeypatch.setattr(tracking, "GRACE_SECONDS", 2.0)


def loss(step: int) -> float:
    return 1 / (1 + step)


def log(tracker: Tracker, first: int, last: int) -> None:
    """A row every ten steps, and none of them takes time."""
    for step in range(first, last, 10):
        began = time.monotonic()
        tracker.step({"train/loss": loss(step)}, step)
        assert time.monotonic() - began < 0.5


def curve(run: ServedRun) -> dict[int, float]:
    """step -> loss, over all rows; a step that came twice has one value all the same."""
    points: dict[int, float] = {}
    for row in run.history:
        if "train/loss" in row:
            assert points.setdefault(row["step"], row["train/loss"]) == row["train/loss"]
    return points


def until(happened: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.02)


def assert_contiguous(run: ServedRun) -> None:
    """W&B's own counter grows from row to row: nothing was dropped, nothing came twice."""
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))


def the_run(backend: Backend) -> ServedRun:
    (run,) = backend.runs.values()
    return run


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the terminal shows of this package's own."""
    return [r.getMessage() for r in caplog.records if r.name == "distrib" and r.levelno >= logging.WARNING]


def sync(backend: Backend, *arguments: object, folder: Path | None = None) -> str:
    """`wandb sync`, as somebody types it; returns what it said."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [wandb, "sync", *map(str, arguments)], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, env={**os.environ, **backend.environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def remedy(backend: Backend, sentence: str) -> str:
    """What the program said would upload what is missing, done by somebody who copies it from the line."""
    (command,) = re.findall(r"`wandb sync ([^`]+)` uploads it", sentence)
    return sync(backend, *shlex.split(command))


def test_a_run_and_its_resumption_are_one_run_and_all_that_belongs_to_it_arrives(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "best/model.safetensors").write_bytes(b"weights")
    figure, page = tmp_path / "roc.png", tmp_path / "index.html"
    Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(figure)
    page.write_text("<title>The report</title>")

    tracker = begin(backend, folder, {"optim": {"lr": 0.1}}, upload_best=True)
    log(tracker, 0, 50)
    (folder / "profile").mkdir()
    (folder / "profile/operators.txt").write_text("aten::convolution")
    tracker.profile(folder / "profile")
    tracker.finish()
    (profile,) = backend.artifacts
    assert (profile.kind, profile.committed) == ("profile", True)
    assert profile.files["operators.txt"] == b"aten::convolution"
    part = the_run(backend)
    assert part.exit_code == 0
    assert part.name == (folder / "wandb_run_id").read_text().strip()
    assert curve(part) == {step: loss(step) for step in range(0, 50, 10)}

    tracker = begin(backend, folder, {"optim": {"lr": 0.2}}, upload_best=True)
    log(tracker, 30, 80)  # from a checkpoint that was older than the last row
    tracker.epoch({"epoch": 1, "val_roc_auc": 0.75}, {"Smiling": {"f1": 0.5}}, 80)
    tracker.best(folder / "best", {"epoch": 1, "roc_auc": 0.75})
    tracker.media({"roc": figure}, {"scores": (["attribute", "f1"], [["Smiling", 0.5], ["Male", math.nan]])}, 80)
    tracker.page(page, 80)
    tracker.speed({"epoch": 1, "step": 80, "data_share": 0.25, "mfu": None})
    tracker.report_seconds(12.5)
    tracker.finish()

    run = the_run(backend)
    assert run.resumed == 1
    assert_contiguous(run)
    rows = [row["step"] for row in run.history if "train/loss" in row]
    assert rows == [*range(0, 50, 10), *range(30, 80, 10)]
    assert curve(run) == {step: loss(step) for step in range(0, 80, 10)}
    assert run.config == {"optim": {"lr": 0.2}}
    assert {"val/roc_auc", "val/by_attribute/f1/Smiling", "epoch"} <= {name for row in run.history for name in row}
    assert run.summary["best/roc_auc"] == 0.75
    (speed,) = [row for row in run.history if "speed/data_share" in row]
    assert (speed["epoch"], speed["speed/data_share"], "speed/mfu" in speed) == (1, 0.25, False)
    assert run.summary["speed/report_seconds"] == 12.5

    found = {name: row[name] for row in run.history for name in row if isinstance(row[name], dict)}
    assert run.files[found["report/roc"]["path"]] == figure.read_bytes()
    assert b"<title>The report</title>" in run.files[found["report/page"]["path"]]
    table = json.loads(run.files[found["tables/scores"]["path"]])
    assert table["columns"] == ["attribute", "f1"]
    assert [row[0] for row in table["data"]] == ["Smiling", "Male"]
    (best,) = [artifact for artifact in backend.artifacts if artifact.kind == "model"]
    assert best.committed
    assert "best" in best.aliases
    assert best.files["model.safetensors"] == b"weights"

    assert "No runs to sync" in sync(backend, "--include-online", "--yes", folder=folder)
    assert warnings(caplog) == []


def test_an_offline_run_in_two_parts_is_uploaded_as_one(backend: Backend, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "best/model.safetensors").write_bytes(b"weights")
    for first, last in ((0, 50), (30, 80)):
        time.sleep(first and 1)  # parts are named after the second in which they begin
        tracker = begin(backend, folder, mode="offline", upload_best=True)
        log(tracker, first, last)
        tracker.best(folder / "best", {"epoch": 1})
        tracker.media({}, {"scores": (["f1"], [[0.5]])}, last)
        tracker.finish()
    assert backend.asked == []
    sync(backend, "--include-online", "--yes", folder=folder)  # the command of README
    run = the_run(backend)
    assert_contiguous(run)
    assert [row["step"] for row in run.history if "step" in row] == [*range(0, 50, 10), *range(30, 80, 10)]
    assert curve(run) == {step: loss(step) for step in range(0, 80, 10)}
    assert sum("tables/scores" in row for row in run.history) == 2
    assert [each.files.get("model.safetensors") for each in backend.artifacts if each.kind == "model"] == [
        b"weights"
    ] * 2
    assert "No runs to sync" in sync(backend, "--include-online", "--yes", folder=folder)


@pytest.mark.parametrize("trouble", ["fails for a while", pytest.param("is slow", marks=pytest.mark.slow)])
def test_a_server_in_trouble_for_a_while_gets_everything_in_the_end(
    trouble: str, backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begin(backend, tmp_path / "run")
    log(tracker, 0, 50)
    if trouble == "is slow":
        backend.delay = 0.4
    until(lambda: backend.runs)
    if trouble == "fails for a while":
        until(lambda: the_run(backend).history)
        backend.status = 500
        threading.Timer(2.5, setattr, [backend, "status", 200]).start()
    log(tracker, 50, 100)
    tracker.finish()
    run = the_run(backend)
    assert_contiguous(run)
    assert curve(run) == {step: loss(step) for step in range(0, 100, 10)}
    assert run.exit_code == 0
    assert warnings(caplog) == []


SERVERS: list[Any] = [
    "refuses from the middle on",  # a key that was withdrawn, a run that was deleted
    pytest.param("fails from the middle on", marks=pytest.mark.slow),
    pytest.param("is silent from the middle on", marks=pytest.mark.slow),
    pytest.param("is silent from the middle on and holds up a table", marks=pytest.mark.slow),
    pytest.param("fails from the start", marks=pytest.mark.slow),
    pytest.param("is silent from the start", marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("server", SERVERS)
def test_what_does_not_arrive_is_in_the_run_folder_and_the_sentence_uploads_it(
    server: str, backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "my runs" / "one"

    def break_down() -> None:
        backend.status = {"fails": 500, "refuses": 404}.get(server.split()[0], 200)
        backend.delay = math.inf if "silent" in server else 0.0

    if "start" in server:
        break_down()
    tracker = begin(backend, folder, {"optim": {"lr": 0.1}})
    log(tracker, 0, 50)
    if "middle" in server:
        until(lambda: backend.runs and the_run(backend).history)
        break_down()
    log(tracker, 50, 100)
    if "table" in server:
        tracker.media({}, {"scores": (["f1"], [[0.5]])}, 100)
        log(tracker, 100, 150)
    began = time.monotonic()
    tracker.finish()
    assert time.monotonic() - began < 12
    (warning,) = warnings(caplog)

    backend.status, backend.delay = 200, 0.0
    before = len(the_run(backend).history) if backend.runs else 0
    remedy(backend, warning)
    run = the_run(backend)
    last = 150 if "table" in server else 100
    assert before < last // 10
    assert curve(run) == {step: loss(step) for step in range(0, last, 10)}
    assert run.config == {"optim": {"lr": 0.1}}
    assert any("tables/scores" in row for row in run.history) == ("table" in server)
    assert "No runs to sync" in sync(backend, "--include-online", "--yes", folder=folder)


def stopped(backend: Backend, folder: Path) -> None:
    """A run that W&B has and that somebody has stopped there."""
    folder.mkdir(exist_ok=True)
    (folder / "wandb_run_id").write_text("5t0ppedd\n")
    backend.runs["5t0ppedd"] = ServedRun("5t0ppedd", {"project": "distrib"}, stopped=True)


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B looks at once for what it has heard, and not every 15 seconds."""
    from wandb.sdk.lib.run_stopping import RunStopChecker

    monkeypatch.setitem(RunStopChecker.__init__.__kwdefaults__, "poll_interval", 0.1)


def train(backend: Backend, faces: Path, folder: Path, *more: object) -> int:
    log_in(backend)
    AcceleratorState._reset_state(reset_partial_state=True)
    seldom = ["--checkpoint.every-steps", 99, "--train.log-every", 1]
    options = settings(faces, folder, *seldom, "--resume", "auto", *more)
    return program.main([str(each) for each in options])


@pytest.mark.usefixtures("attentive")
def test_the_stop_button_stops_as_a_signal_does_and_a_resumed_run_goes_on(
    faces: Path, backend: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    backend.stop_after = 3
    assert train(backend, faces, folder, "--train.epochs", 60) == STOPPED
    said = capsys.readouterr()
    assert f"distrib: {STOP_BUTTON}: stopping after this step" in said.err
    assert f"stopped by {STOP_BUTTON} in epoch " in said.out
    stop = read_events(folder)[-1]
    assert (stop["event"], stop["reason"]) == ("stop", STOP_BUTTON)
    run = the_run(backend)
    assert run.exit_code == STOPPED
    assert max(curve(run)) == int(max((folder / "checkpoints").iterdir()).name.removeprefix("step-"))

    assert run.stopped  # to the server it still is; the resumed run has obeyed that
    epochs = stop["epoch"] + 1
    assert train(backend, faces, folder, "--train.epochs", epochs) == 0
    assert len(read_events(folder, "stop")) == 1
    steps = max(curve(run))
    assert sorted(curve(run)) == list(range(1, steps + 1))
    assert_contiguous(run)


@pytest.mark.usefixtures("attentive")
def test_a_stop_is_obeyed_once(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B may still say of a resumed run that it was stopped; what is pressed later counts."""
    folder, heard = tmp_path / "run", threading.Event()

    def part(rows: int) -> bool:
        """Whether a part of the run with so many rows hears that it is to stop."""
        heard.clear()
        log_in(backend)
        tracker = open_tracker(TrackingConfig(), folder, {}, heard.set)
        log(tracker, 0, 10 * rows)
        until(lambda: heard.is_set() or "the run continues" in caplog.text or not the_run(backend).stopped)
        tracker.finish()
        return heard.is_set()

    stopped(backend, folder)
    assert part(1)
    RunFolder(folder).event("stop", reason=STOP_BUTTON)
    assert not part(1)
    (warning,) = warnings(caplog)
    assert f"touch {folder / 'preempt'} can" in warning
    caplog.clear()
    monkeypatch.setattr(tracking, "STALE_SECONDS", 0.0)  # a minute, which has passed
    assert part(1)


@pytest.mark.slow
def test_the_stop_button_stops_all_ranks_after_the_same_step(faces: Path, backend: Backend, tmp_path: Path) -> None:
    """As it is outside of tests: W&B looks every 15 seconds."""
    folder, backend.stop_after = tmp_path / "run", 1
    options = settings(faces, folder, "--train.epochs", 500, "--train.log-every", 1, "--checkpoint.every-steps", 999)
    done = launch(
        *options, script="tests/support/observer.py", OBSERVE=str(tmp_path), **backend.environment, HOME=str(tmp_path)
    )
    assert done.returncode == 1, done.stderr  # the launcher's own
    assert f"exitcode  : {STOPPED}" in done.stderr
    assert f"distrib: {STOP_BUTTON}: stopping after this step" in done.stderr
    assert f"stopped by {STOP_BUTTON} in epoch " in done.stdout
    assert read_events(folder)[-1]["reason"] == STOP_BUTTON
    saved = int(max((folder / "checkpoints").iterdir()).name.removeprefix("step-"))
    trained = [len((tmp_path / f"rank-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert trained == [saved, saved]
    assert max(curve(the_run(backend))) == saved


@pytest.mark.slow
@pytest.mark.usefixtures("attentive")
def test_pressed_in_the_report_it_is_made_when_the_run_goes_on(
    faces: Path, backend: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    report = ["--train.epochs", 1, "--explain.after-training", True, "--explain.images", 1, "--explain.truth-images", 1]

    def press() -> None:
        until(lambda: (folder / "report").exists(), 120)
        the_run(backend).stopped = True

    person = threading.Thread(target=press)
    person.start()
    assert train(backend, faces, folder, *report) == STOPPED
    person.join()
    assert f"report: stopped by {STOP_BUTTON}; the model is safe" in capsys.readouterr().out
    assert read_events(folder)[-1]["reason"] == STOP_BUTTON
    assert read_events(folder, "report") == []
    assert train(backend, faces, folder, *report) == 0
    assert len(read_events(folder, "report")) == 1
    assert (folder / "report/index.html").exists()
    assert any("report/page" in row for row in the_run(backend).history)


@pytest.mark.slow
@pytest.mark.usefixtures("attentive")
def test_pressed_while_a_report_is_made_anew_it_is_interrupted_and_not_for_ever(
    faces: Path,
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    assert train(backend, faces, folder, "--train.epochs", 1, "--tracking.mode", "disabled") == 0
    again = [str(folder), "--tracking.mode", "online", "--only", "truth", "--explain.images", "1"]
    stopped(backend, folder)
    log_in(backend)
    with monkeypatch.context() as patched:  # W&B may need longer to hear of it than a small report takes
        # In short sleeps, as W&B's interruption does not end one.
        patched.setattr("distrib.explaining.maps.truth", lambda run: [time.sleep(0.1) for _ in range(1200)])
        assert explain.main(again) == 130
    assert f"distrib: {STOP_BUTTON}" in capsys.readouterr().err
    # The last event, unless a library has swallowed the interruption: then the job that was under way has ended.
    assert [event["reason"] for event in read_events(folder, "stop")] == [STOP_BUTTON]
    log_in(backend)
    assert explain.main(again) == 0
    assert "W&B still has the Stop" in caplog.text
    assert (folder / "report/index.html").exists()
