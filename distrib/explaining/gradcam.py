"""Grad-CAM (Selvaraju et al., ICCV 2017): which places of the last convolutional layer raise a logit.

Each channel of the layer is weighted by the mean of the logit's gradient over the layer's cells, and the weighted
channels are added up. That costs next to nothing, and is as coarse as the layer: a cell of layer4 stands for 32 x 32
pixels of the input and has seen far more. captum's `LayerGradCam` computes it.

Legend: B images, C channels, H height, W width, A attributes; y and x count the layer's cells.
"""

import torch
from captum.attr import LayerGradCam
from torch import nn

from distrib.model.network import AttributeClassifier

LAYER = "layer4"
STRIDE = 32  # pixels of the input between its cells


def grad_cam(model: AttributeClassifier, images_BHWC: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Grad-CAM maps at `layer4`, float32 [B, A, y, x] on the CPU, before the ReLU.

    What is positive speaks for the attribute, what is negative against it. The map of a decision is the ReLU of this
    one where the attribute is present, and of its negative where it is absent (the map of a logit's negative).

    Args:
        model: in evaluation mode; it is left as it is, its gradients too.
        images_BHWC: uint8, on the model's device.
        batch: images that go through the network at a time.
    """
    assert not model.training, "a look at the network must not move its statistics"
    # All attributes share one pass up to layer4, and captum gets what comes after it. So it meets neither the uint8
    # images, which have no gradient, nor the ReLUs that overwrite what they are given.
    *body, pool, head = model.net.children()
    body, tail = nn.Sequential(*body), nn.Sequential(nn.Identity(), pool, nn.Flatten(1), head)
    method = LayerGradCam(tail, tail[0])
    attributes, parts = range(model.net.fc.out_features), []
    for images in torch.split(images_BHWC, batch):
        with torch.no_grad():
            cells_BCyx = body(model.normalise(images))
        maps = [method.attribute(cells_BCyx, target=attribute).detach() for attribute in attributes]
        parts.append(torch.cat(maps, dim=1).cpu())
    return torch.cat(parts)


def at_pixels(maps_BAyx: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps [B, A, H, W] of the cells [B, A, y, x], linear between the cells' middles.

    A cell lies where its receptive field has its middle: with ResNet's odd kernels and their padding, the i-th at pixel
    32 i. Stretching the cells over the image, as is often done, would move what they see by up to half a cell.

    Args:
        maps_BAyx: on the CPU.
        size: H and W of the network's input.
    """
    weights = []
    for pixels, cells in zip(size, maps_BAyx.shape[2:], strict=True):
        place = (torch.arange(pixels) / STRIDE).clamp(max=cells - 1)
        weights.append((1 - (place[:, None] - torch.arange(cells)).abs()).clamp(min=0))
    return weights[0] @ maps_BAyx @ weights[1].T
