"""Runs that are asked to stop, killed, stopped in their tracks and started again; through the real launcher."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from accelerate.state import AcceleratorState
from forked_ranks import train_on_ranks
from launching import ROOT, clean_environment, free_port, launch, read_events, read_metrics
from small_run import BATCH, EVERY, assert_same_training, copied, settings, the_plan

from distrib import train as program
from distrib.ranks.stopping import STOPPED
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import METRICS
from distrib.scoring.metrics import Scores
from distrib.training import checkpoint, loop
from distrib.training.checkpoint import Progress, load_checkpoint
from distrib.training.start import choose
from distrib.training.state import TrainState
from distrib.training.training_run import TrainingRun


def newest(folder: Path) -> str:
    return max(path.name for path in (folder / "checkpoints").glob("step-*"))


def leftovers(folder: Path) -> list[str]:
    """What should be gone once a run has left."""
    hidden = [path.name for path in folder.rglob(".*")]
    return hidden + [name for name in ("preempt", "run.lock", "former-best") if (folder / name).exists()]


def test_the_next_epoch_begins_while_results_are_written_and_a_kill_then_costs_nothing(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, killed = tmp_path / "run", tmp_path / "killed"
    write, step, began = loop.write_results, TrainState.step, threading.Event()

    def watched_step(self: TrainState, micro_batches: Any) -> None:
        step(self, micro_batches)
        if (self.position.epoch, self.position.step) == (1, 1):
            began.set()

    def late(run: TrainingRun, progress: Progress, *more: Any) -> None:
        """After a step of epoch 2 what a kill would leave is copied; the results of that epoch take their time."""
        if progress.epoch == 1:
            assert began.wait(60)
            shutil.copytree(folder, killed)
        else:
            time.sleep(0.5)
        write(run, progress, *more)

    monkeypatch.setattr(TrainState, "step", watched_step)
    monkeypatch.setattr(loop, "write_results", late)
    options = ["--train.batch-size", 64, "--train.epochs", 2, "--checkpoint.every-steps", 1,
               "--tracking.mode", "disabled"]  # fmt: skip
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 0
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    best = json.loads((folder / "best/model.json").read_text())
    assert best["epoch"] == max(rows, key=lambda row: row["val_roc_auc"])["epoch"]
    assert newest(folder) == f"step-{int(rows[-1]['step']):08d}"
    assert [event["event"] for event in read_events(folder)][-2:] == ["epoch", "end"]

    assert newest(killed) == "step-00000001"
    assert not (killed / "metrics.csv").exists()
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert program.main([str(each) for each in settings(faces, killed, "--resume", "auto", *options)]) == 0
    assert_same_training(folder, killed)
    assert leftovers(killed) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["results", "supersede"])
def test_killed_between_a_better_epoch_and_its_checkpoint_it_ends_as_if_it_had_not_been(
    moment: str, faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    undisturbed, _, _ = finished
    folder = tmp_path / "run"
    options = settings(faces, folder, "--resume", "auto", "--tracking.mode", "disabled")
    killed = launch(*options, script="tests/support/observer.py", DISTURB=f"{moment} 0 self:SIGKILL")
    assert killed.returncode == 1
    if moment == "supersede":
        epochs = [json.loads((folder / name / "model.json").read_text())["epoch"] for name in ("former-best", "best")]
        assert epochs[0] < epochs[1] == len(read_metrics(folder))
    else:
        assert len(read_metrics(folder)) == 1
    resumed = train_on_ranks(2, *options)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(undisturbed, folder)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_asked_to_stop_wherever_it_is_it_ends_as_if_it_had_not_been(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    """One run, stopped again and again, each time in another way and at another moment."""
    undisturbed, _, _ = finished
    per_epoch = the_plan(faces, undisturbed).steps_per_epoch
    folder = tmp_path / "run"
    disturbances = [
        ("2 0 preempt", 3, "the file "),
        ("5 1 self:SIGUSR1", 6, "a request to another rank"),
        ("evaluation 1 launcher:SIGTERM", per_epoch, "SIGTERM"),
        ("write 0 launcher:SIGTERM", None, "SIGTERM"),
        (f"{per_epoch + 5} 0 launcher:SIGINT", per_epoch + 6, "SIGINT"),
        (f"{per_epoch + 8} 1 preempt", None, "the file "),
    ]
    for disturbance, saved, reason in disturbances:
        seldom = {"SELDOM": "2.5"} if "1 preempt" in disturbance else {}  # rank 1 would see the file long before rank 0
        options = settings(faces, folder, "--resume", "auto")
        if "launcher:" in disturbance:
            done = launch(*options, script="tests/support/observer.py", DISTURB=disturbance)
            assert done.returncode == 1, done.stderr  # the launcher's own; the ranks' is in the next test
        else:
            done = train_on_ranks(2, *options, DISTURB=disturbance, **seldom)
            assert done.returncode == STOPPED, done.stderr
        assert "and saved; resume with --config" in done.stdout, done.stdout + done.stderr
        stop = read_events(folder)[-1]
        assert stop["event"] == "stop"
        assert stop["reason"].startswith(reason)
        if saved is not None:
            assert newest(folder) == f"step-{saved:08d}", disturbance
        assert leftovers(folder) == []
    done = train_on_ranks(2, *settings(faces, folder, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    assert len(read_events(folder, "stop")) == len(disturbances)
    assert_same_training(undisturbed, folder)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_distrib_train_leaves_with_the_ranks_own_status(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*settings(faces, folder, "--tracking.mode", "disabled"), "--run.ranks", 2]
    running = subprocess.Popen(
        [sys.executable, "-m", "distrib", "train", *map(str, options)],
        cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: list((folder / "checkpoints").glob("step-*")))
    (folder / "preempt").touch()
    said, errors = running.communicate(timeout=60)
    assert running.returncode == STOPPED, errors
    assert f"resume with --config {folder / 'config.yaml'} --resume auto" in said
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_no_orphans(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launch(
        *settings(faces, folder),
        script="tests/support/observer.py",
        DISTURB="4 0 launcher:SIGKILL",
        OBSERVE=str(tmp_path),
    )
    until(lambda: all((tmp_path / f"left-{rank}").exists() for rank in (0, 1)))
    assert read_events(folder)[-1]["reason"] == "the end of the launcher"
    assert leftovers(folder) == []


@pytest.mark.slow
def test_ranks_that_have_not_met_do_not_wait_for_a_launcher_that_is_killed(faces: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    command += ["--main_process_port", str(free_port()), "distrib/train.py"]
    options = [str(each) for each in settings(faces, tmp_path / "run")]
    launcher = subprocess.Popen([*command, *options], cwd=ROOT, env=clean_environment())
    ranks: list[psutil.Process] = []
    try:
        until(lambda: len(psutil.Process(launcher.pid).children()) == 2)
        ranks = psutil.Process(launcher.pid).children()
        until(lambda: all(catches(rank.pid, signal.SIGUSR1) for rank in ranks))  # their imports take seconds from here
        launcher.kill()
        launcher.wait()
        until(lambda: not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks), 20)
    finally:
        for process in (launcher, *ranks):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_that_dies_is_started_again_by_the_launcher(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    undisturbed, _, _ = finished
    folder = tmp_path / "run"
    disturbance = f"{the_plan(faces, undisturbed).steps_per_epoch + EVERY + 1} 1 self:SIGKILL"
    done = launch(  # and nobody said --resume
        *settings(faces, folder, "--tracking.mode", "disabled"),
        script="tests/support/observer.py", restarts=1, DISTURB=disturbance,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"distrib: rank 0 leaves: rank 1 \(process \d+ on .+\) has gone", done.stderr)
    assert [event["restarts"] for event in read_events(folder, "start")] == [0, 1]
    assert len(read_events(folder, "resume")) == 1
    assert_same_training(undisturbed, folder)


@pytest.mark.slow
def test_a_stop_is_not_undone_by_a_launcher_that_restarts(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = settings(faces, folder, "--tracking.mode", "disabled")
    done = launch(*options, script="tests/support/observer.py", restarts=3, DISTURB="3 0 preempt")
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in read_events(folder)] == ["start", "stop"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disturbance", "rank", "what"),
    [
        ("20 1 self:SIGSTOP", 1, "gives no sign of life for 4 s"),  # in the second epoch
        ("read 1 hang", 1, "has come no further for 10 s"),
        ("write 0 hang", 0, "has come no further for 10 s"),  # the next checkpoint waits for the one under way
    ],
)
def test_a_rank_that_hangs_is_named(disturbance: str, rank: int, what: str, faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu.yaml"]
    command += ["--main_process_port", str(free_port()), "tests/support/observer.py"]
    options = settings(faces, folder, "--run.timeout", 4, "--run.start-timeout", 10, "--tracking.mode", "disabled")
    running = subprocess.Popen(
        [*command, *map(str, options)], cwd=ROOT, env=clean_environment(DISTURB=disturbance),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: (folder / "events.jsonl").exists() and read_events(folder, "lost"))
    (lost,) = read_events(folder, "lost")
    hanging = re.fullmatch(rf"rank {rank} \(process (\d+) on .+\) {what}", lost["reason"])
    assert hanging, lost
    with suppress(ProcessLookupError):  # one that still has a thread leaves by itself
        os.kill(int(hanging[1]), signal.SIGKILL)  # the launcher does that after 30 seconds
    _, errors = running.communicate(timeout=60)
    assert f"distrib: rank 0 leaves: {lost['reason']}" in errors


@pytest.mark.slow
def test_a_restart_does_not_take_up_the_run_of_somebody_else(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    folder = copied(finished[0], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    done = launch(*settings(faces, folder, "--train.epochs", 9), restarts=1)
    assert done.returncode == 1
    assert done.stderr.count("holds a run already") == 2  # it is refused again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def alone(
    faces: Path, folder: Path, *more: object, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """One process, without a launcher, watched by the observer."""
    options = settings(faces, folder, "--tracking.mode", "disabled", *more)
    return launch(*options, ranks=1, script="tests/support/observer.py", timeout=timeout, **environment)


def test_a_second_ctrl_c_leaves_at_once(faces: Path, tmp_path: Path) -> None:
    done = alone(faces, tmp_path / "run", DISTURB="3 0 twice:SIGINT", OBSERVE=str(tmp_path))
    ended = time.time()
    began = (tmp_path / "rank-0.jsonl").stat().st_mtime  # with the last step that was made
    assert done.returncode == 128 + signal.SIGINT
    assert "Ctrl-C again leaves at once" in done.stderr
    assert "left at once by a second SIGINT" in done.stderr
    assert ended - began < 30  # the step it was in would have taken so long
    assert not read_events(tmp_path / "run", "stop")


def test_before_there_is_anything_to_save_it_leaves_at_once(faces: Path, tmp_path: Path) -> None:
    options = [str(each) for each in settings(faces, tmp_path / "run")]
    running = subprocess.Popen(
        [sys.executable, "distrib/train.py", *options], cwd=ROOT, env=clean_environment(), stderr=subprocess.PIPE
    )
    # Its imports take seconds; it listens before them.
    until(lambda: catches(running.pid, signal.SIGUSR1))
    running.send_signal(signal.SIGUSR1)
    assert running.wait(20) == STOPPED
    assert b"stopped by SIGUSR1" in running.stderr.read()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stopped_in_the_report_it_is_made_when_the_run_goes_on(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = ["--data.subset", 32, "--train.epochs", 1, "--explain.after-training", True, "--explain.images", 1,
             "--explain.truth-images", 1, "--explain.bootstrap", 10, "--explain.window", 16,
             "--explain.stride", 16]  # fmt: skip
    options = settings(faces, folder, *small)
    done = train_on_ranks(1, *options, DISTURB="report 0 self:SIGTERM")
    assert done.returncode == STOPPED, done.stderr
    assert "report: stopped by SIGTERM; the model is safe" in done.stdout
    assert read_events(folder)[-1]["event"] == "stop"
    assert not (folder / "report/index.html").exists()
    done = train_on_ranks(1, *options, "--resume", "auto", DISTURB="report 0 preempt")
    assert done.returncode == STOPPED, done.stderr
    assert f"report: stopped by the file {folder / 'preempt'}" in done.stdout
    assert not (folder / "preempt").exists()
    done = train_on_ranks(1, *options, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "is finished: 1 epochs" in done.stdout
    assert (folder / "report/index.html").exists()
    assert [row["epoch"] for row in read_metrics(folder)] == [1]


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_on_the_disk_need_not_end_the_run(faces: Path, tmp_path: Path) -> None:
    """No file may grow past 60 MB: weights fit, the optimiser does not."""
    folder = tmp_path / "run"
    options = settings(faces, folder, "--tracking.mode", "disabled", "--train.epochs", 1, "--data.subset", 64)
    command = shlex.join([sys.executable, "distrib/train.py", *map(str, options)])

    def limited(more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", f"ulimit -f 60000; trap '' XFSZ; {command} {more}"],
            cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    done = limited("--checkpoint.on-failure continue")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in read_metrics(folder)] == [1]
    assert "cannot be written" in done.stderr
    assert "training continues" in done.stderr
    assert len(read_events(folder, "checkpoint_failed")) > 1
    assert list((folder / "checkpoints").iterdir()) == []
    done = limited(f"--run.folder {tmp_path / 'other'}")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    options = [*map(str, settings(faces, folder, "--tracking.mode", "disabled", "--train.epochs", 50))]
    first = subprocess.Popen([sys.executable, "distrib/train.py", *options], cwd=ROOT, env=clean_environment())
    try:
        until(lambda: list((folder / "checkpoints").glob("step-*")))
        monkeypatch.setattr("distrib.training.start.LEAVES_WITHIN", 0.5)
        assert program.main([*options, "--resume", "auto"]) == 2
        assert f"is in use by process {first.pid} on " in capsys.readouterr().err
    finally:
        first.kill()
        first.wait()
    # A killed run leaves the file, and no lock.
    assert (folder / "run.lock").exists()
    assert program.main([*options[:-1], "1", "--resume", "auto"]) == 0
    assert leftovers(folder) == []


def test_the_clock_asks_for_checkpoints_too(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = settings(faces, folder, "--checkpoint.every-minutes", 1e-6, "--checkpoint.every-steps", 1000,
                         "--train.epochs", 1, "--data.subset", 64, "--tracking.mode", "disabled")  # fmt: skip
    assert program.main([str(each) for each in arguments]) == 0
    last = the_plan(faces, folder).steps_per_epoch
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (last - 2, last - 1, last)]


def test_steps_that_are_not_finite_are_skipped_up_to_a_limit(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = settings(faces, folder, "--optim.lr", "1e30", "--optim.schedule", "constant", "--tracking.mode",
                         "disabled", "--train.on-nonfinite", "skip", "--train.nonfinite-limit", 2)  # fmt: skip
    assert program.main([str(each) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert len(re.findall(r"step \d+ \(epoch 1\) was skipped", said)) == 2
    assert "after 2 that were skipped (train.nonfinite_limit)" in said
    events = read_events(folder, "nonfinite")
    assert len(events) == 3
    plan = the_plan(faces, folder)
    for event in events:
        assert event["ids"] == plan.batch(0, event["step"] - 1).ids.tolist()
        assert len(event["images"]) == BATCH


def test_a_run_without_its_checkpoints_does_not_start_over(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step\n1,7\n2,14\n")
    status = program.main([str(each) for each in settings(faces, tmp_path, "--resume", "auto")])
    assert status == 2
    assert "has a run of 2 epochs and no checkpoint of it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_run_whose_checkpoints_could_not_be_written_starts_over(faces: Path, tmp_path: Path) -> None:
    rows = [",".join(METRICS), *(",".join([str(epoch)] * len(METRICS)) for epoch in (1, 2))]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, ""]))
    (tmp_path / "events.jsonl").write_text('{"event": "checkpoint_failed"}\n')
    short = ["--train.epochs", 1, "--data.subset", 32, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    assert program.main([str(each) for each in settings(faces, tmp_path, "--resume", "auto", *short)]) == 0
    assert [row["step"] for row in read_metrics(tmp_path)] == [the_plan(faces, tmp_path).steps_per_epoch]


@pytest.mark.slow
def test_results_are_never_two_epochs_ahead_of_the_checkpoints(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the disk is: else a kill could leave two rows and no checkpoint, which is a run that lost them."""
    folder, epochs = tmp_path / "run", []
    write, add_row = checkpoint.save_checkpoint, RunFolder.epoch

    def slow(*arguments: Any) -> Path:
        time.sleep(1)
        return write(*arguments)

    def look(self: RunFolder, row: dict[str, float], scores: Scores) -> None:
        epochs.append([load_checkpoint(each).progress.epoch for each in sorted(self.checkpoints.glob("step-*"))])
        add_row(self, row, scores)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    monkeypatch.setattr(RunFolder, "epoch", look)
    short = ["--data.subset", 32, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    assert program.main([str(each) for each in settings(faces, folder, *short)]) == 0
    assert epochs == [[], [1], [1, 2]]
    assert not (folder / "former-best").exists()


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_a_run_from_elsewhere_begins_there_again(
    faces: Path, finished: tuple[Path, str, Path], tmp_path: Path
) -> None:
    start = min((finished[0] / "checkpoints").iterdir())
    options = ["--resume", start, "--train.epochs", 4, "--checkpoint.every-steps", 99, "--tracking.mode", "disabled"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert program.main([str(each) for each in settings(faces, undisturbed, *options)]) == 0
    killed = alone(faces, folder, *options, DISTURB="write 0 self:SIGKILL")
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "best").exists()
    assert [path.suffix for path in (folder / "checkpoints").iterdir()] == [".staged"]
    again = choose(RunFolder(folder), "auto")
    assert again is not None
    assert again.folder == start
    AcceleratorState._reset_state(reset_partial_state=True)
    assert program.main([str(each) for each in settings(faces, folder, *options)]) == 0
    assert_same_training(undisturbed, folder)
    assert leftovers(folder) == []


def until(happened: Callable[[], object], seconds: float = 90) -> None:
    """Wait for something that happens in another process."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.05)


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        pytest.skip("needs /proc, to see when a process is listening")
    caught = re.search(r"^SigCgt:\s+([0-9a-f]+)$", status.read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def test_what_may_change_on_resume_is_listed() -> None:
    """docs/reliability.md names every field of the configuration that a resumed run may not change, and no other."""
    from distrib.training.checkpoint import FIXED

    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    listed = text.partition("<!-- fixed -->")[2].partition("<!-- /fixed -->")[0]
    assert set(re.findall(r"`([\w.]+)`", listed)) == set(FIXED)
