import json
import math
import warnings
from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from distrib.scoring import bootstrap as module
from distrib.scoring.bootstrap import INTERVAL_SCORES, bootstrap, paired_bootstrap, rank, ranking_scores
from distrib.scoring.metrics import score

Case = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]


def random_case(images: int = 300, attributes: int = 3, identities: int = 40, decimals: int = 1, seed: int = 0) -> Case:
    """Logits, targets and identities; logits are rounded, so that many are tied."""
    generator = np.random.default_rng(seed)
    prevalence = generator.uniform(0.15, 0.85, attributes)
    targets = (generator.random((images, attributes)) < prevalence).astype(np.uint8)
    logits = (generator.normal(0, 1, (images, attributes)) + 1.5 * targets - 0.7).round(decimals)
    return logits.astype(np.float32), targets, generator.integers(0, identities, images)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_weighted_scores_are_scikit_learn_s(decimals: int) -> None:
    logits, targets, identity = random_case(decimals=decimals)
    drawn = np.random.default_rng(1).integers(0, 4, (20, 40)).astype(np.int32)
    for i in range(3):
        ranking = rank(logits[:, i], targets[:, i])
        assert ranking is not None
        areas, averages = ranking_scores(drawn, identity, ranking)
        for r, weights in enumerate(drawn[:, identity]):
            wanted = roc_auc_score(targets[:, i], logits[:, i], sample_weight=weights)
            assert areas[r] == pytest.approx(wanted, abs=1e-9)
            wanted = average_precision_score(targets[:, i], logits[:, i], sample_weight=weights)
            assert averages[r] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("grouped", [True, False])
def test_intervals_are_those_of_scoring_every_resample_anew(grouped: bool) -> None:
    logits, targets, identity = random_case(images=120, identities=15)
    targets[targets[:, 2].nonzero()[0][2:], 2] = 0  # few positives, so that some resamples have none
    found = bootstrap(logits, targets, identity if grouped else None, resamples=60, seed=3)
    assert found.resampled == ("identities" if grouped else "images")
    units = [np.flatnonzero(identity == each) for each in np.unique(identity)] if grouped else np.arange(120)[:, None]
    values = {name: np.full((60, 3), np.nan) for name in INTERVAL_SCORES}
    generator = np.random.default_rng(3)
    for r in range(60):
        rows = np.concatenate([units[unit] for unit in generator.integers(0, len(units), len(units))])
        scores = score(("a", "b", "c"), logits[rows], targets[rows]).values
        for name in INTERVAL_SCORES:
            values[name][r] = scores[name]
    assert np.isnan(values["recall"][:, 2]).any(), "the case has resamples without positives"
    for name in INTERVAL_SCORES:
        for i in range(3):
            wanted = np.nanpercentile(values[name][:, i], [2.5, 97.5])
            assert found.by_attribute[i][name] == pytest.approx(wanted, abs=1e-12), name
        wanted = np.percentile(np.nanmean(values[name], axis=1), [2.5, 97.5])
        assert found.mean[name] == pytest.approx(wanted, abs=1e-12), name


def test_logits_that_are_shifted_change_what_depends_on_the_decision_alone() -> None:
    logits, targets, identity = random_case(decimals=6)
    plain = bootstrap(logits, targets, identity, 100, 0)
    shifted = bootstrap(logits - 1, targets, identity, 100, 0)
    assert shifted.by_attribute[0]["roc_auc"] == plain.by_attribute[0]["roc_auc"]
    assert shifted.by_attribute[0]["f1"] != plain.by_attribute[0]["f1"]


def test_an_interval_covers_the_truth_about_95_times_in_100() -> None:
    # Two normal distributions a distance d apart have an area of Phi(d / sqrt 2) under the ROC curve.
    distance, trials = 1.2, 300
    truth = {
        "roc_auc": NormalDist().cdf(distance / math.sqrt(2)),
        "accuracy": NormalDist().cdf(distance / 2),
        "recall": NormalDist().cdf(distance / 2),
    }
    covered = dict.fromkeys(truth, 0)
    generator = np.random.default_rng(0)
    for trial in range(trials):
        targets = (generator.random((200, 1)) < 0.4).astype(np.uint8)
        logits = generator.normal((targets - 0.5) * distance)
        found = bootstrap(logits, targets, None, resamples=200, seed=trial).by_attribute[0]
        for name, value in truth.items():
            low, high = found[name] or (0, 0)
            covered[name] += low <= value <= high
    for name, count in covered.items():
        assert 0.91 <= count / trials <= 0.985, name


def test_pictures_of_one_person_that_agree_widen_the_interval() -> None:
    people, pictures = 50, 10
    logits, targets, _ = random_case(images=people)
    identity = np.repeat(np.arange(people), pictures)
    logits, targets = logits[identity], targets[identity]

    def width(groups: NDArray[np.int64] | None, name: str) -> float:
        low, high = bootstrap(logits, targets, groups, 300, 0).mean[name] or (0, 0)
        return high - low

    for name in ("roc_auc", "accuracy", "f1"):
        # Ten equal images are one: the standard error is that of 50 images, not of 500.
        assert width(identity, name) > 2.5 * width(None, name)


def test_people_with_one_picture_each_are_pictures() -> None:
    logits, targets, _ = random_case()
    people = np.random.default_rng(2).permutation(1000)[:300]
    order = np.argsort(people)
    by_person = bootstrap(logits[order], targets[order], people[order], 50, 0)
    assert by_person.by_attribute == bootstrap(logits[order], targets[order], None, 50, 0).by_attribute


