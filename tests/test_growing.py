"""Runs whose images grow; whole, and taken up again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forked_ranks import train_on_ranks
from launching import read_events
from sentences import refusal
from small_run import EVERY, assert_same_training, go_back, settings, the_plan

from distrib import train as program
from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.trained import load
from distrib.training.checkpoint import Progress
from distrib.training.loop import finished as is_finished
from distrib.training.step import TrainStep

# Of three epochs they grow in the second one: 1.2 epochs are smaller.
GROW = ["--data.image-size", 48, 48, "--data.grow", "32@0 48@0.4"]


@dataclass
class Witnessed:
    """What a run did in this process.

    Attributes:
        folder: of the run.
        shapes: of the images of each step, in their order.
        judged: the epochs of which the judge of a trial was asked.
    """

    folder: Path
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)


def train(faces: Path, folder: Path, *more: object) -> Witnessed:
    seen, step = Witnessed(folder), TrainStep.__call__

    def watched_step(self: TrainStep, micro_batches: Sequence[Batch], number: int) -> None:
        seen.shapes.append(tuple(micro_batches[0].images_BHWC.shape))
        step(self, micro_batches, number)

    def judge(row: Mapping[str, float]) -> bool:
        seen.judged.append(row["epoch"])
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", watched_step)
        patch.setattr(program, "open_judge", lambda _: judge)
        assert program.main(list(map(str, growing(faces, folder, *more)))) == 0
    return seen


def growing(faces: Path, folder: Path, *more: object) -> list[object]:
    return settings(faces, folder, *GROW, "--checkpoint.keep", 99, "--tracking.mode", "disabled", *more)


@pytest.fixture(scope="module")
def undisturbed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Witnessed:
    return train(faces, tmp_path_factory.mktemp("undisturbed") / "run")


def step_of_growth(faces: Path, run: Path) -> int:
    """The first step at full size, counted from 0, which lies within the second epoch."""
    per_epoch = the_plan(faces, run).steps_per_epoch
    step = 3 * per_epoch * 4 // 10
    assert per_epoch < step < 2 * per_epoch
    return step


def test_steps_are_of_the_size_that_the_run_says(faces: Path, undisturbed: Witnessed) -> None:
    first, total = step_of_growth(faces, undisturbed.folder), 3 * the_plan(faces, undisturbed.folder).steps_per_epoch
    assert undisturbed.shapes == [(16, 32, 32, 3)] * first + [(16, 48, 48, 3)] * (total - first)
    assert read_events(undisturbed.folder, "start")[0]["image_size"] == [32, 32]
    events = [(event["epoch"], event["step"], event["image_size"]) for event in read_events(undisturbed.folder, "grow")]
    assert events == [(2, first + 1, [48, 48])]


def test_no_epoch_is_the_best_one_or_judged_before_it_ends_at_full_size(undisturbed: Witnessed) -> None:
    best = [event["best_epoch"] for event in read_events(undisturbed.folder, "epoch")]
    assert best[:2] == [0, 2]
    assert undisturbed.judged == [2, 3]
    assert load(undisturbed.folder).description.image_size == (48, 48)


def test_patience_begins_at_full_size() -> None:
    config = Config().replace("data", grow="112@0 178@0.5").replace("train", epochs=10, early_stopping=2)
    assert [is_finished(config, Progress(epoch=epoch)) for epoch in (4, 5, 6, 7)] == [False, False, False, True]
    assert [is_finished(config, Progress(epoch=epoch, best_epoch=6)) for epoch in (7, 8)] == [False, True]
    # The shares move with the number of epochs, and what was the best one then does not count as patience now.
    longer = config.replace("train", epochs=20)
    assert [is_finished(longer, Progress(epoch=epoch, best_epoch=6)) for epoch in (8, 11, 12)] == [False, False, True]


@pytest.mark.slow
def test_it_resumes_before_and_after_images_have_grown_as_if_it_had_not_stopped(
    faces: Path, undisturbed: Witnessed, tmp_path: Path
) -> None:
    grown = step_of_growth(faces, undisturbed.folder)
    per_epoch = the_plan(faces, undisturbed.folder).steps_per_epoch
    moments = [per_epoch + (grown - per_epoch) // EVERY * EVERY, 2 * per_epoch - 1]
    moments[1] -= (moments[1] - per_epoch) % EVERY
    assert moments[0] <= grown < moments[1] < 2 * per_epoch
    for steps in moments:
        folder = go_back(undisturbed.folder, tmp_path / str(steps), steps)
        again = train(faces, folder, "--resume", "auto", "--checkpoint.every-steps", 99)
        assert again.shapes == undisturbed.shapes[steps:]
        assert_same_training(undisturbed.folder, folder)


@pytest.mark.slow
def test_on_two_ranks_it_resumes_as_if_it_had_not_stopped_with_images_in_memory(faces: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    # They grow in the second epoch here too.
    short = ["--train.epochs", 2, "--data.grow", "32@0 48@0.6", "--checkpoint.every-steps", 99]
    done = train_on_ranks(2, *growing(faces, undisturbed, *short))
    assert done.returncode == 0, done.stderr
    steps = the_plan(faces, undisturbed).steps_per_epoch
    (growth,) = read_events(undisturbed, "grow")
    assert growth["step"] > steps + 1
    folder = go_back(undisturbed, tmp_path / "run", steps)
    done = train_on_ranks(2, *growing(faces, folder, *short, "--resume", "auto", "--data.resident", "host"))
    assert done.returncode == 0, done.stderr
    assert_same_training(undisturbed, folder)


def test_other_sizes_are_refused_on_resuming(
    faces: Path, undisturbed: Witnessed, capsys: pytest.CaptureFixture[str]
) -> None:
    options = growing(faces, undisturbed.folder, "--resume", "auto", "--data.grow", "32@0 48@0.5")
    assert program.main(list(map(str, options))) == 2
    assert "data.grow is 32@0 48@0.5, and " in capsys.readouterr().err


def test_a_run_that_has_no_best_model_yet_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    refusal(lambda: load(tmp_path), str(tmp_path), "has no best/ yet", "one of its checkpoints")
