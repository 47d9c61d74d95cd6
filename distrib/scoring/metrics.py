"""Scores from logits, as scikit-learn defines them, of all attributes at once.

Legend: N images, A attributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import SCORES
from distrib.scoring.ranking import average_precision as ranked_precision
from distrib.scoring.ranking import rank_images
from distrib.scoring.ranking import roc_auc as ranked_area

# How the scores are called in print.
TITLES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
}


@dataclass(frozen=True)
class Scores:
    """Every score of every attribute.

    Attributes:
        attributes: A names.
        values: for each name in `SCORES`, float64 [A]; NaN where the score is undefined: without positives
            (recall, F1, average precision) or without both classes (balanced accuracy, ROC AUC).
    """

    attributes: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]

    def mean(self) -> dict[str, float]:
        """The mean of each score over the attributes that have it, NaN if none has."""
        return {name: float(mean_of_defined(values)) for name, values in self.values.items()}

    def by_attribute(self) -> dict[str, dict[str, float]]:
        """attribute -> score -> value."""
        return {
            attribute: {name: float(values[i]) for name, values in self.values.items()}
            for i, attribute in enumerate(self.attributes)
        }


def score(attributes: tuple[str, ...], logits_NA: NDArray[np.float32], targets_NA: NDArray[np.uint8]) -> Scores:
    """All scores, the decision being a probability of at least 1/2.

    Args:
        attributes: A names.
        logits_NA: float [N, A].
        targets_NA: {0, 1} [N, A].
    """
    logits = logits_NA.astype(np.float64)
    truth = targets_NA.astype(bool)
    decided = logits >= 0
    right = decided == truth
    positives = truth.sum(axis=0)
    negatives = len(truth) - positives
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (right & truth).sum(axis=0)
        true_positive_rate = found / positives
        true_negative_rate = (right & ~truth).sum(axis=0) / negatives
    roc_auc = np.full(len(attributes), np.nan)
    average_precision = np.full(len(attributes), np.nan)
    known = np.flatnonzero((positives > 0) & np.isfinite(logits).all(axis=0))
    if len(known):
        ranking = rank_images(logits[:, known], truth[:, known])
        average_precision[known] = ranked_precision(ranking)
        with np.errstate(invalid="ignore"):  # without negatives
            roc_auc[known] = ranked_area(ranking)
    values = {
        "loss": mean_loss(logits_NA, targets_NA),
        "accuracy": right.mean(axis=0),
        "balanced_accuracy": (true_positive_rate + true_negative_rate) / 2,
        "precision": found / np.maximum(decided.sum(axis=0), 1),
        "recall": true_positive_rate,
        "f1": np.where(positives > 0, 2 * found / np.maximum(positives + decided.sum(axis=0), 1), np.nan),
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }
    assert tuple(values) == SCORES
    return Scores(attributes, values)


def mean_loss(logits_NA: NDArray[np.float32], targets_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The binary cross-entropy of each attribute, float64 [A]; not finite where a logit is not.

    It is the validation loss whatever `train.label_smoothing` and `train.positive_weight` are, so that runs with
    different ones can be compared.

    Args:
        logits_NA: float [N, A].
        targets_NA: {0, 1} [N, A].
    """
    logits = logits_NA.astype(np.float64)
    with np.errstate(invalid="ignore"):
        # log(1 + exp(x)) - x y, in the form that does not overflow.
        losses: NDArray[np.float64] = (np.logaddexp(0, logits) - logits * targets_NA.astype(bool)).mean(axis=0)
    return losses


def score_decisions(
    attributes: tuple[str, ...], decisions_NA: NDArray[np.bool_], targets_NA: NDArray[np.uint8]
) -> Scores:
    """The scores of decisions at any threshold; those that need more than a decision (loss, areas) mean nothing here.

    Args:
        attributes: A names.
        decisions_NA: bool [N, A].
        targets_NA: {0, 1} [N, A].
    """
    return score(attributes, np.where(decisions_NA, np.float32(1), np.float32(-1)), targets_NA)


def mean_of_defined(
    values: Sequence[float] | NDArray[np.float64], axis: int = 0, where: NDArray[np.bool_] | bool = True
) -> Any:
    """The mean along an axis of the values that are no NaN; NaN if there is none."""
    known = ~np.isnan(values) & where
    # Not nanmean, whose warning is silenced for all threads or none.
    with np.errstate(invalid="ignore"):  # the mean of nothing is the NaN that is wanted
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def majority_accuracy(targets_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The accuracy of always saying what most of these images have, float64 [A]."""
    present = targets_NA.mean(axis=0)
    return np.asarray(np.maximum(present, 1 - present))


def better(name: str, value: float, than: float | None) -> bool:
    """Whether a score beats the best so far; a NaN beats nothing, and anything beats None."""
    if np.isnan(value):
        return False
    if than is None:
        return True
    return value < than if name == "loss" else value > than
