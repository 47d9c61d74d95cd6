"""First filters that are not random: the principal components of what they will see.

Legend: B images, H height, W width, d = 3 kh kw values of a patch, N patches.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from distrib.model.network import AttributeClassifier

# Patches along the longer side of an image, at most: more are nearly the same, and cost memory and time.
_ALONG = 28
# Images whose patches are in memory at a time, 50 MB of them.
_CHUNK = 32
# A component with less of the largest one's variance is none: grey images have only a third of them.
_SMALLEST = 1e-6


def principal_filters(model: AttributeClassifier, batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """New weights for `conv1`, float32 of its shape: principal components of patches of images, and their negatives.

    Because ReLU follows, a component and its negative together keep all the information in it. They are the components
    with the largest variance, in descending order, each as long as torchvision's random filters are on average; the
    largest value of a component is positive. Where there are fewer than half of the filters, the rest stay as they are.

    As in Jordan (2024, arXiv:2404.00498, section 3.2), after Page (How to train your ResNet, 2018) and tysam-code
    (hlb-CIFAR10, 2023), who also divide by the deviation, as BatchNorm does here, and keep these filters fixed, as
    `model.freeze conv1` does.

    Args:
        model: on the CPU.
        batches: uint8 RGB images [B, H, W, 3], on the CPU.
    """
    conv = model.net.conv1
    filters: torch.Tensor = conv.weight.detach().clone()
    height, width = conv.kernel_size
    size = conv.in_channels * height * width
    products_dd, sums_d, count = torch.zeros(size, size).double(), torch.zeros(size).double(), 0
    for images_BHWC in batches:
        stride = max(2, -(-max(images_BHWC.shape[1:3]) // _ALONG))
        for chunk_BHWC in torch.split(images_BHWC, _CHUNK):
            patches_BdN = F.unfold(model.normalise(chunk_BHWC), (height, width), stride=stride)
            patches_dN = patches_BdN.transpose(0, 1).flatten(1).double()
            products_dd += patches_dN @ patches_dN.T
            sums_d += patches_dN.sum(1)
            count += patches_dN.shape[1]
    mean_d = sums_d / count
    variances_d, components_dd = torch.linalg.eigh(products_dd / count - mean_d.outer(mean_d))  # ascending, in columns
    pairs = min(conv.out_channels // 2, int((variances_d > _SMALLEST * variances_d[-1]).sum()))
    chosen_d = components_dd.flip(1)[:, :pairs].T
    largest = chosen_d.gather(1, chosen_d.abs().argmax(1, keepdim=True))
    # fan_out, as torchvision's `kaiming_normal_` counts it.
    length = math.sqrt(size * 2 / (conv.out_channels * height * width))
    found_d = length * chosen_d * largest.sign()
    filters[: 2 * pairs] = torch.cat((found_d, -found_d)).float().view(-1, *filters.shape[1:])
    return filters
