"""The moving average of the weights: in single steps, and in whole runs that are frozen in part and resumed."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_ranks import on_ranks
from launching import read_events, read_metrics
from safetensors.torch import load_file
from small_run import assert_same_training, settings

from distrib import train as program
from distrib.config import Config, read_yaml
from distrib.data.batch import Batch
from distrib.data.decoders import make_decoder
from distrib.model.network import AttributeClassifier
from distrib.model.trained import load
from distrib.model.weights import make_model
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, Stopped, StopRequests
from distrib.runs.metrics import METRICS
from distrib.scoring.evaluation import score_rows
from distrib.scoring.metrics import score
from distrib.training import epoch
from distrib.training.check import read_data
from distrib.training.ema import MovingAverage, average_in, decay_after
from distrib.training.optimizer import make_optimizer
from distrib.training.step import TrainStep

State = dict[str, torch.Tensor]
EMA = 0.6


@pytest.mark.parametrize("share", [0.0, 0.0002, 0.9])
def test_a_gpus_way_to_the_average_is_the_cpus(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator) for size in (3, 200)]
    weights = [torch.randn(size, generator=generator) for size in (3, 200)]
    ends = []
    for at_once in (True, False):
        ends.append([tensor.clone() for tensor in start])
        average_in(ends[-1], weights, torch.tensor(share), at_once)
    for number in range(2):
        torch.testing.assert_close(ends[0][number], ends[1][number])
        assert torch.equal(ends[0][number], start[number]) == (share == 0)


def test_the_decay_rises_with_the_steps_to_what_was_asked_for() -> None:
    decays = [decay_after(step, 0.9998) for step in range(60_000)]
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays == sorted(decays)
    assert decays.index(0.9998) == pytest.approx(45_000, abs=20)
    assert decay_after(0, 0.05) == 0.05


# --- single steps


def make_step(scaler: Any = None, **train: object) -> tuple[TrainStep, AttributeClassifier, MovingAverage]:
    config = resolve(Config().replace("run", device="cpu").replace("train", precision="no", **train))
    accelerator = start_ranks(config)
    if scaler is not None:  # accelerate has no fp16 on a CPU, where torch's scaler and fused optimisers do the same
        accelerator.scaler = scaler
        accelerator.unscale_gradients = lambda each: scaler.unscale_(each.optimizer)  # type: ignore[method-assign]
    torch.manual_seed(0)
    net = AttributeClassifier(2)
    average = MovingAverage(net, 0.9998)
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    average.attach()
    agreement = Agreement(StopRequests(), accelerator)
    return TrainStep(config, accelerator, model, optimizer, None, agreement, (), average), net, average


def batch(target: float = 1.0) -> Batch:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(3))
    return Batch(images, torch.full((4, 2), target), torch.arange(4))


def copied(net: AttributeClassifier) -> State:
    return {name: tensor.clone() for name, tensor in net.net.state_dict().items()}


def assert_same_bits(one: State, other: State) -> None:
    for name, tensor in one.items():
        same = torch.equal(tensor.reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        assert same, name


def assert_averaged(before: State, network: State, after: State, step: int, ema: float) -> None:
    """That the average after a step is what its formula makes of the one before and the network's weights."""
    share = 1 - min(ema, (1 + step) / (10 + step))
    for name, tensor in after.items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, network[name])
        else:
            expected = (1 - share) * before[name].double() + share * network[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_weights_and_statistics_are_averaged_and_batches_are_counted() -> None:
    one_step, net, average = make_step()
    for step in (0, 1, 500, 10**6):
        before = copied(average.net)
        one_step([batch(step % 2)], step)
        assert_averaged(before, copied(net), copied(average.net), step, 0.9998)
        assert all(not torch.equal(tensor, before[name]) for name, tensor in copied(average.net).items())
    assert not average.net.training


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_step_that_moves_no_weight_leaves_the_average_to_the_last_bit(on_nonfinite: str) -> None:
    one_step, net, average = make_step(on_nonfinite=on_nonfinite, nonfinite_limit=1)
    one_step([batch()], 0)
    before, std = copied(average.net), net.std.clone()
    net.std.zero_()  # x / 0: every activation is infinite or NaN
    one_step([batch()], 1)
    net.std.copy_(std)
    if on_nonfinite == "stop":  # what the average must not take in
        assert net.net.bn1.running_mean.isnan().all()
    assert_same_bits(copied(average.net), before)
    if on_nonfinite == "skip":
        one_step([batch()], 2)
        assert_averaged(before, copied(net), copied(average.net), 2, 0.9998)
        before = copied(average.net)
        one_step([batch(math.nan)], 3)  # one more than allowed
    for step in (4, 5):
        one_step([batch()], step)
        assert_same_bits(copied(average.net), before)
    assert one_step.read().fatal is not None


def test_a_step_that_fp16s_scaler_skips_leaves_the_average_to_the_last_bit() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    one_step, net, average = make_step(scaler)
    before, network = copied(average.net), copied(net)
    one_step([batch()], 1)
    assert scaler.get_scale() == 2.0**7  # it has skipped the step
    assert torch.equal(net.net.fc.weight, network["fc.weight"])
    assert_same_bits(copied(average.net), before)
    one_step([batch()], 2)
    assert not torch.equal(net.net.fc.weight, network["fc.weight"])
    assert_averaged(before, copied(net), copied(average.net), 2, 0.9998)
    assert one_step.read().bad == ()


# --- whole runs


def averaging(faces: Path, folder: Path, *more: object) -> list[str]:
    """Two epochs of two steps, with a checkpoint after each; a part is frozen in the first epoch."""
    options = settings(
        faces, folder, "--train.ema", EMA, "--train.batch-size", 64, "--train.epochs", 2, "--checkpoint.every-steps", 1,
        "--checkpoint.keep", 9, "--model.freeze", "layer2 2:none", "--train.precision", "no", "--tracking.mode",
        "disabled", *more,
    )  # fmt: skip
    return [str(each) for each in options]


@pytest.fixture(scope="module")
def averaged(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    assert on_ranks(1, program.main, averaging(faces, folder)) == [0]
    return folder


def checkpoint_of(folder: Path, step: int) -> tuple[State, State]:
    """The averaged weights and the trained network's own."""
    checkpoint = folder / f"checkpoints/step-{step:08d}"
    network = torch.load(checkpoint / "trainer.pt", weights_only=True)["network"]
    return load_file(checkpoint / "model.safetensors"), network


def go_back(run: Path, folder: Path, steps: int) -> Path:
    """A copy of a run, as it was when it had made so many steps."""
    shutil.copytree(run, folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        if checkpoint.name > f"step-{steps:08d}":
            shutil.rmtree(checkpoint)
    return folder


def logits_of(folder: Path, weights: State) -> tuple[np.ndarray, np.ndarray]:
    """Of a network on the validation split of a run, with the split's targets."""
    config = read_yaml(folder / "config.yaml")
    table, splits = read_data(config)
    net = AttributeClassifier(len(table.attributes))
    net.net.load_state_dict(weights)
    decoder = make_decoder(config.data, table, torch.device("cpu"), 64)
    logits = score_rows(net, decoder, splits.valid, len(table.attributes), 64, torch.device("cpu"), None, zoom=1.0)
    return logits, table.targets[splits.valid]


def assert_by_hand(folder: Path, steps: range) -> None:
    for step in steps:
        before, (after, network) = checkpoint_of(folder, step)[0], checkpoint_of(folder, step + 1)
        assert_averaged(before, network, after, step, EMA)
        assert not torch.equal(after["fc.weight"], network["fc.weight"])


def assert_scores_are_of(folder: Path) -> None:
    """That the scores are those of the averaged weights, and the raw loss that of the trained network."""
    rows = read_metrics(folder)
    assert list(rows[0]) == [*METRICS, "val_loss_raw"]
    attributes = ("Smiling", "Eyeglasses", "Male")
    for row in rows:
        weights, network = checkpoint_of(folder, int(row["step"]))
        scores = score(attributes, *logits_of(folder, weights)).mean()
        for name, value in scores.items():
            assert row[f"val_{name}"] == pytest.approx(value, rel=1e-5, nan_ok=True), name
        raw = score(attributes, *logits_of(folder, network)).mean()["loss"]
        assert row["val_loss_raw"] == pytest.approx(raw, rel=1e-5)
        assert abs(row["val_loss_raw"] - row["val_loss"]) > 1e-4 * row["val_loss"]


def test_a_run_keeps_the_average_of_its_weights_and_is_scored_by_it(averaged: Path) -> None:
    config = read_yaml(averaged / "config.yaml")
    first = make_model(config.model, config.data.attributes, True, config.train.seed)[0].net.state_dict()
    after, network = checkpoint_of(averaged, 1)
    assert_averaged(first, network, after, 0, EMA)
    assert_by_hand(averaged, range(1, 4))
    assert_scores_are_of(averaged)

    trained = load(averaged)
    kept = checkpoint_of(averaged, 2 * trained.description.epoch)[0]
    assert_same_bits(load_file(averaged / "best/model.safetensors"), kept)
    for folder, weights in ((averaged, kept), (averaged / "checkpoints/step-00000003", checkpoint_of(averaged, 3)[0])):
        assert_same_bits({name: tensor.clone() for name, tensor in load(folder).net.net.state_dict().items()}, weights)


def test_what_is_frozen_stays_as_it_was_until_it_is_trained(averaged: Path) -> None:
    config = read_yaml(averaged / "config.yaml")
    first = make_model(config.model, config.data.attributes, True, config.train.seed)[0].net.state_dict()
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    for step in (1, 2):
        weights, _ = checkpoint_of(averaged, step)
        assert {name for name in weights if torch.equal(weights[name], first[name])} == {
            name for name in weights if name.startswith(frozen)
        }
    assert not [name for name, tensor in checkpoint_of(averaged, 3)[0].items() if torch.equal(tensor, first[name])]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(steps: int, faces: Path, averaged: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, the first time before and the second time after more layers are trained."""
    folder = go_back(averaged, tmp_path / "run", steps)
    assert on_ranks(1, program.main, averaging(faces, folder, "--resume", "auto")) == [0]
    assert_same_training(averaged, folder)


def test_a_run_that_is_stopped_in_validation_ends_as_if_it_had_not_been(
    faces: Path, averaged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert on_ranks(1, stopped_in_validation, averaging(faces, folder)) == [75]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert on_ranks(1, program.main, averaging(faces, folder, "--resume", "auto")) == [0]
    assert_same_training(averaged, folder)


def stopped_in_validation(arguments: list[str]) -> int:
    def stop(*_: object, **__: object) -> None:
        raise Stopped("a test")

    epoch.predict_logits = stop  # type: ignore[assignment]
    return program.main(arguments)


@pytest.mark.parametrize(("option", "found"), [(["--train.ema", "0.5"], "0.5"), (["--train.ema", "None"], "None")])
def test_the_decay_is_fixed_on_resuming(
    option: list[str], found: str, faces: Path, averaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(averaging(faces, averaged, "--train.epochs", "3", "--resume", "auto", *option)) == 2
    assert f"train.ema is {found}, and {averaged / 'checkpoints/step-00000004'} was trained with {EMA}" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_on_two_ranks_and_then_on_one(faces: Path, tmp_path: Path) -> None:
    two, resumed, one = tmp_path / "two", tmp_path / "resumed", tmp_path / "one"

    def run(ranks: int, *options: object) -> list[int]:
        return on_ranks(ranks, program.main, averaging(faces, *options))

    assert run(2, two) == [0, 0]
    assert_by_hand(two, range(1, 4))
    assert_scores_are_of(two)  # half of the validation images were the other rank's
    go_back(two, resumed, 3)
    assert run(2, resumed, "--resume", "auto") == [0, 0]
    assert_same_training(two, resumed)
    go_back(two, one, 1)
    assert run(1, one, "--resume", "auto") == [0]
    assert read_events(one, "start")[-1]["ranks"] == 1
    assert_by_hand(one, range(1, 4))
    assert_scores_are_of(one)
