"""Probabilities that mean what they say, and where to draw the line: both fitted on validation.

Legend: N images, A attributes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import TUNED_SCORES, TunedScore
from distrib.scoring.ranking import rank_images

# The range that temperatures are sought in; beyond it a probability is 0, 1/2 or 1 in all but name.
_LOWEST, _HIGHEST = 0.05, 20.0


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) in float64, in the form that does not overflow."""
    x = logits.astype(np.float64)
    return np.exp(-np.logaddexp(0, -x))


def negative_log_likelihood(logits: NDArray[np.floating], targets: NDArray[Any]) -> float:
    """Mean binary cross-entropy in nats of logits [N] against targets [N] between 0 and 1."""
    x = logits.astype(np.float64)
    return float(np.mean(np.logaddexp(0, x) - x * targets))


def fit_temperature(logits_NA: NDArray[np.float32], targets_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The temperature T of each attribute, float64 [A]: sigmoid(logit / T) has the least negative log-likelihood.

    Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017), one temperature an attribute,
    as each attribute is a classifier of its own. The targets are Platt's (Probabilistic Outputs for Support Vector
    Machines, 1999), (P + 1) / (P + 2) for the P positives and 1 / (Q + 2) for the Q negatives: with 0 and 1 themselves
    a validation split without a mistake would drive T to 0, and the next mistake would be made with certainty.

    It is 1 where an attribute has one class only or a logit is not finite: nothing can be fitted there.

    Args:
        logits_NA: float32 [N, A], of images that were not trained on.
        targets_NA: {0, 1} [N, A].
    """
    # They take a second: by those alone who fit, not by those who predict.
    from scipy.optimize.elementwise import find_root
    from scipy.special import expit

    temperatures = np.ones(logits_NA.shape[1])
    fitted = _fitted(logits_NA, targets_NA)
    logits = np.ascontiguousarray(logits_NA[:, fitted].T, dtype=np.float64)
    positives = targets_NA[:, fitted].sum(axis=0, dtype=np.int64)[:, None]
    negatives = len(targets_NA) - positives
    soft = np.where(targets_NA[:, fitted].T, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def slope(inverse: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.float64]:
        """The derivative of the negative log-likelihood by 1 / T, which rises with 1 / T: the likelihood is concave."""
        x = logits[row]
        return np.asarray((x * (expit(x * inverse[:, None]) - soft[row])).mean(axis=1))

    rows = np.arange(len(fitted))
    low, high = np.full(len(fitted), 1 / _HIGHEST), np.full(len(fitted), 1 / _LOWEST)
    at_low, at_high = slope(low, rows), slope(high, rows)
    falls, rises = at_low < 0, at_high > 0
    inverse = np.where(falls, high, low)  # where the likelihood grows up to an end of the range
    inverse[(at_low == 0) & (at_high == 0)] = 1  # of logits that are all 0
    within = np.flatnonzero(falls & rises)
    inverse[within] = find_root(slope, (low[within], high[within]), args=(within,), tolerances={"xrtol": 1e-9}).x
    temperatures[fitted] = 1 / inverse
    return temperatures


def tune_thresholds(
    probabilities_NA: NDArray[np.float64], targets_NA: NDArray[np.uint8]
) -> dict[TunedScore, NDArray[np.float64]]:
    """For each of `TUNED_SCORES` the threshold of each attribute, float64 [A], that has the highest score.

    Present means p >= threshold, and every way in which a threshold in 0 … 1 can part the images is looked at; of
    several that are best it is the lowest one. It lies half-way between the lowest probability that is taken for
    present (1 where none is) and the next lower one, as either end of that gap decides these images alike. It is 1/2
    where an attribute has one class only, or a probability that is not finite.

    Args:
        probabilities_NA: float64 [N, A].
        targets_NA: {0, 1} [N, A].
    """
    tuned = _fitted(probabilities_NA, targets_NA)
    ranking = rank_images(probabilities_NA[:, tuned], targets_NA[:, tuned])
    # One place more, before all images: that none of them is present.
    values, true, false = (
        np.pad(each, ((0, 0), (1, 0)), constant_values=none)
        for each, none in ((ranking.values_AN, 1), (ranking.true_AN, 0), (ranking.false_AN, 0))
    )
    ends = np.pad(ranking.distinct_AN, ((0, 0), (1, 0)))
    ends[:, 0] = values[:, 1] < 1
    positives, negatives = true[:, -1:], false[:, -1:]
    heights_AN = {  # each rises with its score; the last two are whole numbers, so that what is equal ties
        "f1": true / (true + false + positives),
        "accuracy": true - false,
        "balanced_accuracy": true * negatives - false * positives,
    }
    rows, last = np.arange(len(tuned)), values.shape[1] - 1
    thresholds = {}
    for score in TUNED_SCORES:
        heights = np.where(ends, heights_AN[score], -np.inf)
        place = last - np.argmax(heights[:, ::-1], axis=1)  # of several the lowest threshold
        lowest = values[rows, place]
        below = np.where(place < last, values[rows, np.minimum(place + 1, last)], 0.0)
        middle = (lowest + below) / 2
        thresholds[score] = np.full(probabilities_NA.shape[1], 0.5)
        thresholds[score][tuned] = np.where(middle > below, middle, lowest)  # neighbouring numbers have no middle
    return thresholds


def _fitted(values_NA: NDArray[np.floating], targets_NA: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The attributes with both classes and finite values, of which alone something can be fitted."""
    both = targets_NA.min(axis=0) != targets_NA.max(axis=0)
    return np.flatnonzero(both & np.isfinite(values_NA).all(axis=0))


def reliability(
    probabilities: NDArray[np.float64], targets: NDArray[np.uint8], bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The reliability diagram of one attribute: what was said against what was so, in bins of equal width.

    Args:
        probabilities: [N] in [0, 1] that the attribute is present.
        targets: {0, 1} [N].
        bins: between 0 and 1.

    Returns:
        The mean probability, the share of positives and the number of images of each bin; NaN in empty bins.
    """
    place = np.clip((probabilities * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=probabilities, minlength=bins) / count
        frequency = np.bincount(place, weights=targets, minlength=bins) / count
    return confidence, frequency, count


def expected_calibration_error(probabilities: NDArray[np.float64], targets: NDArray[np.uint8], bins: int = 15) -> float:
    """ECE: the mean distance of said from so over the bins of `reliability`, weighted by their images.

    Naeini, Cooper & Hauskrecht, AAAI 2015, for the probability of the positive class.
    """
    confidence, frequency, count = reliability(probabilities, targets, bins)
    filled = count > 0
    return float(np.sum(count[filled] * np.abs(confidence[filled] - frequency[filled])) / count.sum())
