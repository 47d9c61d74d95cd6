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

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import SCORES

# Every score but the loss.
INTERVAL_SCORES = tuple(name for name in SCORES if name != "loss")
CONFIDENCE = 0.95
# Images times resamples that are worked on together: an array of so many int32 is 2 MB, which a cache holds.
_CHUNK = 2**19

Interval = tuple[float, float]
_Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Intervals:
    """95 % confidence intervals, lower and upper end; None where a score is undefined.

    Attributes:
        resampled: "identities" or "images", what was drawn.
        resamples: how often.
        by_attribute: for each of the A attributes, score -> interval.
        mean: score -> interval of the mean over the attributes that have the score.
    """

    resampled: str
    resamples: int
    by_attribute: list[dict[str, Interval | None]]
    mean: dict[str, Interval | None]


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


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        resampled: "identities" or "images", what was drawn.
        resamples: how often.
        by_attribute: for each of the A attributes, score -> difference.
        mean: score -> difference of the means over the attributes that have the score.
    """

    resampled: str
    resamples: int
    by_attribute: list[dict[str, Difference]]
    mean: dict[str, Difference]


def bootstrap(
    logits_NA: NDArray[np.floating[Any]],
    targets_NA: NDArray[np.uint8],
    groups_N: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
    decisions_NA: NDArray[np.bool_] | None = None,
) -> Intervals:
    """95 % intervals of every score in `INTERVAL_SCORES`, by attribute and for the mean over attributes.

    A resample in which a score is undefined (no positives, or one class only) is left out of that score's interval; an
    attribute that has one class only has no interval, and neither has anything if there are fewer than two identities.

    Args:
        logits_NA: float [N, A], anything that ranks the images as the model does.
        targets_NA: {0, 1} [N, A].
        groups_N: int64 [N], who is on each image; None: images are drawn.
        resamples: how many, at least 1; 1,000 is usual.
        seed: the same seed gives the same intervals.
        decisions_NA: bool [N, A], what the model decides; None: a logit of at least 0.
    """
    decisions = [_decisions(logits_NA, decisions_NA)]
    (values,) = _resample([logits_NA], decisions, targets_NA, groups_N, resamples, seed)
    ends = {name: _interval(values[name]) for name in INTERVAL_SCORES}
    return Intervals(
        _resampled(groups_N),
        resamples,
        [{name: _pair(ends[name][:, i]) for name in INTERVAL_SCORES} for i in range(targets_NA.shape[1])],
        {name: _pair(_interval(_mean(values[name])[:, None])[:, 0]) for name in INTERVAL_SCORES},
    )


def paired_bootstrap(
    first_logits_NA: NDArray[np.floating[Any]],
    second_logits_NA: NDArray[np.floating[Any]],
    targets_NA: NDArray[np.uint8],
    groups_N: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
    first_decisions_NA: NDArray[np.bool_] | None = None,
    second_decisions_NA: NDArray[np.bool_] | None = None,
) -> Comparison:
    """Differences of every score in `INTERVAL_SCORES` between two models, first - second.

    Both are scored on the same resamples, so what is hard for both cancels out. Undefined resamples are treated as in
    `bootstrap`.

    Args:
        first_logits_NA: float [N, A] of the first model.
        second_logits_NA: float [N, A] of the second model, of the same images and attributes in the same order.
        targets_NA: {0, 1} [N, A].
        groups_N: int64 [N], who is on each image; None: images are drawn.
        resamples: how many, at least 1; 1,000 is usual.
        seed: the same seed gives the same result.
        first_decisions_NA: bool [N, A], what the first model decides; None: a logit of at least 0.
        second_decisions_NA: the same of the second model.
    """
    logits = [first_logits_NA, second_logits_NA]
    decisions = [
        _decisions(first_logits_NA, first_decisions_NA),
        _decisions(second_logits_NA, second_decisions_NA),
    ]
    everything = np.ones((1, len(targets_NA)), dtype=np.int32)
    plain = [
        _scores(everything, np.arange(len(targets_NA)), _rankings(each, targets_NA), _counts(decided, targets_NA))
        for each, decided in zip(logits, decisions, strict=True)
    ]
    drawn = _resample(logits, decisions, targets_NA, groups_N, resamples, seed)
    by_attribute: list[dict[str, Difference]] = [{} for _ in range(targets_NA.shape[1])]
    mean = {}
    for name in INTERVAL_SCORES:
        first, second = plain[0][name], plain[1][name]
        both = np.isfinite(first - second)
        changes = drawn[0][name] - drawn[1][name]
        ends, shares = _interval(changes), _p_values(changes)
        for i, row in enumerate(by_attribute):
            row[name] = _difference(first[0, i], second[0, i], ends[:, i], shares[i])
        changes = _mean(changes)[:, None]
        first, second = (_mean(np.where(both, each, np.nan))[0] for each in (first, second))
        mean[name] = _difference(first, second, _interval(changes)[:, 0], _p_values(changes)[0])
    return Comparison(_resampled(groups_N), resamples, by_attribute, mean)


def _resample(
    logits: list[NDArray[np.floating[Any]]],
    decisions: list[NDArray[np.bool_]],
    targets_NA: NDArray[np.uint8],
    groups_N: NDArray[np.int64] | None,
    resamples: int,
    seed: int,
) -> list[_Values]:
    """For each model the scores float64 [R, A] of the same resamples."""
    images, attributes = targets_NA.shape
    unit_N = np.arange(images) if groups_N is None else np.unique(groups_N, return_inverse=True)[1]
    units = int(unit_N.max(initial=-1)) + 1
    found = [{name: np.full((resamples, attributes), np.nan) for name in INTERVAL_SCORES} for _ in logits]
    if units < 2:  # it would be drawn every time, and the interval would be a point
        return found
    rankings = [_rankings(each, targets_NA) for each in logits]
    counts = [_by_unit(_counts(decided, targets_NA), unit_N, units) for decided in decisions]
    start = 0
    for drawn_RM in _draw(units, resamples, max(1, _CHUNK // images), seed):
        for values, ranking, count in zip(found, rankings, counts, strict=True):
            for name, part in _scores(drawn_RM, unit_N, ranking, count).items():
                values[name][start : start + len(drawn_RM)] = part
        start += len(drawn_RM)
    return found


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


def _rankings(logits_NA: NDArray[np.floating[Any]], targets_NA: NDArray[np.uint8]) -> list[Ranking | None]:
    return [rank(logits_NA[:, i], targets_NA[:, i]) for i in range(targets_NA.shape[1])]


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


def _decisions(logits_NA: NDArray[np.floating[Any]], decisions_NA: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return logits_NA >= 0 if decisions_NA is None else decisions_NA


def _counts(decisions_NA: NDArray[np.bool_], targets_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
    """For each image 1, and per attribute whether it is positive, decided so, and both: [N, 1 + 3 A]."""
    truth = targets_NA.astype(bool)
    one = np.ones((len(truth), 1), dtype=bool)
    return np.concatenate([one, truth, decisions_NA, truth & decisions_NA], axis=1).astype(np.float64)


def _by_unit(counts: NDArray[np.float64], unit_N: NDArray[np.int64], units: int) -> NDArray[np.float64]:
    sums = np.zeros((units, counts.shape[1]))
    np.add.at(sums, unit_N, counts)
    return sums


def _scores(
    drawn_RM: NDArray[np.int32],
    unit_N: NDArray[np.int64],
    rankings: list[Ranking | None],
    counts_M: NDArray[np.float64],
) -> _Values:
    """The scores of resamples, float64 [R, A] each, with the meaning they have in `metrics.score`."""
    attributes = len(rankings)
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
    values["roc_auc"], values["average_precision"] = np.full((2, len(drawn_RM), attributes), np.nan)
    for i, ranking in enumerate(rankings):
        if ranking is not None:
            values["roc_auc"][:, i], values["average_precision"][:, i] = ranking_scores(drawn_RM, unit_N, ranking)
    return values


def _mean(values_RA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the attributes that have the score, [R]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is the NaN that is wanted
        return np.asarray(np.nanmean(values_RA, axis=1))


def _interval(values_RA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lower and upper ends, [2, A]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an attribute without any value has no interval
        return np.asarray(np.nanquantile(values_RA, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0))


def _p_values(changes_RA: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = np.isfinite(changes_RA).sum(axis=0)
    rarer = np.minimum((changes_RA <= 0).sum(axis=0), (changes_RA >= 0).sum(axis=0))
    return np.where(defined > 0, np.minimum(2 * (rarer + 1) / (defined + 1), 1), np.nan)


def _pair(ends: NDArray[np.float64]) -> Interval | None:
    return (float(ends[0]), float(ends[1])) if np.isfinite(ends).all() else None


def _difference(first: float, second: float, ends: NDArray[np.float64], share: float) -> Difference:
    p_value = float(share) if np.isfinite(share) else None
    return Difference(float(first), float(second), float(first - second), _pair(ends), p_value)


def _resampled(groups_N: NDArray[np.int64] | None) -> str:
    return "images" if groups_N is None else "identities"