def test_the_seed_decides() -> None:
    logits, targets, identity = random_case()
    found = [bootstrap(logits, targets, identity, 50, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0].by_attribute != found[2].by_attribute


def test_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets, identity = random_case()
    whole = bootstrap(logits, targets, identity, 50, 1)
    monkeypatch.setattr(module, "_CHUNK", 7 * len(logits))
    pieces = bootstrap(logits, targets, identity, 50, 1)
    for name in INTERVAL_SCORES:
        assert whole.mean[name] == pytest.approx(pieces.mean[name], abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_an_attribute_of_one_class_has_no_interval(label: int) -> None:
    logits, targets, identity = random_case()
    targets[:, 1] = label
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(logits, targets, identity, 50, 0)
    one_class = found.by_attribute[1]
    assert one_class["roc_auc"] is None
    assert one_class["balanced_accuracy"] is None
    assert (one_class["average_precision"] is None) == (label == 0)
    assert (one_class["recall"] is None) == (label == 0)
    assert one_class["accuracy"] is not None
    # The mean is over the other two.
    others = bootstrap(logits[:, [0, 2]], targets[:, [0, 2]], identity, 50, 0)
    assert found.mean["roc_auc"] == pytest.approx(others.mean["roc_auc"], abs=1e-12)


def test_nothing_can_be_said_from_one_person() -> None:
    logits, targets, _ = random_case()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(logits, targets, np.zeros(len(logits), dtype=np.int64), 50, 0)
    assert all(each is None for row in found.by_attribute for each in row.values())
    assert all(each is None for each in found.mean.values())


def test_logits_that_are_not_finite_have_no_ranking() -> None:
    logits, targets, identity = random_case()
    logits[5, 1] = np.nan
    found = bootstrap(logits, targets, identity, 50, 0)
    assert found.by_attribute[1]["roc_auc"] is None
    assert found.by_attribute[0]["roc_auc"] is not None


def test_a_comparison_states_the_scores_of_both() -> None:
    first, targets, identity = random_case(seed=0)
    second = (first + np.random.default_rng(1).normal(0, 1, first.shape)).astype(np.float32)
    found = paired_bootstrap(first, second, targets, identity, 100, 0)
    scores = [score(("a", "b", "c"), each, targets) for each in (first, second)]
    for i in range(3):
        for name in INTERVAL_SCORES:
            row = found.by_attribute[i][name]
            assert row.first == pytest.approx(scores[0].values[name][i], abs=1e-12)
            assert row.second == pytest.approx(scores[1].values[name][i], abs=1e-12)
            assert row.difference == row.first - row.second
            assert row.interval is not None
            assert row.interval[0] <= row.interval[1]
    for name in INTERVAL_SCORES:
        assert found.mean[name].first == pytest.approx(scores[0].mean()[name], abs=1e-12)
    json.dumps(asdict(found), allow_nan=False)


def test_a_model_does_not_differ_from_itself() -> None:
    logits, targets, identity = random_case()
    found = paired_bootstrap(logits, 3 * logits, targets, identity, 100, 0).mean["roc_auc"]
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_better_model_is_found_better() -> None:
    logits, targets, identity = random_case(images=600)
    worse = (logits + np.random.default_rng(1).normal(0, 2, logits.shape)).astype(np.float32)
    found = paired_bootstrap(logits, worse, targets, identity, 200, 0).mean["roc_auc"]
    assert found.difference > 0
    assert found.interval is not None
    assert found.interval[0] > 0
    assert found.p_value == pytest.approx(2 / 201)
    other_way = paired_bootstrap(worse, logits, targets, identity, 200, 0).mean["roc_auc"]
    assert other_way.difference == -found.difference
    assert other_way.p_value == found.p_value


def test_models_of_equal_worth_are_told_apart_5_times_in_100() -> None:
    generator = np.random.default_rng(0)
    called, trials = 0, 200
    for trial in range(trials):
        targets = (generator.random((150, 1)) < 0.5).astype(np.uint8)
        first, second = (generator.normal(1.0 * targets) for _ in range(2))
        found = paired_bootstrap(first, second, targets, None, 200, trial).by_attribute[0]["roc_auc"]
        called += found.p_value is not None and found.p_value < 0.05
    assert 0.01 <= called / trials <= 0.10


def test_pairing_narrows_the_difference() -> None:
    first, targets, identity = random_case(images=600)
    second = (first + np.random.default_rng(1).normal(0, 0.1, first.shape)).astype(np.float32)
    low, high = paired_bootstrap(first, second, targets, identity, 200, 0).mean["roc_auc"].interval or (0, 0)
    alone = bootstrap(first, targets, identity, 200, 0).mean["roc_auc"] or (0, 0)
    assert high - low < 0.4 * (alone[1] - alone[0])


def test_an_undefined_difference_is_said_to_be_so() -> None:
    logits, targets, identity = random_case()
    targets[:, 1] = 0
    found = paired_bootstrap(logits, -logits, targets, identity, 50, 0)
    assert math.isnan(found.by_attribute[1]["roc_auc"].difference)
    assert found.by_attribute[1]["roc_auc"].interval is None
    assert found.by_attribute[1]["roc_auc"].p_value is None
    assert math.isfinite(found.mean["roc_auc"].difference)


def test_a_comparison_of_the_same_ranking_with_other_decisions() -> None:
    logits, targets, identity = random_case(decimals=6)
    found = paired_bootstrap(logits, logits + 100, targets, identity, 50, 0)
    assert found.mean["roc_auc"].difference == 0
    assert found.mean["accuracy"].second == pytest.approx(targets.mean())
    assert found.mean["recall"].second == 1
    assert found.mean["recall"].difference < 0
