import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from distrib.config import OptimConfig
from distrib.model.network import AttributeClassifier
from distrib.training.optimizer import learning_rate, make_optimizer, set_learning_rate


def rates(config: OptimConfig, per_epoch: int = 10, epochs: int = 4) -> list[float]:
    return [learning_rate(config, step, per_epoch, epochs) for step in range(per_epoch * epochs)]


def optim(**values: object) -> OptimConfig:
    return OptimConfig.model_validate({"lr": 0.5, **values})


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_constant_stays_constant() -> None:
    assert rates(optim()) == [0.5] * 40


def test_constant_after_a_warm_up() -> None:
    found = rates(optim(warmup_epochs=1))
    assert found[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert found[10:] == [0.5] * 30
    assert min(found) > 0, "no step is wasted"


def test_a_warm_up_may_be_a_fraction_of_an_epoch() -> None:
    found = rates(optim(warmup_epochs=0.5))
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found[5:] == [0.5] * 35


def test_cosine_falls_to_zero() -> None:
    found = rates(optim(schedule="cosine"))
    assert found[-1] == pytest.approx(0, abs=1e-12)
    assert found[19] == pytest.approx(0.25), "half the rate after half the run"
    assert all(later < earlier for earlier, later in pairwise(found))
    assert 0.49 < found[0] <= 0.5


def test_cosine_after_a_warm_up() -> None:
    found = rates(optim(schedule="cosine", warmup_epochs=1))
    assert found[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert found.index(max(found)) == 9
    assert found[24] == pytest.approx(0.25), "half the rate after half of what follows the warm-up"
    assert found[-1] == pytest.approx(0, abs=1e-12)


def test_one_cycle_rises_for_three_tenths_of_the_run() -> None:
    found = rates(optim(schedule="one-cycle"))
    peak = found.index(max(found))
    assert peak == 11
    assert found[peak] == 0.5
    assert all(later > earlier for earlier, later in pairwise(found[: peak + 1]))
    assert all(later < earlier for earlier, later in pairwise(found[peak:]))
    assert found[-1] == pytest.approx(0, abs=1e-12)


def test_one_cycle_rises_for_as_long_as_it_is_told() -> None:
    found = rates(optim(schedule="one-cycle", warmup_epochs=2))
    assert found.index(max(found)) == 19
    assert found == rates(optim(schedule="cosine", warmup_epochs=2))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0, 3.99, 4.0])
@pytest.mark.parametrize(("per_epoch", "epochs"), [(10, 4), (1, 4), (7, 15)])
def test_every_rate_is_within_bounds(schedule: str, warmup: float, per_epoch: int, epochs: int) -> None:
    config = optim(schedule=schedule, warmup_epochs=warmup)
    found = rates(config, per_epoch, epochs)
    assert all(math.isfinite(rate) and 0 <= rate <= 0.5 for rate in found)
    assert max(found) > 0
    # A resumed run asks for single steps, in any order.
    assert found == [learning_rate(config, step, per_epoch, epochs) for step in reversed(range(len(found)))][::-1]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_a_run_of_one_step_has_a_rate(schedule: str) -> None:
    assert 0 <= learning_rate(optim(schedule=schedule), 0, 1, 1) <= 0.5


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_is_the_one_that_was_asked_for(name: str, kind: type) -> None:
    made = make_optimizer(small_net(), optim(name=name))
    assert type(made) is kind
    assert all(group["fused"] for group in made.param_groups)


