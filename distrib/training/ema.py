"""An exponential moving average (EMA) of the weights: what is validated and kept where `train.ema` is set.

Legend: B images, A attributes.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from distrib.model.network import AttributeClassifier


def decay_after(step: int, highest: float) -> float:
    """The decay with which the weights after a step are averaged in: min(highest, (1 + step) / (10 + step)).

    The warm-up is that of TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`: the average spans about
    the last ninth of the steps until `highest` is reached, so that it leaves the first weights behind in a short run.

    Args:
        step: counted from 0 over the run.
        highest: `train.ema`.
    """
    return min(highest, (1 + step) / (10 + step))


class MovingAverage:
    """The moving average of a network's parameters and of BatchNorm's running statistics, as a network of its own.

    It is a function of the weights and of the step's number, so the same on every rank, and on resuming. torch's
    `AveragedModel` counts its own updates, and leaves no step out that the device alone knows to be skipped.

    Args:
        trained: the network, before accelerate prepares it: a copy of a prepared one would call the original.
        highest: `train.ema`.

    Attributes:
        net: in evaluation mode; its `num_batches_tracked` are those of the trained one.
    """

    def __init__(self, trained: AttributeClassifier, highest: float) -> None:
        self.net = copy.deepcopy(trained).requires_grad_(False).eval()
        self._trained, self._highest = trained, highest

    def begin(self) -> None:
        """Start from the weights of now."""
        self.net.net.load_state_dict(self._trained.net.state_dict())

    def attach(self) -> None:
        """Average the tensors that the networks have now: each time that accelerate prepares one it may give it others.

        On several CPU ranks it does.
        """
        # Pairs of the average's own tensors and those that are averaged in.
        self._parameters = _pairs(self.net, self._trained, lambda net: [each.detach() for each in net.parameters()])
        self._statistics = _pairs(self.net, self._trained, lambda net: _buffers(net, floating_point=True))
        self._counters = _pairs(self.net, self._trained, lambda net: [each.view(1) for each in _buffers(net, False)])

    @torch.no_grad()
    def update(self, step: int, moved: torch.Tensor) -> None:
        """Average in the weights after a step, without a word to the host.

        Args:
            step: counted from 0 over the run.
            moved: whether the step has moved the weights, bool [] on the device; else the average stays as it is.
        """
        share = moved * (1 - decay_after(step, self._highest))
        average_in(*self._parameters, share, at_once=share.is_cuda)
        # In a step that has moved no weights these may be NaN, of which no share is small enough.
        averages, statistics = self._statistics
        before = torch.cat(averages)
        _replace(averages, torch.where(moved, before.lerp(torch.cat(statistics), share), before))
        averages, counters = self._counters
        _replace(averages, torch.where(moved, torch.cat(counters), torch.cat(averages)))


def average_in(averages: list[torch.Tensor], weights: list[torch.Tensor], share: torch.Tensor, at_once: bool) -> None:
    """Move averages towards weights by a share of the way.

    Args:
        averages: float tensors, which are written.
        weights: of the same shapes.
        share: float [] on their device.
        at_once: by three kernels for all tensors, as a lerp by a share that lies on the device is a kernel for each of
            them. That is one pass over memory instead of three, and what a CPU does: 2.7 ms and not 15 for a ResNet18.
    """
    if at_once:
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, share)
        torch._foreach_add_(averages, differences)
    else:
        torch._foreach_lerp_(averages, weights, [share] * len(averages))


class SideBySide(nn.Module):
    """Two networks on the same images, which are decoded once for both; the logits of the first come first."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Logits float [B, 2 A] of uint8 RGB images [B, H, W, 3]."""
        return torch.cat([self.first(images_BHWC), self.second(images_BHWC)], dim=1)


Tensors = list[torch.Tensor]


def _pairs(
    net: AttributeClassifier, trained: AttributeClassifier, of: Callable[[nn.Module], Tensors]
) -> tuple[Tensors, Tensors]:
    return of(net.net), of(trained.net)


def _buffers(net: nn.Module, floating_point: bool) -> Tensors:
    """BatchNorm's running statistics, each float [C]; or its counts of batches, each int64 []."""
    return [buffer for buffer in net.buffers() if buffer.is_floating_point() == floating_point]


def _replace(tensors: Tensors, flat: torch.Tensor) -> None:
    """Write one tensor's values into those that it was made of by concatenation."""
    torch._foreach_copy_(tensors, list(torch.split(flat, [len(each) for each in tensors])))
