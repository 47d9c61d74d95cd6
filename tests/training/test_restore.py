"""What a checkpoint gives back to a network and its optimiser whose memory is laid out otherwise than it was saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distrib.config import Config, OptimConfig
from distrib.model.network import AttributeClassifier
from distrib.training.checkpoint import Contents, Progress, load_checkpoint, save_checkpoint
from distrib.training.optimizer import make_optimizer
from distrib.training.state import restore


def step(net: AttributeClassifier, optimizer: Any, seed: int) -> None:
    """An optimiser step on gradients that have nothing to do with how the weights lie in memory."""
    random = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=random))
    optimizer.step()


def parameters(net: AttributeClassifier) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_resume_that_changes_the_memory_format_trains_on_as_without(
    name: str, channels_last: bool, tmp_path: Path
) -> None:
    config = OptimConfig.model_validate({"name": name, "lr": 1e-2, "weight_decay": 0.1})
    torch.manual_seed(0)
    net = AttributeClassifier(3, channels_last)
    optimizer = make_optimizer(net, config)
    step(net, optimizer, 1)
    contents = Contents(net.net.state_dict(), optimizer.state_dict(), None, Progress(step=1), "{}", 1)
    folder = save_checkpoint(tmp_path, contents, "data", Config().to_yaml(), 1)

    other = AttributeClassifier(3, not channels_last)
    others_optimizer = make_optimizer(other, config)
    alone: Any = SimpleNamespace(scaler=None)
    restore(load_checkpoint(folder), other, others_optimizer, alone)
    assert other.net.conv1.weight.stride() != net.net.conv1.weight.stride()
    moments = 0
    for one, another in zip(net.parameters(), other.parameters(), strict=True):
        for key, value in others_optimizer.state[another].items():
            assert torch.equal(value, optimizer.state[one][key])
            if key != "step":
                assert value.stride() == another.stride()
                moments += 1
    assert moments == (1 if name == "sgd" else 2) * len(list(net.parameters()))

    before = parameters(net)
    step(net, optimizer, 2)
    step(other, others_optimizer, 2)
    for start, one, another in zip(before, parameters(net), parameters(other), strict=True):
        moved = one - start
        assert float((one - another).norm() / moved.norm()) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [{"name": "sgd", "nesterov": True}, {"name": "adamw", "backbone_lr": 5e-3}, {"name": "sgd", "backbone_lr": 5e-3}],
)
def test_a_resume_takes_the_very_steps_that_would_have_followed(settings: dict[str, Any], tmp_path: Path) -> None:
    config = OptimConfig.model_validate({"lr": 1e-2, "weight_decay": 0.1, **settings})
    net, other = AttributeClassifier(3), AttributeClassifier(3)
    optimizer, others_optimizer = make_optimizer(net, config), make_optimizer(other, config)
    step(net, optimizer, 1)
    contents = Contents(net.net.state_dict(), optimizer.state_dict(), None, Progress(step=1), "{}", 1)
    folder = save_checkpoint(tmp_path, contents, "data", Config().to_yaml(), 1)
    alone: Any = SimpleNamespace(scaler=None)
    restore(load_checkpoint(folder), other, others_optimizer, alone)
    for seed in (2, 3):
        step(net, optimizer, seed)
        step(other, others_optimizer, seed)
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), other.parameters(), strict=True))
