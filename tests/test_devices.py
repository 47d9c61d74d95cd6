"""A CUDA that is not there: forward code runs on torch's fake tensors, which refuse a CPU tensor that meets a CUDA one.

Nothing is computed, and no GPU is needed, but a torch that is built for CUDA. What runs on a stream of its own, copies
out of pinned memory, or goes backward needs a real one.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from distrib.config import Config
from distrib.data.batch import Batch, Request
from distrib.data.views import views, views_of
from distrib.model.network import AttributeClassifier
from distrib.scoring.evaluation import AUTOCAST, score_rows
from distrib.training import ema
from distrib.training.ema import MovingAverage
from distrib.training.step import TrainStep

CUDA = torch.device("cuda")
NOBODY = SimpleNamespace(wishes=lambda: torch.zeros(3, device=CUDA), hear=lambda _: None)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if torch.version.cuda is None:
        pytest.skip("needs a torch that is built for CUDA")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, **_: self)  # fake parameters cannot be laid out anew
    # Autocast asks for a GPU.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def network() -> AttributeClassifier:
    with CUDA:
        return AttributeClassifier(2)


def batch(count: int) -> Batch:
    with CUDA:
        return Batch(torch.zeros(count, 32, 32, 3, dtype=torch.uint8), torch.ones(count, 2), torch.arange(count))


def test_a_tensor_on_the_wrong_device_is_found() -> None:
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="at least two devices, cpu and cuda:0"):
        network()(images)


@pytest.mark.parametrize("size", [(48, 40), (32, 32)], ids=["as they are", "resized"])
def test_views_of_images_on_the_gpu(size: tuple[int, int]) -> None:
    with CUDA:
        images = torch.zeros(9, 60, 50, 3, dtype=torch.uint8)
    regions = np.array([[0, 2, 48, 40], [5, 0, 48, 40]])
    with unset_fake_temporarily():
        asked = views_of(np.array([3, 8]), regions, np.array([False, True]))
        on_host = asked.numpy()
    asked.numpy = lambda: on_host  # type: ignore[method-assign] # which fakes do not have
    made = views(images, asked, size)
    assert (made.device.type, made.shape, made.dtype) == ("cuda", (2, *size, 3), torch.uint8)


@pytest.mark.parametrize("precision", list(AUTOCAST))
def test_every_batch_is_evaluated_on_the_gpu(precision: str) -> None:
    seen = []
    net = network()
    net.register_forward_hook(lambda _, images, logits: seen.append((len(images[0]), logits.device.type, logits.dtype)))

    class Decoder:
        def batches(self, requests: Iterator[Request]) -> Iterator[Batch]:
            return (batch(len(request)) for request in requests)

    # Whether each row was filled once is asked of the values, which fakes do not have: all else has passed by then.
    with pytest.raises(DataDependentOutputException):
        score_rows(net, Decoder(), np.arange(10), 2, 4, CUDA, AUTOCAST[precision], zoom=1.0)  # type: ignore[arg-type]
    assert seen == [(size, "cuda", AUTOCAST[precision] or torch.float32) for size in (4, 4, 2)]


@pytest.mark.parametrize(
    ("micro_batches", "on_nonfinite", "clip_norm", "weighted"), [(1, "stop", None, False), (2, "skip", 1.0, True)]
)
def test_a_step_but_for_its_backward_pass(
    micro_batches: int, on_nonfinite: str, clip_norm: float | None, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    monkeypatch.setattr(ema, "copy", SimpleNamespace(deepcopy=lambda _: network()))  # which reads the memory of fakes
    config = Config().replace("optim", clip_norm=clip_norm)
    config = config.replace("train", on_nonfinite=on_nonfinite, label_smoothing=0.1)
    stepped: list[torch.Tensor] = []

    class Optimizer:
        found_inf: torch.Tensor
        optimizer = property(lambda self: self)

        def step(self) -> None:
            stepped.append(self.found_inf)

        def zero_grad(self) -> None:
            pass

    def backward(loss: torch.Tensor) -> None:
        assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter)

    accelerator: Any = SimpleNamespace(
        device=CUDA, scaler=None, num_processes=1, backward=backward, no_sync=lambda _: torch.enable_grad()
    )
    weight = torch.ones(2, device=CUDA) if weighted else None
    average = MovingAverage(net, 0.9) if weighted else None
    if average is not None:
        average.attach()
    step = TrainStep(config, accelerator, net, Optimizer(), weight, NOBODY, average=average)  # type: ignore[arg-type]
    step.begin_epoch(0.0)
    with torch.autocast("cuda", torch.bfloat16):
        step([batch(4)] * micro_batches, 0)
    assert [(found.device.type, found.shape) for found in stepped] == [("cuda", torch.Size([]))]
