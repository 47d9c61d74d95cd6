"""How far the scores can be trusted: 95 % confidence intervals by the bootstrap, for one model and between two.

Where it is known who is on the images, whole identities are drawn with replacement, each with all of its images:
images of one person are alike, and drawing them one by one would make the intervals too narrow (the cluster
bootstrap; C. A. Field and A. H. Welsh, "Bootstrapping clustered data", J. R. Statist. Soc. B 69, 2007). Where it is
not known, images are drawn. The interval goes from the 2.5th to the 97.5th percentile of the resamples' scores
(percentile interval; B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).

A resample is a count for each identity: how often it was drawn. Every score is computed from such counts as weights, so
each attribute is sorted once, not once a resample.

Legend: N images, A attributes, M units that are drawn (identities, or images), R resamples, L levels (see `Ranking`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from distrib.config import SCORES
from distrib.scoring.metrics import mean_of_defined

# Every score but the loss.
INTERVAL_SCORES = tuple(name for name in SCORES if name != "loss")
CONFIDENCE = 0.95
# Images times resamples that are worked on together: an array of so many int32 is 2 MB, which a cache holds.
_CHUNK = 2**19

Interval = tuple[float, float]
T = TypeVar("T")
_Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Resampled(Generic[T]):
    """What resampling the images tells of every score in `INTERVAL_SCORES`.

    Attributes:
        resampled: "identities" or "images", what was drawn.
        resamples: how often.
        by_attribute: for each of the A attributes, score -> what is told of it.
        mean: score -> what is told of the mean over the attributes that have the score.
    """

    resampled: str
    resamples: int
    by_attribute: list[dict[str, T]]
    mean: dict[str, T]


# 95 % confidence intervals, lower and upper end; None where a score is undefined.
Intervals = Resampled[Interval | None]


@dataclass(frozen=True)
class Difference:
    """A score of two models on the same images.

    Attributes:
        first: of the first model, NaN where undefined.
        second: of the second model, NaN where undefined.
        difference: first - second; above 0 the first model is better.
        interval: 95 % interval of the difference; None where undefined.
        p_value: twice the smaller of the shares of the resamples in which the difference is at most 0 and at least 0,
            at most 1: small where the sign of the difference hardly ever changes. Counted with one resample more on
            either side, so that it is never 0 (A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their
            Application", 1997, section 4.2). None where undefined. It is not corrected for looking at many attributes.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    p_value: float | None


Comparison = Resampled[Difference]


def bootstrap(
    logits_NA: NDArray[np.floating[Any]],
    targets_NA: NDArray[np.uint8],
    groups_N: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
) -> Intervals:
    """95 % intervals of every score in `INTERVAL_SCORES`, by attribute and for the mean over attributes.

    The decision is a logit of at least 0. A resample in which a score is undefined (no positives, or one class only) is
    left out of that score's interval; an attribute that has one class only has no interval, and neither has anything if
    there are fewer than two identities.

    Args:
        logits_NA: float [N, A], anything that ranks the images as the model does.
        targets_NA: {0, 1} [N, A].
        groups_N: int64 [N], who is on each image; None: images are drawn.
        resamples: how many, at least 1; 1,000 is usual.
        seed: the same seed gives the same intervals.
    """
    unit_N = _units(groups_N, len(targets_NA))
    (values,) = _resample([_scorer(logits_NA, targets_NA, unit_N)], unit_N, targets_NA.shape[1], resamples, seed)
    return _told({name: _intervals(_with_mean(values[name])) for name in INTERVAL_SCORES}, groups_N, resamples)


def paired_bootstrap(
    first_logits_NA: NDArray[np.floating[Any]],
    second_logits_NA: NDArray[np.floating[Any]],
    targets_NA: NDArray[np.uint8],
    groups_N: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
) -> Comparison:
    """Differences of every score in `INTERVAL_SCORES` between two models, first - second.

    Both are scored on the same resamples, so what is hard for both cancels out. Decisions and undefined resamples are
    treated as in `bootstrap`.

    Args:
        first_logits_NA: float [N, A] of the first model.
        second_logits_NA: float [N, A] of the second model, of the same images and attributes in the same order.
        targets_NA: {0, 1} [N, A].
        groups_N: int64 [N], who is on each image; None: images are drawn.
        resamples: how many, at least 1; 1,000 is usual.
        seed: the same seed gives the same result.
    """
    unit_N = _units(groups_N, len(targets_NA))
    models = [_scorer(logits_NA, targets_NA, unit_N) for logits_NA in (first_logits_NA, second_logits_NA)]
    each_once = np.ones((1, unit_N.max(initial=-1) + 1), dtype=np.int32)
    plain = [scores(each_once) for scores in models]
    drawn = _resample(models, unit_N, targets_NA.shape[1], resamples, seed)
    found = {}
    for name in INTERVAL_SCORES:
        both = np.isfinite(plain[0][name] - plain[1][name])
        first, second = (_with_mean(values[name], where=both)[0] for values in plain)
        changes = _with_mean(drawn[0][name] - drawn[1][name])
        columns = first.tolist(), second.tolist(), (first - second).tolist(), _intervals(changes), _p_values(changes)
        found[name] = [Difference(*each) for each in zip(*columns, strict=True)]
    return _told(found, groups_N, resamples)


def _told(found: dict[str, list[T]], groups_N: NDArray[np.int64] | None, resamples: int) -> Resampled[T]:
    """Of each score what is told of the A attributes, and at last of their mean."""
    *by_attribute, mean = (dict(zip(found, each, strict=True)) for each in zip(*found.values(), strict=True))
    return Resampled("images" if groups_N is None else "identities", resamples, by_attribute, mean)


def _units(groups_N: NDArray[np.int64] | None, images: int) -> NDArray[np.int64]:
    """The number of each image's unit, 0 … M - 1."""
    return np.arange(images) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]


