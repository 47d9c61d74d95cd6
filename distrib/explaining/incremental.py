"""Logits of images that are covered here and there, for many places at once.

Where a small window of an image is covered, most activations of a ResNet's first layers stay what they were: a 3x3
convolution carries a change one cell further, a stride shrinks it. `IncrementalResNet` therefore keeps the activations
of the images themselves and computes only what a change reaches. It saves arithmetic and approximates nothing; the
idea is that of Nakandala et al., "Incremental and Approximate Inference for Faster Occlusion-based Deep CNN
Explanations" (SIGMOD 2019). `PlainNetwork` computes every changed image in full: for other networks, and for a GPU,
where arithmetic is cheap and each of the many small copies is not.

Legend: P places, B images, N = P * B changed images, C channels, H height, W width, A attributes.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from distrib.model.network import AttributeClassifier

Layer = nn.Conv2d | nn.MaxPool2d


@dataclass(frozen=True)
class Places:
    """P rectangles of one size in an activation, in its cells; those of an image are its pixels.

    Attributes:
        corners: top and left of each.
        height: of all of them.
        width: of all of them.
    """

    corners: tuple[tuple[int, int], ...]
    height: int
    width: int


class Network(Protocol):
    """A network that is asked about images and then about changed versions of them."""

    def whole(self, images_BHWC: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Logits float32 [B, A] of uint8 images [B, H, W, 3], and what `changed` needs to know of them."""
        ...

    def changed(self, known: Any, patches_NHWC: torch.Tensor, places: Places) -> torch.Tensor:
        """Logits float32 [N, A] of the images with a uint8 patch each, first all B images with the first place."""
        ...


