"""The optimiser step on one rank; several ranks are in tests/test_train.py."""

import math

import pytest
import torch
from accelerate import Accelerator

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.losses import attribute_loss
from distrib.training.optimizer import make_optimizer
from distrib.training.step import TrainStep


def make_step(
    train: dict[str, object] | None = None, skipped: tuple[int, ...] = (), **optim: object
) -> tuple[TrainStep, AttributeClassifier, Accelerator]:
    config = Config().replace("run", device="cpu").replace("optim", **optim)
    config = resolve(config.replace("train", precision="no", **(train or {})))
    accelerator = start_ranks(config)
    torch.manual_seed(0)
    net = AttributeClassifier(2)
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    agreement = Agreement(StopRequests(), accelerator)
    return TrainStep(config, accelerator, model, optimizer, None, agreement, skipped), net, accelerator


def batch(target: float = 1.0) -> Batch:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(3))
    return Batch(images, torch.full((4, 2), target), torch.arange(4))


def parameters(net: AttributeClassifier) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("good_steps", [0, 2])
def test_after_a_loss_that_is_not_finite_nothing_moves(name: str, good_steps: int) -> None:
    one_step, net, _ = make_step(name=name)
    for step in range(good_steps):
        one_step([batch()], step)
    assert one_step.read().fatal is None
    before = parameters(net)
    one_step([batch(target=math.nan)], 7)
    one_step([batch()], 8)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))
    assert one_step.read().fatal == 7


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_skipped_step_is_as_if_it_had_not_been(name: str) -> None:
    with_it, net, _ = make_step({"on_nonfinite": "skip"}, name=name)
    without, other, _ = make_step({"on_nonfinite": "skip"}, name=name)
    other.load_state_dict(net.state_dict())
    for target in (1.0, math.nan, 0.0, math.inf, 1.0):
        with_it([batch(target)], 3)
        if math.isfinite(target):
            without([batch(target)], 3)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    assert with_it.read().loss_sum == without.read().loss_sum
    assert len(with_it.read().bad) == 2


def test_a_picture_that_is_not_finite_leaves_batchnorm_alone() -> None:
    one_step, net, _ = make_step({"on_nonfinite": "skip"})
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with torch.no_grad():
        net.std.zero_()  # x / 0: every activation is infinite or NaN
    one_step([batch()], 0)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert one_step.read().bad == (0,)


def test_more_bad_steps_than_allowed_are_fatal() -> None:
    one_step, net, _ = make_step({"on_nonfinite": "skip", "nonfinite_limit": 2})
    for step, target in enumerate([math.nan, 1.0, math.nan, 1.0]):
        one_step([batch(target)], step)
    assert one_step.read().bad == (0, 2)
    assert one_step.read().fatal is None
    before = parameters(net)
    one_step([batch(math.nan)], 4)
    one_step([batch()], 5)
    one_step([batch(math.nan)], 6)
    assert one_step.read().fatal == 4
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_good_step_moves_every_parameter_and_lowers_the_loss(name: str) -> None:
    one_step, net, _ = make_step(name=name, lr=1e-2)
    before = parameters(net)
    losses = []
    for step in range(5):
        one_step.begin_epoch(0)
        one_step([batch()], step)
        losses.append(one_step.read().loss_sum)
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_own(nesterov: bool) -> None:
    """The momentum buffer that is made beforehand changes nothing."""
    one_step, net, _ = make_step(name="sgd", lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.0)
    reference = AttributeClassifier(2)
    reference.load_state_dict(net.state_dict())
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    for step in range(3):
        one_step([batch()], step)
        plain.zero_grad()
        attribute_loss(reference(batch().images_BHWC), batch().targets_BA, 0.0, None).backward()
        plain.step()
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_micro_batches_add_up_to_the_mean_loss() -> None:
    one_step, net, _ = make_step()
    halves = [batch(1.0), batch(0.0)]
    with torch.no_grad():
        expected = sum(attribute_loss(net(half.images_BHWC), half.targets_BA, 0.0, None) for half in halves) / 2
    one_step.begin_epoch(10.0)
    one_step(halves, 0)
    assert one_step.read().loss_sum == pytest.approx(10.0 + float(expected), rel=1e-4)


def statistics(net: AttributeClassifier) -> dict[str, torch.Tensor]:
    """BatchNorm's running statistics and its counts of batches."""
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return {key: tensor.clone() for key, tensor in net.state_dict().items() if key.endswith(kinds)}


def test_every_micro_batch_starts_from_the_statistics_that_the_step_began_with() -> None:
    halves = [batch(1.0), Batch(255 - batch().images_BHWC, torch.zeros(4, 2), torch.arange(4))]
    of_each = []
    for half in halves:
        _, alone, _ = make_step()
        alone(half.images_BHWC)
        of_each.append(statistics(alone))
    one_step, net, _ = make_step()
    one_step(halves, 0)
    for key, tensor in statistics(net).items():
        if key.endswith("num_batches_tracked"):
            assert tensor == 1  # a step counts once
        else:
            torch.testing.assert_close(tensor, (of_each[0][key] + of_each[1][key]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_skipped_step_leaves_every_kind_of_batchnorm_alone(synchronised: bool, micro_batches: int) -> None:
    config = resolve(Config().replace("run", device="cpu").replace("train", precision="no", on_nonfinite="skip"))
    accelerator = start_ranks(config)
    net = AttributeClassifier(2)
    if synchronised:
        net.synchronise_norms()
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    model, optimizer = accelerator.prepare(net, make_optimizer(net, config.optim))
    one_step = TrainStep(config, accelerator, model, optimizer, None, Agreement(StopRequests(), accelerator))
    before = statistics(net)
    one_step([batch(math.nan)] * micro_batches, 0)
    after = statistics(net)
    assert all(torch.equal(before[key], after[key]) for key in before)
    one_step([batch()] * micro_batches, 1)
    assert not any(torch.equal(before[key], tensor) for key, tensor in statistics(net).items())


def test_a_network_in_float64_has_its_loss_in_float64() -> None:
    _, net, _ = make_step()
    net.double()
    with torch.no_grad():
        logits = net(batch().images_BHWC)
        loss = attribute_loss(logits, batch().targets_BA, 0.1, torch.ones(2))
    assert logits.dtype == loss.dtype == torch.float64
    assert attribute_loss(logits.bfloat16(), batch().targets_BA, 0.1, None).dtype == torch.float32


def test_clipping_bounds_the_update() -> None:
    free, _, _ = make_step(name="sgd", lr=1.0, momentum=0.0)
    free([batch()], 0)
    norm = free.read().gradient_norm
    bound, net, _ = make_step(name="sgd", lr=1.0, momentum=0.0, clip_norm=norm / 10)
    before = parameters(net)
    bound([batch()], 0)
    moved = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(before, parameters(net), strict=True)))
    assert float(moved) == pytest.approx(norm / 10, rel=1e-3)
    assert bound.read().gradient_norm == pytest.approx(norm, rel=1e-5)


def test_what_was_skipped_before_does_not_stop_a_run_that_is_to_skip_no_more() -> None:
    one_step, net, _ = make_step({"on_nonfinite": "stop"}, skipped=(3, 8))
    before = parameters(net)
    one_step([batch()], 9)
    assert one_step.read().fatal is None
    assert not torch.equal(before[0], parameters(net)[0])
    one_step([batch(math.nan)], 10)
    assert one_step.read().fatal == 10
