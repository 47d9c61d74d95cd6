"""A step is the same function on any number of ranks: real ranks over gloo, and how the groups are chosen."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forked_ranks import on_ranks
from launching import read_events, read_metrics
from small_run import BATCH, settings

from distrib import train as program
from distrib.base.errors import UserError
from distrib.config import Config, load_config
from distrib.data.batch import Batch
from distrib.data.plan import Plan
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.checkpoint import Checkpoint, Progress, load_checkpoint
from distrib.training.grouping import Grouping, group_batch, launch_bound
from distrib.training.optimizer import make_optimizer
from distrib.training.precision import Precision
from distrib.training.start import idle_gpu, larger_than_trained_on
from distrib.training.step import TrainStep


def some_steps(dtype: torch.dtype, steps: int) -> tuple[list[float], list[np.ndarray], dict[str, np.ndarray]]:
    """On this rank: the loss of each step, the gradients of the last, and the network afterwards."""
    config = Config().replace("run", device="cpu").replace("train", batch_size=BATCH, precision="no", norm_size=4)
    config = config.replace("optim", name="sgd", lr=1e-5, momentum=0.0)
    accelerator = start_ranks(resolve(config))
    rank, ranks = accelerator.process_index, accelerator.num_processes
    grouping = group_batch(config, ranks, None)
    torch.manual_seed(0)
    net = AttributeClassifier(2).to(dtype)
    accelerator.ddp_handler.static_graph = grouping.accumulation == 1
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    seen: list[np.ndarray] = []
    optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.__setitem__(slice(None), [parameter.grad.numpy().copy() for parameter in net.parameters()])
    )
    one_step = TrainStep(config, accelerator, model, optimizer, None, Agreement(StopRequests(), accelerator))
    random = torch.manual_seed(3)
    blobs = F.interpolate(torch.rand((200, 3, 4, 4), generator=random), (32, 32), mode="bilinear")
    pixels = (192 * blobs + 64 * torch.rand(blobs.shape, generator=random)).byte().permute(0, 2, 3, 1)
    targets = (pixels.float().mean((1, 2))[:, :2] > 127).float()
    plan = Plan(np.arange(200), 0, BATCH)
    requests = [
        request for epoch in range(2) for request in plan.rank_batches(epoch, 0, rank, ranks, grouping.accumulation)
    ]
    losses: list[float] = []
    for step in range(steps):
        mine = requests[step * grouping.accumulation : (step + 1) * grouping.accumulation]
        one_step.begin_epoch(0.0)
        one_step([Batch(pixels[each.ids], targets[each.ids], torch.from_numpy(each.ids)) for each in mine], step)
        losses.append(one_step.read().loss_sum)
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    accelerator.end_training()
    return losses, seen, state


@pytest.mark.slow
def test_in_float64_the_losses_of_20_steps_do_not_depend_on_the_ranks() -> None:
    (losses, _, state), *_ = on_ranks(1, some_steps, torch.float64, 20)
    assert len(losses) == 20
    for ranks in (2, 4):
        for other, _, others_state in on_ranks(ranks, some_steps, torch.float64, 20):
            assert other == pytest.approx(losses, rel=1e-8)
            for name, tensor in state.items():
                np.testing.assert_allclose(others_state[name], tensor, rtol=1e-6, atol=1e-9)
    counts = {int(tensor) for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    assert counts == {20}


def test_in_float32_the_first_step_does_not_depend_on_the_ranks() -> None:
    (loss, gradients, _), *_ = on_ranks(1, some_steps, torch.float32, 1)
    for ranks in (2, 4):
        for other, others_gradients, _ in on_ranks(ranks, some_steps, torch.float32, 1):
            assert other == pytest.approx(loss, rel=1e-5)
            for one, another in zip(gradients, others_gradients, strict=True):
                assert np.linalg.norm(one - another) / np.linalg.norm(one) < 1e-5


def trained(*arguments: object) -> int:
    """The program on this rank."""
    return program.main([str(each) for each in arguments])


def run(ranks: int, faces: Path, folder: Path, *more: object) -> float:
    """Train so on so many ranks, with plain SGD and four groups of eight; returns the first epoch's mean loss."""
    plain = ["--optim.name", "sgd", "--optim.momentum", 0, "--optim.lr", 1e-3, "--optim.schedule", "constant"]
    plain += ["--train.precision", "no", "--train.batch-size", 32, "--data.image-size", 48, 48]
    plain += ["--train.epochs", 1, "--checkpoint.every-steps", 99]
    status = on_ranks(ranks, trained, *settings(faces, folder, *plain, *more))
    assert status == [0] * ranks
    return read_metrics(folder)[0]["train_loss"]


