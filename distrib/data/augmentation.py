"""Augmentation: what `augment` asks for is done to a batch on the device that it is on, for training alone.

What becomes of an image depends on seed, epoch and its row of the table, and a mixture on those of its group. So a run
does the same wherever it is resumed and on any number of ranks, to the bit: since batches of other sizes must not round
otherwise, pixels pass kernels that add or multiply once (two fused would round otherwise, and at the end of a batch
they may not be fused), and torch's bilinear sampling, which goes image by image. Mean colours are sums of whole
numbers, which are exact.

All is done in one pass in float32 between uint8 and uint8, in this order: rotation, translation and scale;
colours; mixup. Random numbers are drawn on the host, and the device is never waited for.

Legend: B images, C channels, H height, W width, A attributes.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distrib.config import AugmentConfig
from distrib.data.batch import Batch
from distrib.data.plan import philox

# What random numbers are for, as in `plan.py`, far above its own; those left out were for what there is no more.
_GEOMETRY, _COLOUR, _GREY, _MIXING = (2**16 + number for number in (0, 4, 5, 6))

# Luma by the channels (ITU-R BT.601), for each channel of a grey image.
_LUMA = np.tile([0.299, 0.587, 0.114], (3, 1))


class Augmentation:
    """Augments the batches of a training; with everything off it gives them back as they are.

    Args:
        config: how.
        seed: of the plan.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._on = config != AugmentConfig()

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """A group of images that BatchNorm normalises over, augmented, and its targets, in [0, 1] where it is mixed.

        Args:
            batch: of B images.
            epoch: counted from 0.
        """
        if not self._on:
            return batch
        config, rows, targets_BA = self._config, batch.requested, batch.targets_BA

        def draw(purpose: int, ids: NDArray[np.int64] = rows) -> NDArray[np.float64]:
            """Four uniform numbers in [0, 1) for each row, [4, B]."""
            uniform: NDArray[np.float64] = philox(self._seed, epoch, purpose, ids) / 2.0**32
            return uniform

        # Planes, as each channel of an image is then one block of memory, over which kernels are fast.
        planes_BCHW = batch.images_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean_BC = mean_colours(planes_BCHW) if config.contrast else None
        if config.rotation or config.translation or config.scale:
            planes_BCHW = move(planes_BCHW, config, draw(_GEOMETRY))
        if config.brightness or config.contrast or config.grey:
            planes_BCHW = recolour(planes_BCHW, config, mean_BC, draw(_COLOUR), draw(_GREY))
        if config.mixup:
            quantile = draw(_MIXING, rows[:1])[1, 0]  # the second number, as in runs of earlier versions
            planes_BCHW, targets_BA = mix(planes_BCHW, targets_BA, config.mixup, quantile)
        images_BHWC = planes_BCHW.round_().permute(0, 2, 3, 1).to(torch.uint8, memory_format=torch.contiguous_format)
        return replace(batch, images_BHWC=images_BHWC, targets_BA=targets_BA)


def mean_colours(planes_BCHW: torch.Tensor) -> torch.Tensor:
    """The mean of each channel, float32 [B, C]; the planes have whole numbers up to 255, whose sums are exact."""
    return planes_BCHW.sum(3).double().mean(2).div_(planes_BCHW.shape[3]).float()


def move(planes_BCHW: torch.Tensor, config: AugmentConfig, random_4B: NDArray[np.float64]) -> torch.Tensor:
    """Images turned and enlarged about their middle and shifted, in one bilinear resampling; what lies outside of them
    is their mirror image."""
    height, width = planes_BCHW.shape[2:]
    turn, enlarge, down, right = 2 * random_4B - 1
    angle, zoom = np.deg2rad(config.rotation * turn), 1 + config.scale * enlarge
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    # Where each pixel comes from: `grid_sample` counts from the middle in halves of a side, these in pixels.
    y_H, x_W = (torch.arange(side, device=planes_BCHW.device) - (side - 1) / 2 for side in (height, width))
    to_x = np.stack((cosine * 2 / width, -sine * 2 / width, -2 * config.translation * right))
    to_y = np.stack((sine * 2 / height, cosine * 2 / height, -2 * config.translation * down))
    coefficients_23B11 = on_device(np.stack((to_x, to_y))[..., None, None], planes_BCHW.device)
    parts = (by_x * x_W + (by_y * y_H[:, None] + shift) for by_x, by_y, shift in coefficients_23B11)
    grid_BHW2 = torch.stack(tuple(parts), dim=3)
    return F.grid_sample(planes_BCHW, grid_BHW2, "bilinear", padding_mode="reflection", align_corners=False)


def recolour(
    planes_BCHW: torch.Tensor,
    config: AugmentConfig,
    mean_BC: torch.Tensor | None,
    random_4B: NDArray[np.float64],
    grey_4B: NDArray[np.float64],
) -> torch.Tensor:
    """Brightness and contrast, in this order, as by torchvision's ColorJitter, and grey instead of colour in some of
    the images: all of it is one matrix, and values are clamped once, at the end."""
    brightness, contrast = 1 + np.array([[config.brightness], [config.contrast]]) * (2 * random_4B[:2] - 1)
    channels_B33 = np.where((grey_4B[0] < config.grey)[:, None, None], _LUMA, np.eye(3))
    matrix_B33 = (brightness * contrast)[:, None, None] * channels_B33
    by_channel_3B311 = on_device(matrix_B33.transpose(2, 0, 1)[..., None, None], planes_BCHW.device)
    coloured_BCHW = planes_BCHW[:, :1] * by_channel_3B311[0]
    for channel in (1, 2):
        coloured_BCHW += planes_BCHW[:, channel : channel + 1] * by_channel_3B311[channel]
    if mean_BC is not None:  # contrast is about the luma of the image's mean colour
        red, green, blue = mean_BC.unbind(1)
        luma_B = (red * _LUMA[0, 0]).add_(green * _LUMA[0, 1]).add_(blue * _LUMA[0, 2])
        shift_B = on_device(brightness * (1 - contrast), planes_BCHW.device) * luma_B
        coloured_BCHW += shift_B[:, None, None, None]
    return coloured_BCHW.clamp_(0, 255)


def mix(
    planes_BCHW: torch.Tensor, targets_BA: torch.Tensor, alpha: float, quantile: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., ICLR 2018): each image and its targets mixed with those before it in the group, the first
    with the last.

    By one share for the whole group, which is this quantile of the Beta distribution with both parameters alpha. The
    order within a group is random in every epoch, and so are the partners.
    """
    from scipy.special import betaincinv  # takes half a second to import

    share = float(betaincinv(alpha, alpha, quantile))  # of the partner
    planes_BCHW = planes_BCHW + (planes_BCHW.roll(1, 0) - planes_BCHW).mul_(share)
    return planes_BCHW, targets_BA + (targets_BA.roll(1, 0) - targets_BA).mul_(share)


def on_device(array: NDArray[np.float64] | NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """The same as int64, or as float32, copied without waiting for the device."""
    whole = array.dtype == np.int64
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64 if whole else np.float32))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
