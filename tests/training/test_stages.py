"""Stages that free more layers, with fp16's loss scaling, which torch has for the CPU too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from distrib.config import Config
from distrib.data.batch import Batch
from distrib.model.network import AttributeClassifier
from distrib.ranks.machine import resolve
from distrib.ranks.meeting import start_ranks
from distrib.ranks.stopping import Agreement, StopRequests
from distrib.training.checkpoint import Progress
from distrib.training.grouping import Grouping
from distrib.training.state import TrainState

BATCH = Batch(
    torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(3)),
    torch.ones(4, 2),
    torch.arange(4),
)


def staged(optimizer: str, scaler: torch.amp.GradScaler | None) -> TrainState:
    """A training of two epochs of two steps, float32; the head alone is trained in the first one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = Config().replace("run", device="cpu").replace("train", precision="no", epochs=2)
    config = resolve(config.replace("optim", name=optimizer).replace("model", freeze="backbone 2:none"))
    accelerator = start_ranks(config)
    accelerator.scaler = scaler
    torch.manual_seed(0)
    run: Any = SimpleNamespace(config=config, accelerator=accelerator, plan=SimpleNamespace(steps_per_epoch=2))
    grouping = Grouping(norm_size=4, accumulation=1, micro_batch=4, synchronised=False, before=None, notes=())
    state = TrainState(run, AttributeClassifier(2), grouping, Agreement(StopRequests(), accelerator), None)
    if scaler is not None:  # from here on it is to accelerate as in fp16, without its autocast
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    return state


def train_epoch(state: TrainState) -> None:
    state.enter_epoch(Progress())
    while not state.position.at_end_of_epoch:
        state.step([BATCH])
    state.position = state.position.after_epoch()


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.net.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_scaling_follows_from_stage_to_stage(optimizer: str) -> None:
    """A power of two as scale changes no bit of float32: what is scaled and what is not train alike."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaled, plain = staged(optimizer, scaler), staged(optimizer, None)
    for state in (scaled, plain):
        train_epoch(state)
        before = weights(state)
        train_epoch(state)
        assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(state).items())
    other = weights(plain)
    for name, tensor in weights(scaled).items():
        assert torch.equal(tensor, other[name]), name
    assert scaler.get_scale() == 2.0**16
    assert scaler._get_growth_tracker() == 4  # each step was looked at


def test_an_overflow_in_what_a_stage_frees_moves_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    state = staged("adam", scaler)
    train_epoch(state)
    state.enter_epoch(Progress())
    before = weights(state)
    overflow = state.net.net.layer1[0].conv1.weight.register_hook(lambda gradient: gradient * torch.inf)
    state.step([BATCH])
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(state).items())
    assert scaler.get_scale() == 2.0**15
    state.look(seconds=1.0, speed={})
    (look,) = state.looks(wait=True)
    assert look.stats.bad == ()  # in fp16 gradients overflow in ordinary life
    overflow.remove()
    state.step([BATCH])
    assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(state).items())
    assert scaler.get_scale() == 2.0**15
