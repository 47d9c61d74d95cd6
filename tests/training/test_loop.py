"""The loop, in this process, on one rank; several ranks are in tests/test_train.py."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from small_run import assert_same_training, settings

from distrib.ranks.host_copy import LAG, HostCopy
from distrib.ranks.stopping import STOPPED
from distrib.runs.folder import RunFolder
from distrib.runs.metrics import read_speed
from distrib.runs.tracking import Tracker
from distrib.train import main
from distrib.training.checkpoint import Progress, WriteFirst, nothing
from distrib.training.checkpointer import Checkpointer
from distrib.training.speed import flops_per_image

Rows = list[tuple[int, dict[str, float]]]
CLOCKS = {"train/images_per_second", "train/data_share", "train/mfu"}


def train(monkeypatch: pytest.MonkeyPatch, faces: Path, folder: Path, *more: object) -> tuple[int, Rows]:
    """The exit status of a run, and what its steps were said to have come to, by the number of the last one."""
    rows: Rows = []

    class Recorder(Tracker):
        def step(self, metrics: Mapping[str, float], step: int) -> None:
            rows.append((step, {name: value for name, value in metrics.items() if name not in CLOCKS}))

    monkeypatch.setattr("distrib.training.run.open_tracker", lambda *_: Recorder())
    status = main([str(each) for each in settings(faces, folder, "--train.epochs", 1, *more)])
    return status, rows


def test_a_look_that_the_device_answers_later_shows_the_same(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the host hears some steps later of what it looks at; here it is a CPU that is said to be behind."""
    more = ("--data.subset", 112, "--train.log-every", 1, "--checkpoint.every-steps", 3)
    at_once = train(monkeypatch, faces, tmp_path / "at-once", *more)
    monkeypatch.setattr(HostCopy, "lag", LAG)
    later = train(monkeypatch, faces, tmp_path / "later", *more)
    assert at_once == later
    assert [step for step, _ in later[1]] == list(range(1, 8))
    assert_same_training(tmp_path / "at-once", tmp_path / "later")


def test_what_the_last_step_of_an_epoch_wished_is_not_wished_again_while_it_is_validated(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint was due by the clock in the second step of two; the epoch's own follows, and no other. Validation
    has a single batch, and so fewer rounds than an answer is late."""
    saved: list[int] = []
    save = Checkpointer.save

    def record(self: Checkpointer, progress: Progress, first: WriteFirst = nothing) -> None:
        saved.append(self._state.position.run_step)
        save(self, progress, first)

    monkeypatch.setattr(HostCopy, "lag", LAG)
    monkeypatch.setattr(Checkpointer, "overdue", lambda self: self._state.position.run_step == 1)
    monkeypatch.setattr(Checkpointer, "save", record)
    more = ("--train.batch-size", 32, "--data.subset", 64, "--train.epochs", 2, "--checkpoint.every-steps", 100)
    assert train(monkeypatch, faces, tmp_path / "run", *more)[0] == 0
    assert saved == [2, 4]


def test_what_a_stopped_run_has_done_is_in_speed_csv(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within its only epoch, of three steps: no epoch is whole then."""

    class Stopper(Tracker):
        def __init__(self, stop: Callable[[], None]) -> None:
            self._stop = stop

        def step(self, metrics: Mapping[str, float], step: int) -> None:
            if step == 1:
                self._stop()

    def open_tracker(*arguments: Any) -> Tracker:
        return Stopper(arguments[-1])

    monkeypatch.setattr("distrib.training.run.open_tracker", open_tracker)
    more = ("--data.subset", 48, "--train.epochs", 1, "--train.log-every", 1, "--resume", "auto")
    options = [str(each) for each in settings(faces, tmp_path / "run", *more)]
    assert main(options) == STOPPED
    assert main(options) == 0
    rows = read_speed(tmp_path / "run")
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 2), (1, 3), (1, 3)]
    # Each of the two processes prepared itself, and every image of the three steps is counted once.
    assert [row["preparation_share"] > 0 for row in rows] == [True, True, False]
    assert sum(row["flops"] for row in rows) == 3 * 16 * flops_per_image(3, (32, 32), "none")


def test_a_run_that_is_trained_ends_well_though_speed_csv_cannot_be_written(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, event = tmp_path / "run/speed.csv", RunFolder.event

    def blocking(self: RunFolder, kind: str, **fields: Any) -> None:
        event(self, kind, **fields)
        if kind == "end":
            file.unlink()
            file.mkdir()

    monkeypatch.setattr(RunFolder, "event", blocking)
    assert train(monkeypatch, faces, tmp_path / "run", "--data.subset", 64)[0] == 0
    said = capsys.readouterr()
    assert "speed.csv lacks its last row, of what this process did after its last whole epoch: " in said.err
    assert "best epoch: 1 " in said.out