def network_for(net: nn.Module, precision: torch.dtype | None) -> Network:
    """The fastest way to ask this network on the device where its weights are.

    Args:
        net: logits [B, A] of uint8 images [B, H, W, 3], in evaluation mode; it is left as it is.
        precision: of the convolutions; None: float32.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in net.parameters())
    if isinstance(net, AttributeClassifier) and on_cpu:
        return IncrementalResNet(net, precision or torch.float32)
    return PlainNetwork(net, precision)


class PlainNetwork:
    """Any network, computed in full for each changed image."""

    def __init__(self, net: nn.Module, precision: torch.dtype | None) -> None:
        self._net = net
        self._precision = precision

    def whole(self, images_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._logits(images_BHWC), images_BHWC

    def changed(self, known: torch.Tensor, patches_NHWC: torch.Tensor, places: Places) -> torch.Tensor:
        x = _Changed(known.permute(0, 3, 1, 2), patches_NHWC.permute(0, 3, 1, 2), places)
        return self._logits(x.complete().permute(0, 2, 3, 1))

    def _logits(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images_BHWC.device.type, self._precision, enabled=self._precision is not None):
            logits_BA: torch.Tensor = self._net(images_BHWC)
        return logits_BA.float()


class IncrementalResNet:
    """A trained ResNet18 on a CPU, its BatchNorm folded into its convolutions."""

    def __init__(self, model: AttributeClassifier, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        net = copy.deepcopy(model.net).eval()
        net.conv1 = fuse_conv_bn_eval(net.conv1, net.bn1)
        if isinstance(net.maxpool, nn.Identity):  # of the stem for small images
            net.maxpool = nn.MaxPool2d(1)  # the same, with a kernel and a stride
        self._blocks = [block for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer]
        for block in self._blocks:
            block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
            block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
            if block.downsample is not None:
                block.downsample = fuse_conv_bn_eval(*block.downsample)
        self._net = net.to(dtype=dtype, memory_format=torch.channels_last)
        net.fc.float()  # what it rounds off would be missing from the small differences between logits

    def whole(self, images_BHWC: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the activations [B, C, H, W] that `changed` meets, in its order."""
        net = self._net
        known = [self._normalise(images_BHWC)]
        known.append(net.conv1(known[-1]).relu_())
        known.append(net.maxpool(known[-1]))
        for block in self._blocks:
            x_BCHW = known[-1]
            known.append(block.conv1(x_BCHW).relu_())
            shortcut_BCHW = x_BCHW if block.downsample is None else block.downsample(x_BCHW)
            known.append(block.conv2(known[-1]).add_(shortcut_BCHW).relu_())
        return self._head(known[-1]), known

    def changed(self, known: list[torch.Tensor], patches_NHWC: torch.Tensor, places: Places) -> torch.Tensor:
        whole = iter(known)
        x = _Changed(next(whole), self._normalise(patches_NHWC), places)
        x = x.through(self._net.conv1, next(whole), relu=True)
        x = x.through(self._net.maxpool, next(whole))
        for block in self._blocks:
            middle = x.through(block.conv1, next(whole), relu=True)
            end = middle.through(block.conv2, next(whole))
            shortcut_NCHW = x.crop(end.places) if block.downsample is None else x.compute(block.downsample, end.places)
            end.patches_NCHW.add_(shortcut_NCHW).relu_()
            x = end
        return self._head(x.complete())

    def _normalise(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        return self._model.normalise(images_BHWC).to(self._dtype)

    def _head(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BA: torch.Tensor = self._net.fc(x_BCHW.float().mean((2, 3)))
        return logits_BA


@dataclass(frozen=True)
class _Changed:
    """An activation of the N changed images: that of the B images, but for a patch each."""

    whole_BCHW: torch.Tensor
    patches_NCHW: torch.Tensor
    places: Places

    def through(self, layer: Layer, whole_BCHW: torch.Tensor, relu: bool = False) -> "_Changed":
        """The activation after a layer, given what the images themselves have there."""
        places = _reached(self.places, layer, *whole_BCHW.shape[2:])
        patches_NCHW = self.compute(layer, places)
        return _Changed(whole_BCHW, patches_NCHW.relu_() if relu else patches_NCHW, places)

    def compute(self, layer: Layer, places: Places) -> torch.Tensor:
        """A layer's output in these places, [N, C, height, width]."""
        if self.patches_NCHW.shape[2:] == self.whole_BCHW.shape[2:]:  # the change has reached everything
            output_NCHW: torch.Tensor = layer(self.patches_NCHW)
            return output_NCHW
        crops_NCHW = self.crop(_seen(places, layer))
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(crops_NCHW, layer.weight, layer.bias, layer.stride)
        # An image's edge is padded with zeros here too: after a ReLU they are never more than the maximum beside them.
        return F.max_pool2d(crops_NCHW, layer.kernel_size, layer.stride)

    def complete(self) -> torch.Tensor:
        """The whole activation, [N, C, H, W]."""
        _, _, height, width = self.whole_BCHW.shape
        return self.crop(Places(((0, 0),) * len(self.places.corners), height, width))

    def crop(self, places: Places) -> torch.Tensor:
        """The activation in these places, [N, C, height, width], zero beyond the image's edge."""
        if places == self.places:
            return self.patches_NCHW
        count, channels, _, _ = self.patches_NCHW.shape
        # Channels last in memory, whatever the number of channels and images.
        crops_NCHW = self.whole_BCHW.new_zeros(count, places.height, places.width, channels).permute(0, 3, 1, 2)
        crops = crops_NCHW.chunk(len(places.corners))
        patches = self.patches_NCHW.chunk(len(places.corners))
        for crop, corner, patch, patch_corner in zip(crops, places.corners, patches, self.places.corners, strict=True):
            _paste(self.whole_BCHW, (0, 0), crop, corner)
            _paste(patch, patch_corner, crop, corner)
        return crops_NCHW


def _paste(
    source_BCHW: torch.Tensor, source_corner: tuple[int, int], target_BCHW: torch.Tensor, target_corner: tuple[int, int]
) -> None:
    """Copy what two pieces of one plane, each with its top left corner in it, have in common."""
    cut_source, cut_target = [], []
    for axis, (source, target) in enumerate(zip(source_corner, target_corner, strict=True), start=2):
        first = max(source, target)
        end = max(first, min(source + source_BCHW.shape[axis], target + target_BCHW.shape[axis]))
        cut_source.append(slice(first - source, end - source))
        cut_target.append(slice(first - target, end - target))
    target_BCHW[:, :, cut_target[0], cut_target[1]] = source_BCHW[:, :, cut_source[0], cut_source[1]]


def _geometry(layer: Layer) -> tuple[int, int, int]:
    """Kernel size, stride and padding in cells; they are the same for height and width in a ResNet."""
    sizes = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (size if isinstance(size, int) else int(size[0]) for size in sizes)
    return kernel, stride, padding


def _seen(places: Places, layer: Layer) -> Places:
    """The cells that a layer's output in these places depends on; some may lie beyond the edge."""
    kernel, stride, padding = _geometry(layer)
    corners = tuple((top * stride - padding, left * stride - padding) for top, left in places.corners)
    return Places(corners, (places.height - 1) * stride + kernel, (places.width - 1) * stride + kernel)


def _reached(places: Places, layer: Layer, height: int, width: int) -> Places:
    """The cells of a layer's output [height, width] that depend on these places."""
    kernel, stride, padding = _geometry(layer)

    def reach(starts: Iterable[int], cells: int, size: int) -> tuple[list[int], int]:
        spans = []
        for start in starts:
            first = -(-(start + padding - kernel + 1) // stride)  # rounded up
            last = (start + cells - 1 + padding) // stride
            spans.append((max(0, first), min(size, last + 1)))
        longest = max(end - first for first, end in spans)
        return [min(first, size - longest) for first, _ in spans], longest

    tops, tallest = reach((top for top, _ in places.corners), places.height, height)
    lefts, widest = reach((left for _, left in places.corners), places.width, width)
    return Places(tuple(zip(tops, lefts, strict=True)), tallest, widest)