def newest(folder: Path) -> Checkpoint:
    return load_checkpoint(max((folder / "checkpoints").iterdir()))


@pytest.mark.slow
def test_an_epoch_does_not_depend_on_the_ranks_and_a_run_keeps_its_function_when_they_change(
    faces: Path, tmp_path: Path
) -> None:
    four = run(4, faces, tmp_path / "four")
    one = run(1, faces, tmp_path / "one", "--train.norm-size", 8)
    assert one == pytest.approx(four, rel=2e-3)
    # Whole batches are another function, by more than rounding: what the promise is about.
    whole = run(1, faces, tmp_path / "whole")
    assert abs(whole - four) > 5 * abs(one - four)

    # Stopped on four ranks, it resumes with two, and then with one: both numbers are auto in config.yaml.
    config, resume = tmp_path / "four/config.yaml", ["--resume", "auto"]
    assert "norm_size: auto" in config.read_text()
    assert "accumulation: auto" in config.read_text()
    run(4, faces, tmp_path / "straight", "--train.epochs", 3)
    for epochs, ranks in ((2, 2), (3, 1)):
        run(ranks, faces, tmp_path / "four", "--train.epochs", epochs, *resume)
        start = read_events(tmp_path / "four", "start")[-1]
        assert (start["ranks"], start["norm_size"], start["accumulation"]) == (ranks, 8, 4 // ranks)
        assert not [warning for warning in start["warnings"] if "from this step on" in warning]
    progress = newest(tmp_path / "four").progress
    assert (progress.norm_size, progress.accumulation) == (8, 4)
    losses = [[row["train_loss"] for row in read_metrics(tmp_path / name)] for name in ("four", "straight")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


# --- how the groups are chosen


def config_of(**train: object) -> Config:
    return Config().replace("run", device="cpu").replace("train", **{"batch_size": 64, **train})


def checkpoint_of(tmp_path: Path, ranks: int, recorded: tuple[int, int] | None, **train: object) -> Checkpoint:
    """A checkpoint of a run on so many ranks, with its size and accumulation; None: as earlier versions wrote it."""
    (tmp_path / "config.yaml").write_text(config_of(**train).to_yaml())
    (tmp_path / "model.json").write_text(json.dumps({"training": {"ranks": ranks}}))
    progress = asdict(Progress())
    del progress["norm_size"], progress["accumulation"]
    if recorded is not None:
        progress |= dict(zip(("norm_size", "accumulation"), recorded, strict=True))
    return Checkpoint(tmp_path, {}, {"progress": progress})


@pytest.mark.parametrize(
    ("train", "ranks", "norm_size", "accumulation"),
    [
        ({}, 1, 64, 1),
        ({}, 4, 16, 1),
        ({"accumulation": 2}, 2, 16, 2),
        ({"norm_size": 16}, 1, 16, 4),
        ({"norm_size": 16}, 4, 16, 1),
        ({"norm_size": 16, "accumulation": 2}, 2, 16, 2),
        ({"norm_size": 64}, 1, 64, 1),
        ({"norm_size": "batch"}, 1, 64, 1),
    ],
)
def test_a_new_run_has_the_groups_that_were_asked_for(
    train: dict[str, object], ranks: int, norm_size: int, accumulation: int
) -> None:
    grouping = group_batch(config_of(**train), ranks, None)
    assert (grouping.norm_size, grouping.accumulation, grouping.micro_batch) == (norm_size, accumulation, norm_size)
    assert not grouping.synchronised
    assert grouping.notes == ()


def test_on_gpus_batch_is_the_whole_batch_of_all_ranks() -> None:
    config = config_of(norm_size="batch").model_copy(update={"run": Config().run.model_copy(update={"device": "cuda"})})
    assert group_batch(config, 4, None) == Grouping(64, 1, 16, synchronised=True, before=None, notes=())


@pytest.mark.parametrize(
    ("train", "ranks", "words"),
    [
        ({}, 3, ["train.batch_size 64", "3 ranks", "start 2 ranks", "choose a multiple of 3"]),
        ({"accumulation": 4}, 32, ["train.accumulation 4", "32 ranks", "choose a multiple of 128"]),
        ({"norm_size": 32}, 4, ["train.norm_size 32", "2 groups", "4 ranks", "start 2 ranks", "to 16 or auto"]),
        ({"norm_size": 64}, 2, ["train.norm_size 64", "1 group,", "2 ranks", "start 1 rank,", "to 32 or auto"]),
        ({"norm_size": 16, "accumulation": 2}, 8, ["4 groups", "to 8 or auto, and train.accumulation to auto"]),
        ({"norm_size": 16, "accumulation": 2}, 1, ["1 rank x train.accumulation 2", "set train.accumulation to auto"]),
        ({"norm_size": "batch"}, 2, ["SyncBatchNorm", "GPUs", "2 ranks on the CPU", "such as 32"]),
    ],
)
def test_what_these_ranks_cannot_do_is_refused_with_a_remedy(
    train: dict[str, object], ranks: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        group_batch(config_of(**train), ranks, None)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.norm-size", "24"], ["train.norm_size 24 does not divide train.batch_size 64", "such as 16"]),
        (["--train.norm-size", "128"], ["train.norm_size 128 does not divide", "such as 64"]),
        (["--train.norm-size", "batch", "--train.accumulation", "2"], ["train.norm_size is batch", "accumulation 2"]),
        (["--train.norm-size", "32", "--train.accumulation", "4"], ["accumulation 4", "norm_size 32", "to auto"]),
        (["--train.norm-size", "some"], ["norm-size", "some"]),
        (["--train.norm-size", "0"], ["train.norm_size is 0", "'auto' or 'batch', or a whole number"]),
    ],
)
def test_sizes_that_fit_no_number_of_ranks_are_refused(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_config(arguments)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("began_on", "accumulation", "ranks", "norm_size"),
    [(8, 1, 2, 8), (8, 1, 1, 8), (2, 1, 1, 32), (2, 2, 4, 16), (2, 2, 1, 16), (4, 1, 4, 16)],
)
def test_a_run_keeps_its_groups_on_other_ranks(
    tmp_path: Path, recorded: bool, began_on: int, accumulation: int, ranks: int, norm_size: int
) -> None:
    """Also a run of an earlier version, whose config.yaml has the accumulation as a number."""
    numbers = (norm_size, accumulation) if recorded else None
    checkpoint = checkpoint_of(tmp_path, began_on, numbers, accumulation=accumulation)
    grouping = group_batch(config_of(accumulation=accumulation), ranks, checkpoint)
    assert grouping.norm_size == norm_size
    assert grouping.accumulation == 64 // norm_size // ranks
    assert grouping.before is None
    assert any("train.accumulation is" in note for note in grouping.notes) == (grouping.accumulation != accumulation)
    assert any("grouped differently" in note for note in grouping.notes) == (not recorded and accumulation > 1)

    # And once more, from a checkpoint of these ranks, whose config.yaml still has what was asked for.
    numbers = (grouping.norm_size, grouping.accumulation)
    again = group_batch(
        config_of(accumulation=accumulation), ranks, checkpoint_of(tmp_path, ranks, numbers, accumulation=accumulation)
    )
    assert (again.norm_size, again.accumulation, again.before) == (*numbers, None)


@pytest.mark.parametrize(
    ("train", "ranks", "norm_size"),
    [({}, 4, 16), ({}, 8, 8), ({"norm_size": 16}, 2, 16), ({"norm_size": "batch"}, 1, 64), ({"accumulation": 2}, 4, 8)],
)
def test_where_the_groups_change_it_is_said(
    tmp_path: Path, train: dict[str, object], ranks: int, norm_size: int
) -> None:
    grouping = group_batch(config_of(**train), ranks, checkpoint_of(tmp_path, 2, (32, 1)))
    assert (grouping.norm_size, grouping.before) == (norm_size, 32)
    (note,) = [note for note in grouping.notes if "from this step on" in note]
    assert f"over {norm_size} images" in note
    assert "over 32" in note


def test_groups_that_cannot_be_kept_get_no_larger(tmp_path: Path) -> None:
    config = config_of().replace("train", batch_size=48)
    grouping = group_batch(config, 2, checkpoint_of(tmp_path, 3, (16, 1), batch_size=48))
    assert (grouping.norm_size, grouping.accumulation) == (12, 2)


def test_an_accumulation_that_would_change_the_function_is_refused_and_its_remedies_work(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, 2, (32, 1))
    with pytest.raises(UserError, match=r"train.accumulation 4 on 1 rank .*set it to auto, which is 2 here, or set "
                                        r"train.norm_size to 16"):  # fmt: skip
        group_batch(config_of(accumulation=4), 1, checkpoint)
    assert group_batch(config_of(accumulation="auto"), 1, checkpoint).before is None
    assert group_batch(config_of(accumulation=4, norm_size=16), 1, checkpoint).norm_size == 16


def test_small_groups_are_warned_about_unless_nothing_is_normalised_by_them(tmp_path: Path) -> None:
    (note,) = group_batch(config_of(), 8, None).notes
    assert "8 images only" in note
    assert "start fewer ranks" in note
    (note,) = group_batch(config_of(), 1, checkpoint_of(tmp_path, 8, (8, 1))).notes  # where fewer ranks change nothing
    assert note.endswith("raise train.norm_size")
    frozen = config_of().replace("model", freeze="backbone")
    assert group_batch(frozen, 8, None).notes == ()
    assert group_batch(frozen.replace("model", frozen_statistics="updated"), 8, None).notes
    assert group_batch(frozen.replace("model", freeze="backbone 5:none"), 8, None).notes


ONE_VALUE: list[tuple[dict[str, Any], tuple[int, int], int, bool]] = [
    ({}, (32, 32), 64, True),
    ({}, (16, 32), 64, True),
    ({"freeze": "backbone 5:none"}, (32, 32), 64, True),
    ({"freeze": "backbone", "frozen_statistics": "updated"}, (32, 32), 64, True),
    ({"freeze": "backbone"}, (32, 32), 64, False),
    ({}, (33, 32), 64, False),
    ({}, (32, 32), 32, False),
    ({"stem": "small"}, (8, 8), 64, True),
    ({"stem": "small"}, (9, 8), 64, False),
]


@pytest.mark.parametrize(("model", "size", "ranks", "refused"), ONE_VALUE)
def test_one_value_to_normalise_is_refused(
    model: dict[str, Any], size: tuple[int, int], ranks: int, refused: bool
) -> None:
    config = config_of().replace("model", **model).replace("data", image_size=size)
    if refused:
        with pytest.raises(UserError, match=r"1 image, whose last feature map is 1 x 1"):
            group_batch(config, ranks, None)
    else:
        group_batch(config, ranks, None)


def test_one_value_in_the_smallest_of_growing_images_is_refused() -> None:
    config = config_of().replace("data", image_size=(64, 64), grow="32@0 64@0.5")
    with pytest.raises(UserError, match=r"1 x 1 at 32 x 32 pixels, the first of data.grow.*begin data.grow with 48"):
        group_batch(config, 64, None)
    group_batch(config.replace("data", grow="48@0 64@0.5"), 64, None)
    group_batch(config, 32, None)


@pytest.mark.parametrize(
    ("train", "ranks", "remedied", "fewer"),
    [
        ({"batch_size": 6}, 6, {"batch_size": 6}, 3),
        ({"batch_size": 6}, 6, {"batch_size": 12}, 6),
        ({"batch_size": 8, "norm_size": 1}, 2, {"batch_size": 8, "norm_size": 2}, 2),
        ({"batch_size": 8, "accumulation": 4}, 2, {"batch_size": 8, "accumulation": "auto"}, 2),
    ],
)
def test_the_remedies_for_one_value_are_taken(
    train: dict[str, Any], ranks: int, remedied: dict[str, Any], fewer: int
) -> None:
    with pytest.raises(UserError) as refused:
        group_batch(config_of(**train).replace("data", image_size=(32, 32)), ranks, None)
    words = [f"train.{key} to {value}" for key, value in remedied.items() if train.get(key) != value]
    assert all(word in str(refused.value) for word in words or [f"start {fewer} ranks"]), refused.value
    group_batch(config_of(**remedied).replace("data", image_size=(32, 32)), fewer, None)


def test_check_takes_the_only_number_of_ranks_that_norm_size_and_accumulation_leave() -> None:
    config = config_of(norm_size=8, accumulation=2)
    assert config.train.ranks_asked_for == 4
    assert group_batch(config, 4, None).accumulation == 2
    assert config_of(norm_size=8).train.ranks_asked_for is None


def test_what_is_refused_as_one_value_is_what_torch_cannot_normalise() -> None:
    def step(side: int, images: int, stem: Literal["imagenet", "small"]) -> None:
        AttributeClassifier(2, stem=stem)(torch.zeros(images, side, side, 3, dtype=torch.uint8))

    for side, stem in ((32, "imagenet"), (8, "small")):
        with pytest.raises(ValueError, match="more than 1 value"):
            step(side, 1, stem)
        step(side + 1, 1, stem)
        step(side, 2, stem)


def test_a_share_that_does_not_fill_a_gpu_is_told_with_its_figures() -> None:
    """CelebA's batch of 256 on eight H200 of 132 multiprocessors, and on one."""
    note = launch_bound(32, (218, 178), multiprocessors=132)
    assert note is not None
    assert "32 images of 218 x 178" in note
    assert "2.1 ms" in note
    assert "some 122 images would fill it" in note
    assert "train.compile reduce-overhead" in note
    assert launch_bound(256, (218, 178), multiprocessors=132) is None


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({}, True),
        ({"train": {"compile": "reduce-overhead"}}, False),  # the remedy that the warning names
        ({"train": {"compile": "max-autotune"}}, False),
        ({"model": {"stem": "small"}}, False),
    ],
)
def test_who_is_told_of_a_share_that_does_not_fill_a_gpu(
    change: dict[str, dict[str, Any]], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    h200 = SimpleNamespace(major=9, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: h200)
    config = Config().replace("run", device="cuda").replace("data", image_size=(64, 64))
    for part, values in change.items():
        config = config.replace(part, **values)
    bf16 = Precision("bf16", {})
    assert bool(idle_gpu(config, bf16, group_batch(config, 8, None))) == warned
    assert not idle_gpu(config, Precision("no", {}), group_batch(config, 8, None))


@pytest.mark.parametrize(
    ("min_zoom", "eval_zoom", "warned"),
    [(1.0, 1.0, False), (0.85, 1.0, False), (0.85, 0.925, False), (1.0, 0.925, True), (0.85, 0.8, True)],
)
def test_a_view_that_training_never_has_is_warned_of(min_zoom: float, eval_zoom: float, warned: bool) -> None:
    config = Config().replace("data", min_zoom=min_zoom, eval_zoom=eval_zoom)
    found = larger_than_trained_on(config)
    assert bool(found) == warned
    assert all(f"set data.eval_zoom to {(1 + min_zoom) / 2:g}" in each for each in found)