def test_sgd_has_its_momentum() -> None:
    made = make_optimizer(small_net(), optim(name="sgd", momentum=0.8))
    assert type(made) is torch.optim.SGD
    assert {group["momentum"] for group in made.param_groups} == {0.8}
    assert {group["lr"] for group in made.param_groups} == {0.5}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_norms(name: str) -> None:
    net = small_net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    made = make_optimizer(net, optim(name=name, lr=1e-3, weight_decay=0.1))
    decayed = {id(p) for group in made.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    spared = {id(p) for group in made.param_groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed == {id(net[0].weight), id(net[3].weight)}
    assert decayed | spared == {id(p) for p in net.parameters()}
    assert not decayed & spared
    # What decay alone does: gradients of nought.
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    after = net.state_dict()
    for key in ("0.weight", "3.weight"):
        assert after[key].norm() < before[key].norm()
    for key in ("0.bias", "1.weight", "1.bias", "3.bias"):
        assert torch.equal(after[key], before[key])


def test_of_a_resnet_every_parameter_is_trained_once() -> None:
    model = AttributeClassifier(3)
    made = make_optimizer(model, optim(weight_decay=0.1))
    listed = [id(p) for group in made.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for group in made.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name, p in model.named_parameters() if p.ndim > 1}
    assert "net.fc.weight" in decayed
    assert not any("bn" in name or name.endswith("bias") for name in decayed)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_what_is_frozen_is_not_moved(name: str) -> None:
    model = AttributeClassifier(2)
    model.freeze("backbone")
    made = make_optimizer(model, optim(name=name, weight_decay=0.1))
    listed = {id(p) for group in made.param_groups for p in group["params"]}
    assert listed == {id(model.net.fc.weight), id(model.net.fc.bias)}
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    model.eval()
    model(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)).sum().backward()
    made.step()
    moved = {key for key, value in model.net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"fc.weight", "fc.bias"}


def test_the_rate_is_set_for_every_group() -> None:
    made = make_optimizer(small_net(), optim(weight_decay=0.1))
    set_learning_rate(made, 0.125)
    assert [group["lr"] for group in made.param_groups] == [0.125] * 4


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_backbone_has_a_rate_of_its_own(name: str) -> None:
    model = AttributeClassifier(2)
    made = make_optimizer(model, optim(name=name, backbone_lr=0.125, weight_decay=0.1))
    rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.5 if key in ("net.fc.weight", "net.fc.bias") else 0.125), key
    set_learning_rate(made, 0.25)  # half the highest of the schedule
    assert {(group["lr"], group["lr_scale"]) for group in made.param_groups} == {(0.25, 1.0), (0.0625, 0.25)}
    decays = [(bool(group["weight_decay"]), group["lr_scale"] == 1.0) for group in made.param_groups]
    assert decays == [(True, False), (False, False), (True, True), (False, True)]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_what_is_trained_later_stays_as_it_is_until_then(name: str) -> None:
    """Neither weight decay nor momentum moves it, nor a gradient of nought; and then it is as new."""
    model = AttributeClassifier(2).eval()
    made = make_optimizer(model, optim(name=name, lr=0.01, weight_decay=0.1))
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    model.freeze("backbone")
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    for bad in (0.0, 1.0, 0.0):  # what gradient scalers and `TrainStep` tell a fused optimiser
        model(pictures).sum().backward()
        assert all(p.grad is None for key, p in model.net.named_parameters() if not key.startswith("fc."))
        made.found_inf = torch.tensor(bad)
        made.step()
        made.zero_grad()
    moved = {key for key, value in model.net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"fc.weight", "fc.bias"}
    steps = {key: made.state[p].get("step", torch.tensor(0)).item() for key, p in model.net.named_parameters()}
    assert {steps[key] for key in steps if not key.startswith("fc.")} == {0}
    model.freeze("none")
    model(pictures).sum().backward()
    made.step()
    assert all(not torch.equal(p, before[key]) for key, p in model.net.named_parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_state_it_begins_with_is_torchs_own(name: str) -> None:
    """To the bit, and in the same memory format: on one that is made beforehand nothing depends."""
    nets = [AttributeClassifier(2).eval() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [make_optimizer(net, optim(name=name, lr=0.01, weight_decay=0.1)) for net in nets]
    optimizers[1].state.clear()
    for _ in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            net(torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).to(torch.uint8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (one, other), strict=True)]
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key])
            assert (value.dtype, value.stride()) == (states[1][key].dtype, states[1][key].stride())
