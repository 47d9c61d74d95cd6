"""Stochastic depth and dropout: what of the network each image does without in a step.

A function of the seed, the epoch and the image, and not of torch's generator, so it is the same on any number of ranks
and after a resume.

Legend: B images, K what may be left out: the residual blocks, and then the features before the head.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distrib.config import Config
from distrib.data.plan import philox
from distrib.model.network import BLOCKS, FEATURES

# The first of the purposes of `philox` that are used here.
_PURPOSE = 1 << 20


@dataclass(frozen=True, eq=False)
class Dropping:
    """What is left out in an epoch.

    Attributes:
        seed: of the training.
        epoch: counted from 0.
        rates_K: float64 in [0, 1), how likely each is left out.
    """

    seed: int
    epoch: int
    rates_K: NDArray[np.float64]

    def kept(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """0 for what an image does without, and else 1 / (1 - rate), so that nothing changes in the mean.

        Args:
            rows: int64 [B], of the table.

        Returns:
            float32 [B, K], on the CPU.
        """
        count, purposes = len(rows), -(-len(self.rates_K) // 4)
        ids = np.repeat(rows, purposes)
        words = philox(self.seed, self.epoch, np.tile(_PURPOSE + np.arange(purposes), count), ids)
        uniform_BK = words.T.reshape(count, 4 * purposes)[:, : len(self.rates_K)] / 2.0**32
        return torch.from_numpy(((uniform_BK >= self.rates_K) / (1 - self.rates_K)).astype(np.float32))


def dropping_of(config: Config, epoch: int) -> Dropping | None:
    """What a training leaves out in an epoch, counted from 0; None: nothing.

    The blocks' rates rise linearly up to `model.stochastic_depth`: Huang et al., Deep Networks with Stochastic Depth,
    ECCV 2016, equation 4.
    """
    depth, dropout = config.model.stochastic_depth, config.model.dropout
    if not (depth or dropout):
        return None
    blocks = depth * np.arange(1, BLOCKS + 1) / BLOCKS
    features = np.full(FEATURES if dropout else 0, dropout)
    return Dropping(config.train.seed, epoch, np.concatenate([blocks, features]))
