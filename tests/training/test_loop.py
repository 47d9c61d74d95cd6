"""The loop, in this process, on one rank; several ranks are in tests/test_train.py."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from small_run import assert_same_training, settings

from distrib.ranks.host_copy import LAG, HostCopy
from distrib.runs.tracking import Tracker
from distrib.train import main
from distrib.training.checkpoint import Progress, WriteFirst, nothing
from distrib.training.checkpointer import Checkpointer

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
