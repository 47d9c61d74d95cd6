"""Augmentation: what `augment` asks for is done to a batch on the device that it is on, for training alone.

What becomes of a group of images depends on seed, epoch and its first row of the table. So a run does the same wherever
it is resumed and on any number of ranks, to the bit: pixels pass kernels that add or multiply once, since two fused
would round otherwise, and at the end of a batch they may not be fused.

All is done in one pass in float32 between uint8 and uint8. Random numbers are drawn on the host, and the device is
never waited for.

Legend: B images, C channels, H height, W width, A attributes.
"""

from dataclasses import replace

import torch

from distrib.config import AugmentConfig
from distrib.data.batch import Batch
from distrib.data.plan import philox

# What random numbers are for, as in `plan.py`, far above its own; those before it were for what there is no more.
_MIXING = 2**16 + 6


class Augmentation:
    """Augments the batches of a training; with everything off it gives them back as they are.

    Args:
        config: how.
        seed: of the plan.
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self._config, self._seed = config, seed

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """A group of images that BatchNorm normalises over, augmented, and its targets, in [0, 1] where it is mixed.

        Args:
            batch: of B images.
            epoch: counted from 0.
        """
        alpha = self._config.mixup
        if not alpha:
            return batch
        words = philox(self._seed, epoch, _MIXING, batch.requested[:1])
        quantile = float(words[1, 0]) / 2.0**32  # the second number, as in runs of earlier versions
        images_BHWC, targets_BA = mix(batch.images_BHWC.float(), batch.targets_BA, alpha, quantile)
        return replace(batch, images_BHWC=images_BHWC.round_().to(torch.uint8), targets_BA=targets_BA)


def mix(
    images_BHWC: torch.Tensor, targets_BA: torch.Tensor, alpha: float, quantile: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., ICLR 2018): each image and its targets mixed with those before it in the group, the first
    with the last.

    By one share for the whole group, which is this quantile of the Beta distribution with both parameters alpha. The
    order within a group is random in every epoch, and so are the partners.
    """
    from scipy.special import betaincinv  # takes half a second to import

    share = float(betaincinv(alpha, alpha, quantile))  # of the partner
    images_BHWC = images_BHWC + (images_BHWC.roll(1, 0) - images_BHWC).mul_(share)
    return images_BHWC, targets_BA + (targets_BA.roll(1, 0) - targets_BA).mul_(share)
