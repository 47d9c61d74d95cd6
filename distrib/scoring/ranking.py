"""The thresholds that tell the images of each attribute apart, for all attributes at once, and areas over them.

scikit-learn computes the same an attribute at a time; the tests hold these to it.

Legend: N images, A attributes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RankedImages:
    """Images from the highest value to the lowest.

    Attributes:
        values_AN: float64 [A, N], descending.
        true_AN: int64 [A, N], the positives among the images down to this one.
        false_AN: int64 [A, N], the negatives among them.
        distinct_AN: bool [A, N], whether a threshold can end here: the next value is another.
    """

    values_AN: NDArray[np.float64]
    true_AN: NDArray[np.int64]
    false_AN: NDArray[np.int64]
    distinct_AN: NDArray[np.bool_]


def rank_images(values_NA: NDArray[np.floating], targets_NA: NDArray[np.uint8]) -> RankedImages:
    """Rank the images of each attribute.

    Args:
        values_NA: finite [N, A], logits or probabilities.
        targets_NA: {0, 1} [N, A].
    """
    values = np.ascontiguousarray(values_NA.T, dtype=np.float64)
    order = np.argsort(-values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    true = np.cumsum(np.take_along_axis(targets_NA.T, order, axis=1), axis=1, dtype=np.int64)
    distinct = np.ones(values.shape, dtype=bool)
    distinct[:, :-1] = values[:, 1:] != values[:, :-1]
    return RankedImages(values, true, np.arange(1, values.shape[1] + 1) - true, distinct)


def roc_auc(ranking: RankedImages) -> NDArray[np.float64]:
    """The area under the ROC curve of each attribute, float64 [A]: by trapezoids, so that ties count half."""
    true, false, before_true, before_false = _ends(ranking)
    twice = ((false - before_false) * (true + before_true)).sum(axis=1)  # whole numbers, so exact
    positives, negatives = ranking.true_AN[:, -1], ranking.false_AN[:, -1]
    return np.asarray(twice / (2 * positives * negatives))


def average_precision(ranking: RankedImages) -> NDArray[np.float64]:
    """The sum over the thresholds of each attribute of precision times what recall gains there, float64 [A]."""
    true, false, before_true, _ = _ends(ranking)
    precision = true / np.maximum(true + false, 1)
    return np.asarray(((true - before_true) * precision).sum(axis=1) / ranking.true_AN[:, -1])


def _ends(ranking: RankedImages) -> tuple[NDArray[np.int64], ...]:
    """True and false positives at each threshold, and at the threshold before; all the same where none ends."""
    counts = [np.where(ranking.distinct_AN, each, 0) for each in (ranking.true_AN, ranking.false_AN)]
    reached = [np.maximum.accumulate(each, axis=1) for each in counts]
    before = [np.pad(each[:, :-1], ((0, 0), (1, 0))) for each in reached]
    return (*reached, *before)
