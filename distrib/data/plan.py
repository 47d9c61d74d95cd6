"""What each step trains on: a pure function of seed, epoch and step, the same for any number of ranks.

Nothing here has a state, so a run resumes at any step, on any number of ranks, without replaying or saving anything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from distrib.config.growing import Stage
from distrib.data.batch import Request

# The third word of the counter: what the random numbers are for, so that no two uses share any;
# `augmentation.py` has its own from 2**16 on.
_ORDER, _VIEW, _SUBSTITUTE = 0, 1, 2  # and 3, 4 … for further substitutes


def philox(seed: int, epoch: int, purpose: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), for many counters at once.

    Args:
        seed: the key, 64 bits.
        epoch: 32 bits of the counter.
        purpose: 32 bits of the counter.
        ids: int64 [N], 64 bits of the counter each.

    Returns:
        uint32 [4, N], four independent words for each id.
    """
    low = np.uint64(0xFFFFFFFF)
    c0 = ids.astype(np.uint64) & low
    c1 = ids.astype(np.uint64) >> np.uint64(32)
    c2 = np.full(len(ids), purpose, dtype=np.uint64)
    c3 = np.full(len(ids), epoch, dtype=np.uint64)
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(key0),
            product1 & low,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(key1),
            product0 & low,
        )
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class Plan:
    """The training set in batches.

    The last, short batch of an epoch is left out; as every epoch has its own order, it is other images each time.

    Attributes:
        rows: int64 [N], the table's rows to train on.
        seed: of the order of the images, their crops and flips.
        batch_size: images in a step over all ranks.
        min_zoom: smallest side of a random crop as a fraction of the largest; 1: no random crop.
        flip: whether half of the images are mirrored.
        stages: how large the images are, from which share of the run on; none: they are as the decoder has them.
        epochs: of the run, by which its shares go.
    """

    rows: NDArray[np.int64]
    seed: int
    batch_size: int
    min_zoom: float = 1.0
    flip: bool = True
    stages: tuple[Stage, ...] = ()
    epochs: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.batch_size

    @cached_property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """The steps, counted from 0 over the run, from which on images have another height and width; ascending.

        A stage begins with the step in which its share of the run lies, so that the last step is of the last stage.
        """
        steps = self.steps_per_epoch * self.epochs
        return {math.floor(stage.share * steps): stage.size for stage in self.stages}

    def size(self, step: int) -> tuple[int, int] | None:
        """Height and width of the images of a step, counted from 0 over the run; None: the decoder's own."""
        return next((size for first, size in reversed(self.sizes.items()) if first <= step), None)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's permutation of the rows, int64 [N]."""
        return self.rows[_permutation(self.seed, epoch, len(self.rows))]

    def batch(self, epoch: int, step: int) -> Request:
        """The global batch of a step, counted from 0 within its epoch.

        Raises:
            IndexError: if the epoch has no such step.
        """
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        permutation = _permutation(self.seed, epoch, len(self.rows))
        ids = self.rows[permutation[step * self.batch_size : (step + 1) * self.batch_size]]
        zoom, top, left, flip = philox(self.seed, epoch, _VIEW, ids) / 2.0**32  # uniform in [0, 1)
        return Request(
            ids,
            zoom=1 - zoom * (1 - self.min_zoom),
            top=top,
            left=left,
            flip=(flip < 0.5) & self.flip,
            epoch=epoch,
            size=self.size(epoch * self.steps_per_epoch + step),
        )

    def substitute(self, epoch: int, row: int, attempt: int) -> int:
        """The row to train on in place of one whose image is broken; for the next attempt if that is broken too."""
        words = philox(self.seed, epoch, _SUBSTITUTE + attempt, np.array([row]))[:, 0].astype(np.uint64)
        return int(self.rows[int((words[0] << np.uint64(32)) | words[1]) % len(self.rows)])

    def rank_batches(
        self, epoch: int, first_step: int, rank: int, ranks: int, accumulation: int = 1
    ) -> Iterator[Request]:
        """A rank's part of every step from the first one to the end of the epoch, in micro-batches.

        The global batch is cut into G = ranks x accumulation groups: group g is every G-th image from the g-th on. A
        rank takes the groups rank, rank + ranks, … one after another: `accumulation` requests a step, each of
        batch_size / G images. The groups are the same ones for any number of ranks that divides G.
        """
        groups = ranks * accumulation
        for step in range(first_step, self.steps_per_epoch):
            batch = self.batch(epoch, step)
            yield from (batch[group::groups] for group in range(rank, groups, ranks))


def evaluation_batches(rows: NDArray[np.int64], size: int, rank: int, ranks: int, zoom: float) -> Iterator[Request]:
    """A rank's part of the rows, each row once over all ranks, the middle of each crop; the last batch may be short.

    Args:
        rows: int64 [N], of the table.
        size: images of a batch.
        rank: that asks.
        ranks: that share the rows.
        zoom: `data.eval_zoom`.
    """
    mine = rows[rank::ranks]
    return (Request.centred(mine[start : start + size], zoom) for start in range(0, len(mine), size))


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 … count-1 by sorting random keys: numpy's own shuffle may change between its versions."""
    words = philox(seed, epoch, _ORDER, np.arange(count)).astype(np.uint64)
    return np.argsort((words[0] << np.uint64(32)) | words[1], kind="stable")
