"""A step tried out before the first: what a rank does that has no room for its share, and what it is told."""

import io
import os
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import on_ranks
from launching import read_events
from small_run import assert_same_training, settings
from torch import nn

from distrib import train as program
from distrib.config import Config
from distrib.model.network import AttributeClassifier
from distrib.ranks import ending
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.runs.folder import RunFolder
from distrib.runs.tracking import Tracker
from distrib.training import probe
from distrib.training.check import read_data
from distrib.training.checkpoint import Checkpoint, Progress, load_checkpoint
from distrib.training.grouping import group_batch, halve, what_to_lower
from distrib.training.probe import parts_to_come
from distrib.training.training_run import TrainingRun

BATCH = 64
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


def has_room_for(images: int) -> Any:
    """A device on which a forward pass of more images does not fit; the handle takes it away."""

    def refuse(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, AttributeClassifier) and len(arguments[0]) > images:
            raise torch.OutOfMemoryError(SAID)

    return nn.modules.module.register_module_forward_pre_hook(refuse)


def trained(room: int, *arguments: object) -> tuple[int, str]:
    """The program on this rank: its status, and what it says on standard error. Rank 1 has room for so many images."""
    probe.REFUSING = ("cpu",)  # which would else promise any amount
    ending.SPEAK_WITHIN = 0  # there is no launcher to wait for
    if os.environ["RANK"] == "1":
        has_room_for(room)
    with redirect_stderr(io.StringIO()) as said:
        status = program.main([str(each) for each in arguments])
    return status, said.getvalue()


def options(faces: Path, folder: Path, *more: object) -> list[object]:
    return settings(
        faces, folder, "--train.batch-size", BATCH, "--train.epochs", 1, "--tracking.mode", "disabled", *more
    )


@pytest.fixture(name="halved", scope="module")
def a_run_of_which_one_rank_has_no_room(
    faces: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, str]]]:
    """Its folder, and how its ranks ended."""
    folder = tmp_path_factory.mktemp("halved") / "run"
    return folder, on_ranks(2, trained, 20, *options(faces, folder))


def test_where_one_rank_has_no_room_all_take_fewer_images_at_a_time(halved: tuple[Path, list[tuple[int, str]]]) -> None:
    folder, [(status, said), (other, _)] = halved
    assert (status, other) == (0, 0)
    now = "cut into 2 (train.accumulation), and BatchNorm normalises over 16 images (train.norm_size) in this run"
    assert f"warning: rank 1 has no room for 32 images at a time: a rank's share of a batch is {now}" in said
    (start,) = read_events(folder, "start")
    assert (start["norm_size"], start["accumulation"]) == (16, 2)
    progress = load_checkpoint(max((folder / "checkpoints").iterdir())).progress
    assert (progress.norm_size, progress.accumulation) == (16, 2)


@pytest.mark.slow
def test_what_was_tried_leaves_nothing_behind(
    halved: tuple[Path, list[tuple[int, str]]], faces: Path, tmp_path: Path
) -> None:
    """The run is the one that it would be with that size from the start."""
    asked = on_ranks(2, trained, BATCH, *options(faces, tmp_path / "asked", "--train.norm-size", 16))
    assert [status for status, _ in asked] == [0, 0]
    assert_same_training(halved[0], tmp_path / "asked")


def test_where_even_few_images_have_no_room_every_rank_leaves(faces: Path, tmp_path: Path) -> None:
    (status, said), (other, _) = on_ranks(2, trained, 8, *options(faces, tmp_path / "run"))
    assert (status, other) == (3, 3)
    (line,) = said.splitlines()
    assert line == (
        "distrib: error: out of memory (a step does not fit on rank 1: CUDA out of memory): set "
        "train.norm_size to 8, so that a rank holds 8 images at a time, not 16; or lower, in a new run, "
        "train.batch_size (64) or data.image_size (32 32)"
    )
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_run_that_is_told_its_size_ends_where_it_has_no_room(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "REFUSING", ("cpu",))
    device = has_room_for(8)
    try:
        arguments = options(faces, tmp_path / "run", "--train.norm-size", 16, "--train.accumulation", 4)
        assert program.main([str(each) for each in arguments]) == 3
    finally:
        device.remove()
    assert (
        "error: out of memory (CUDA out of memory): set train.norm_size to 8, and train.accumulation to auto, so that "
        "a rank holds 8 images at a time, not 16; or lower, in a new run, train.batch_size (64)"
    ) in capsys.readouterr().err


def test_halves_that_are_none_or_too_small_are_not_taken() -> None:
    def halves(batch: int, ranks: int) -> tuple[int, int] | None:
        half = halve(group_batch(Config().replace("train", batch_size=batch), ranks, None))
        return None if half is None else (half.norm_size, half.accumulation)

    assert halves(256, 2) == (64, 2)
    assert halves(64, 2) == (16, 2)
    assert halves(66, 2) is None  # 33 images have no half
    assert halves(60, 2) is None  # 15 are too few


def test_what_to_lower_has_the_numbers_that_would_do() -> None:
    config = Config().replace("train", batch_size=30).replace("data", resident="device")
    lower = what_to_lower(config, group_batch(config, 1, None), 1)
    assert lower.startswith(
        "set train.norm_size to 15, so that a rank holds 15 images at a time, not 30; or set data.res"
    )
    alone = config.replace("train", batch_size=2).replace("data", resident="never")
    assert what_to_lower(alone, group_batch(alone, 1, None), 1).startswith(
        "lower, in a new run, train.batch_size (2) or"
    )
    small = alone.replace("model", stem="small")
    lower = what_to_lower(small, group_batch(small, 1, None), 1)
    assert lower.endswith("; or set, in a new run, model.stem to imagenet")


def test_every_part_of_a_run_that_is_to_come_is_tried(faces: Path, tmp_path: Path) -> None:
    """Of 3 epochs of 7 steps, the second begins with more layers, and images grow at the second step of it."""
    config = Config().replace("data", root=faces, image_size=(48, 48), grow="32@0 48@0.4")
    config = config.replace("model", freeze="backbone 2:none").replace("train", epochs=3, batch_size=16)
    config = config.replace("data", subset=112, attributes=("Smiling",))
    run = TrainingRun(
        config, start_ranks(resolve(config, like="no")), *read_data(config), RunFolder(tmp_path), Tracker()
    )
    assert run.plan.steps_per_epoch == 7
    assert parts_to_come(run, None) == [("backbone", (32, 32)), ("none", (32, 32)), ("none", (48, 48))]
    later = Checkpoint(tmp_path, {}, {"progress": asdict(Progress(epoch=1, step=5))})
    assert parts_to_come(run, later) == [("none", (48, 48))]
