"""Runs with every augmentation: on one rank and on two, whole, and taken up again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from forked_ranks import on_ranks
from launching import read_metrics
from sentences import refusal
from small_run import BATCH, assert_same_training, go_back, settings

from distrib import train as program
from distrib.checking.stepping import AUGMENT
from distrib.config import load_config
from distrib.data.augmentation import Augmentation
from distrib.data.batch import Batch
from distrib.training.checkpoint import load_checkpoint, refuse_changes
from distrib.training.step import TrainStep

# Of each group that was trained on, by the step and the first row of the group: a digest of its images and targets.
Digests = dict[tuple[int, int], str]
STEPS = 4  # of an epoch


def augmented(faces: Path, folder: Path, *more: object) -> list[object]:
    """Two epochs of four steps on two groups of eight, in the second of which images grow."""
    small = ["--data.subset", STEPS * BATCH, "--train.norm-size", 8, "--train.epochs", 2, "--optim.name", "sgd"]
    small += ["--optim.lr", 1e-3, "--data.grow", "16@0 32@0.7", "--train.precision", "no"]
    everything = [word for name, value in AUGMENT.model_dump().items() for word in (f"--augment.{name}", value)]
    return settings(faces, folder, *small, *everything, "--tracking.mode", "disabled", "--checkpoint.keep", 99, *more)


def train(arguments: Sequence[object]) -> Digests:
    """Train on this rank; what each step got."""
    seen: Digests = {}
    step, augment = TrainStep.__call__, Augmentation.__call__
    epochs: list[int] = []

    def watched_augmentation(self: Augmentation, batch: Batch, epoch: int) -> Batch:
        epochs.append(epoch)
        return augment(self, batch, epoch)

    def watched_step(self: TrainStep, micro_batches: Sequence[Batch], number: int) -> None:
        assert set(epochs) == {number // STEPS}
        epochs.clear()
        for batch in micro_batches:
            images, targets = batch.images_BHWC.numpy(), batch.targets_BA.numpy()
            digest = hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest()
            seen[number, int(batch.ids_B[0])] = digest
        step(self, micro_batches, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", watched_step)
        patch.setattr(Augmentation, "__call__", watched_augmentation)
        assert program.main([str(each) for each in arguments]) == 0
    return seen


@pytest.fixture(scope="module")
def undisturbed(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digests]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, train(augmented(faces, folder))


def test_two_ranks_train_on_the_very_images_and_targets_of_one(
    faces: Path, undisturbed: tuple[Path, Digests], tmp_path: Path
) -> None:
    folder, seen = undisturbed
    assert len(set(seen.values())) == len(seen) == 2 * STEPS * 2
    of_ranks = on_ranks(2, train, augmented(faces, tmp_path / "two"))
    assert [len(each) for each in of_ranks] == [2 * STEPS] * 2
    assert of_ranks[0] | of_ranks[1] == seen
    losses = [[row["train_loss"] for row in read_metrics(each)] for each in (folder, tmp_path / "two")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # the order of sums differs


def test_it_resumes_within_an_epoch_as_if_it_had_not_stopped(
    faces: Path, undisturbed: tuple[Path, Digests], tmp_path: Path
) -> None:
    folder, seen = undisturbed
    steps = STEPS + 2
    again = go_back(folder, tmp_path / "run", steps)
    assert train(augmented(faces, again, "--resume", "auto")) == {
        (step, first): digest for (step, first), digest in seen.items() if step >= steps
    }
    assert_same_training(folder, again)


def test_another_augmentation_or_loss_is_refused_on_resuming(faces: Path, undisturbed: tuple[Path, Digests]) -> None:
    folder, _ = undisturbed
    checkpoint = load_checkpoint(max((folder / "checkpoints").iterdir()))
    for name in AUGMENT.model_dump():
        config, _ = load_config([str(each) for each in augmented(faces, folder, f"--augment.{name}", 0)])
        refusal(lambda config=config: refuse_changes(checkpoint, config, "", []), f"augment.{name} is 0.0, and ")
    for key, value in (("train.label_smoothing", 0.1), ("train.positive_weight", "balanced")):
        config, _ = load_config([str(each) for each in augmented(faces, folder, f"--{key.replace('_', '-')}", value)])
        refusal(lambda config=config: refuse_changes(checkpoint, config, "", []), f"{key} is {value}, and ")