def _resample(
    models: list[Callable[[NDArray[np.int32]], _Values]],
    unit_N: NDArray[np.int64],
    attributes: int,
    resamples: int,
    seed: int,
) -> list[_Values]:
    """For each model's `_scorer` the scores float64 [R, A] of the same resamples."""
    units = int(unit_N.max(initial=-1)) + 1
    if units < 2:  # it would be drawn every time, and the interval would be a point
        return [{name: np.full((resamples, attributes), np.nan) for name in INTERVAL_SCORES} for _ in models]
    parts = [
        [scores(drawn_RM) for scores in models]
        for drawn_RM in _draw(units, resamples, max(1, _CHUNK // len(unit_N)), seed)
    ]
    return [
        {name: np.concatenate([part[name] for part in of_model]) for name in INTERVAL_SCORES}
        for of_model in zip(*parts, strict=True)
    ]


def _draw(units: int, resamples: int, chunk: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """How often each unit is drawn in each resample, int32 [up to chunk, M] at a time."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn_RM = generator.integers(0, units, (rows, units))
        drawn_RM += np.arange(0, rows * units, units)[:, None]  # so that one bincount counts all rows
        yield np.bincount(drawn_RM.ravel(), minlength=rows * units).reshape(rows, units).astype(np.int32)


@dataclass(frozen=True)
class Ranking:
    """What of an attribute's ranking does not depend on the resample.

    A level is a logit that at least one positive has; images that share it are tied. Precision and the count of false
    positives are needed at levels alone, because both scores sum over the positives.

    Attributes:
        order_N: images from the highest logit to the lowest.
        positive_P: places in that order where the positives are.
        first_L, end_L: where a level begins and ends among the positives.
        begin_L, stop_L: where it begins and ends in the whole order.
    """

    order_N: NDArray[np.int64]
    positive_P: NDArray[np.int64]
    first_L: NDArray[np.int64]
    end_L: NDArray[np.int64]
    begin_L: NDArray[np.int64]
    stop_L: NDArray[np.int64]


def rank(logits_N: NDArray[np.floating[Any]], targets_N: NDArray[np.uint8]) -> Ranking | None:
    """The ranking of one attribute; None where it has no positives or a logit is not finite."""
    if not targets_N.any() or not np.isfinite(logits_N).all():
        return None
    order = np.argsort(-logits_N, kind="stable")
    falling = -logits_N[order]
    positive = np.flatnonzero(targets_N[order])
    levels, first, sizes = np.unique(falling[positive], return_index=True, return_counts=True)
    begin, stop = (np.asarray(np.searchsorted(falling, levels, side)) for side in ("left", "right"))
    return Ranking(order, positive, first, first + sizes, begin, stop)


def ranking_scores(
    drawn_RM: NDArray[np.int32], unit_N: NDArray[np.int64], ranking: Ranking
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ROC AUC and average precision, float64 [R] each, NaN where undefined.

    They are scikit-learn's `roc_auc_score` and `average_precision_score` with `sample_weight=drawn_RM[r, unit_N]`:
    a tie between a positive and a negative counts one half in the first, and in the second the images of one level come
    in together.
    """
    weights_RN = np.take(drawn_RM, unit_N[ranking.order_N], axis=1)
    positives_RP = np.take(weights_RN, ranking.positive_P, axis=1)
    seen, hit = _running_sum(weights_RN), _running_sum(positives_RP)
    hit_before, hit_after = np.take(hit, ranking.first_L, axis=1), np.take(hit, ranking.end_L, axis=1)
    seen_before, seen_after = np.take(seen, ranking.begin_L, axis=1), np.take(seen, ranking.stop_L, axis=1)
    gained_RL = (hit_after - hit_before).astype(np.float64)
    missed_RL = (seen_before - hit_before) + (seen_after - hit_after)  # twice the false positives up to mid-level
    positives_R, images_R = hit[:, -1].astype(np.float64), seen[:, -1].astype(np.float64)
    negatives_R = images_R - positives_R
    with np.errstate(divide="ignore", invalid="ignore"):
        won_R = negatives_R * positives_R - np.einsum("rl,rl->r", gained_RL, missed_RL) / 2
        precision_RL = hit_after / np.maximum(seen_after, 1)
        return (
            won_R / (positives_R * negatives_R),
            np.einsum("rl,rl->r", gained_RL, precision_RL) / positives_R,
        )


def _running_sum(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums of the first 0, 1, … values of each row."""
    sums = np.zeros((len(values), values.shape[1] + 1), dtype=np.int32)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _scorer(
    logits_NA: NDArray[np.floating[Any]], targets_NA: NDArray[np.uint8], unit_N: NDArray[np.int64]
) -> Callable[[NDArray[np.int32]], _Values]:
    """What gives the scores of resamples, float64 [R, A] each, with the meaning they have in `metrics.score`.

    It is told how often each unit is drawn, int32 [R, M].
    """
    rankings = [rank(logits_N, targets_N) for logits_N, targets_N in zip(logits_NA.T, targets_NA.T, strict=True)]
    # For each unit its images, and per attribute those that are positive, decided so, and both: [M, 1 + 3 A].
    truth, decisions = targets_NA.astype(bool), logits_NA >= 0
    counts_M = np.zeros((unit_N.max(initial=-1) + 1, 1 + 3 * len(rankings)))
    np.add.at(counts_M, unit_N, np.hstack([np.ones((len(truth), 1)), truth, decisions, truth & decisions]))

    def scores(drawn_RM: NDArray[np.int32]) -> _Values:
        sums = drawn_RM.astype(np.float64) @ counts_M
        images, (positives, decided, hits) = sums[:, :1], np.split(sums[:, 1:], 3, axis=1)
        negatives = images - positives
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = hits / positives
            specificity = (negatives - decided + hits) / negatives
            values = {
                "accuracy": (images - positives - decided + 2 * hits) / images,
                "balanced_accuracy": (recall + specificity) / 2,
                "precision": hits / np.maximum(decided, 1),
                "recall": recall,
                "f1": np.where(positives > 0, 2 * hits / (positives + decided), np.nan),
            }
        values["roc_auc"], values["average_precision"] = np.full((2, *positives.shape), np.nan)
        for i, ranking in enumerate(rankings):
            if ranking is not None:
                values["roc_auc"][:, i], values["average_precision"][:, i] = ranking_scores(drawn_RM, unit_N, ranking)
        return values

    return scores


def _with_mean(values_RA: NDArray[np.float64], where: NDArray[np.bool_] | bool = True) -> NDArray[np.float64]:
    """A column more, the mean over the attributes that have the score: [R, A + 1]."""
    return np.column_stack([values_RA, mean_of_defined(values_RA, axis=1, where=where)])


def _intervals(values: NDArray[np.float64]) -> list[Interval | None]:
    """Of each column of [R, …]; None where no resample has a value."""
    ends = np.full((2, values.shape[1]), np.nan)
    defined = ~np.isnan(values).all(axis=0)
    ends[:, defined] = np.nanquantile(values[:, defined], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [(low, high) if np.isfinite([low, high]).all() else None for low, high in ends.T.tolist()]


def _p_values(changes: NDArray[np.float64]) -> list[float | None]:
    """Of each column of [R, …], see `Difference`."""
    defined = np.isfinite(changes).sum(axis=0)
    rarer = np.minimum((changes <= 0).sum(axis=0), (changes >= 0).sum(axis=0))
    shares = np.minimum(2 * (rarer + 1) / (defined + 1), 1).tolist()
    return [share if count else None for share, count in zip(shares, defined, strict=True)]
