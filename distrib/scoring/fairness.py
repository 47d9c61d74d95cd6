"""Whether a model serves every group of people alike: each score within the groups.

Legend: N images, A attributes, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import SCORES
from distrib.scoring.metrics import score


@dataclass(frozen=True)
class GroupScores:
    """Every score of every attribute within each group.

    Attributes:
        images: int64 [G], images of each group.
        positives: int64 [G, A], those of them that have the attribute; a score of few says little.
        values: for each name in `SCORES`, float64 [G, A]; NaN where it is undefined within the group.
    """

    images: NDArray[np.int64]
    positives: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]

    def gap(self, name: str) -> NDArray[np.float64]:
        """The largest difference of a score between two groups, float64 [A]; NaN where fewer than two have it."""
        values = self.values[name]
        defined = np.isfinite(values)
        highest = values.max(axis=0, initial=-np.inf, where=defined)
        lowest = values.min(axis=0, initial=np.inf, where=defined)
        return np.where(defined.sum(axis=0) > 1, highest - lowest, np.nan)

    def worst(self, name: str) -> list[int | None]:
        """For each attribute the group with the worst score (the highest loss); None where no two groups differ."""
        values = self.values[name] if name == "loss" else -self.values[name]
        worst = np.where(np.isfinite(values), values, -np.inf).argmax(axis=0)
        return [int(group) if gap > 0 else None for group, gap in zip(worst, self.gap(name), strict=True)]


def score_groups(
    attributes: Sequence[str],
    logits_NA: NDArray[np.float32],
    targets_NA: NDArray[np.uint8],
    group_N: NDArray[np.integer[Any]],
    groups: int,
) -> GroupScores:
    """All scores within each group, the decision being a probability of at least 1/2.

    They are those of `metrics.score`, but that precision is undefined, too, in a group without positives: it is 0 there
    whatever the model does.

    Args:
        attributes: A names.
        logits_NA: float [N, A].
        targets_NA: {0, 1} [N, A].
        group_N: the group of each image, 0 … G - 1.
        groups: G; a group may be without images, and all its scores are undefined then.
    """
    members = [group_N == group for group in range(groups)]
    values = {name: np.full((groups, len(attributes)), np.nan) for name in SCORES}
    positives = np.array([targets_NA[chosen].sum(axis=0, dtype=np.int64) for chosen in members])
    for group, chosen in enumerate(members):
        if chosen.any():
            for name, found in score(tuple(attributes), logits_NA[chosen], targets_NA[chosen]).values.items():
                values[name][group] = found
    values["precision"][positives == 0] = np.nan
    return GroupScores(np.array([chosen.sum() for chosen in members]), positives, values)
