from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.config import TUNED_SCORES, TunedScore
from distrib.scoring.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    sigmoid,
    tune_thresholds,
)


def draw(images: int, truth: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 1] that are `truth` times too large, and labels [N, 1]."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(0, 2, (images, 1))
    targets = generator.random((images, 1)) < 1 / (1 + np.exp(-honest))
    return (honest * truth).astype(np.float32), targets.astype(np.uint8)


# --- probabilities


def test_sigmoid_is_the_logistic_function_and_does_not_overflow() -> None:
    x = np.array([-3.0, -0.5, 0.0, 0.5, 3.0], np.float32)
    np.testing.assert_allclose(sigmoid(x), 1 / (1 + np.exp(-x.astype(float))), rtol=1e-14)
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(sigmoid(np.array([-1e5, 1e5])), [0.0, 1.0])
    assert sigmoid(np.float32(np.zeros((2, 3)))).dtype == np.float64


def test_the_negative_log_likelihood_is_of_the_labels() -> None:
    logits, targets = draw(50, 1.0)
    p = sigmoid(logits[:, 0])
    wanted = -np.log(np.where(targets[:, 0] == 1, p, 1 - p)).mean()
    assert negative_log_likelihood(logits[:, 0], targets[:, 0]) == pytest.approx(wanted, rel=1e-10)
    assert negative_log_likelihood(np.array([1e4]), np.array([0], np.uint8)) == pytest.approx(1e4)


# --- temperature


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(truth: float) -> None:
    temperature = fit_temperature(*draw(40_000, truth))
    assert temperature.shape == (1,)
    assert temperature[0] == pytest.approx(truth, rel=0.04)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 8), st.integers(10, 200))
def test_no_other_temperature_has_a_lower_loss_on_platts_targets(seed: int, truth: float, images: int) -> None:
    logits, targets = draw(images, truth, seed)
    fitted = fit_temperature(logits, targets)[0]
    positives = targets.sum()
    soft = np.where(targets[:, 0] == 1, (positives + 1) / (positives + 2), 1 / (images - positives + 2))
    least = negative_log_likelihood(logits[:, 0] / fitted, soft)
    for other in np.geomspace(0.25, 15, 40):
        assert least <= negative_log_likelihood(logits[:, 0] / other, soft) + 1e-6


def test_every_attribute_has_its_own_temperature() -> None:
    one, two = draw(20_000, 0.6, 1), draw(20_000, 2.5, 2)
    both = fit_temperature(np.hstack([one[0], two[0]]), np.hstack([one[1], two[1]]))
    np.testing.assert_array_equal(both, [fit_temperature(*one)[0], fit_temperature(*two)[0]])


def test_temperature_changes_no_ranking_and_lowers_the_calibration_error() -> None:
    logits, targets = draw(20_000, 4.0)
    before, after = sigmoid(logits[:, 0]), sigmoid(logits[:, 0] / fit_temperature(logits, targets)[0])
    assert np.array_equal(np.argsort(before, kind="stable"), np.argsort(after, kind="stable"))
    assert expected_calibration_error(after, targets[:, 0]) < expected_calibration_error(before, targets[:, 0]) / 5


@pytest.mark.parametrize("targets", [[0, 0, 0], [1, 1, 1]])
def test_one_class_leaves_the_logits_as_they_are(targets: list[int]) -> None:
    logits = np.array([[0.5], [-2.0], [9.0]], np.float32)
    labels = np.array(targets, np.uint8)[:, None]
    assert fit_temperature(logits, labels).tolist() == [1.0]
    tuned = tune_thresholds(sigmoid(logits), labels)
    assert {score: each.tolist() for score, each in tuned.items()} == {score: [0.5] for score in TUNED_SCORES}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_costs_its_attribute_alone(bad: float) -> None:
    logits, targets = draw(500, 3.0)
    broken = logits.copy()
    broken[7] = bad
    both, labels = np.hstack([broken, logits]), np.hstack([targets, targets])
    assert fit_temperature(both, labels).tolist() == [1.0, fit_temperature(logits, targets)[0]]
    broken_probabilities = np.hstack([np.where(np.isfinite(broken), sigmoid(logits), np.nan), sigmoid(logits)])
    tuned, alone = tune_thresholds(broken_probabilities, labels), tune_thresholds(sigmoid(logits), targets)
    assert {score: each.tolist() for score, each in tuned.items()} == {
        score: [0.5, *each] for score, each in alone.items()
    }


def test_separated_classes_have_a_temperature_that_is_a_number() -> None:
    """Here the plain likelihood knows no best temperature: the colder the better."""
    logits = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    right = fit_temperature(logits, np.array([[0], [0], [1], [1]], np.uint8))[0]
    wrong = fit_temperature(logits, np.array([[1], [1], [0], [0]], np.uint8))[0]
    assert 0.1 < right < wrong < 100
    assert sigmoid(logits / right).max() < 1, "nothing is certain after four images"


# --- thresholds


def counted(score: str, present: np.ndarray, targets: np.ndarray) -> Fraction:
    """A score of decisions [N], exactly."""
    truth = targets == 1
    hits, positives, negatives = (int(each.sum()) for each in (present & truth, truth, ~truth))
    left_alone = int((~present & ~truth).sum())
    return {
        "f1": Fraction(2 * hits, int(present.sum()) + positives),
        "accuracy": Fraction(hits + left_alone, len(truth)),
        "balanced_accuracy": (Fraction(hits, positives) + Fraction(left_alone, negatives)) / 2,
    }[score]


@pytest.mark.parametrize("score", TUNED_SCORES)
@settings(max_examples=100, deadline=None)
@given(images=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=40))
def test_no_other_threshold_has_a_higher_score_and_none_below_it_the_same(
    score: TunedScore, images: list[tuple[int, bool]]
) -> None:
    """Also where none, or all, of the images are best taken for present; probabilities have many ties, 0 and 1."""
    probabilities = np.array([place / 12 for place, _ in images])
    targets = np.array([label for _, label in images], np.uint8)
    tuned = tune_thresholds(probabilities[:, None], targets[:, None])[score][0]
    if targets.min() == targets.max():
        assert tuned == 0.5
        return
    assert 0 <= tuned <= 1
    found = counted(score, probabilities >= tuned, targets)
    others = {step / 48: counted(score, probabilities >= step / 48, targets) for step in range(49)}
    assert found == max(others.values())
    lowest = min(threshold for threshold, value in others.items() if value == found)
    np.testing.assert_array_equal(probabilities >= tuned, probabilities >= lowest)


def test_a_rare_attribute_that_nothing_tells_is_best_denied_for_accuracy_alone() -> None:
    probabilities = np.array([[0.1], [0.2], [0.25], [0.3]])
    targets = np.array([[0], [1], [0], [0]], np.uint8)
    tuned = tune_thresholds(probabilities, targets)
    assert tuned["accuracy"][0] == pytest.approx((0.3 + 1) / 2)
    assert tuned["f1"][0] == tuned["balanced_accuracy"][0] == pytest.approx(0.15)


@pytest.mark.parametrize("highest", [1.0, np.nextafter(1.0, 0)])
def test_what_is_called_certain_cannot_be_denied(highest: float) -> None:
    """To deny all would be best, with one mistake; where that cannot be, to take the first three, with two."""
    probabilities = np.array([[highest], [highest], [0.5], [0.2], [0.2], [0.2]])
    targets = np.array([[0], [0], [1], [0], [0], [0]], np.uint8)
    tuned = tune_thresholds(probabilities, targets)["accuracy"][0]
    assert tuned <= 1
    assert (probabilities >= tuned).sum() == (3 if highest == 1 else 0)


def test_a_threshold_lies_in_the_middle_of_its_gap() -> None:
    probabilities = np.array([[0.1], [0.3], [0.7], [0.9]])
    assert tune_thresholds(probabilities, np.array([[0], [0], [1], [1]], np.uint8))["f1"][0] == pytest.approx(0.5)
    assert tune_thresholds(probabilities, np.array([[0], [1], [1], [1]], np.uint8))["f1"][0] == pytest.approx(0.2)
    assert tune_thresholds(probabilities, np.array([[0], [0], [0], [1]], np.uint8))["f1"][0] == pytest.approx(0.8)


def test_where_all_are_taken_for_present_the_threshold_is_above_zero() -> None:
    tuned = tune_thresholds(np.array([[0.2], [0.4], [0.6]]), np.array([[1], [0], [1]], np.uint8))["f1"][0]
    assert 0 < tuned <= 0.2


@pytest.mark.parametrize("upper", [1.0, 0.3])
def test_a_gap_without_a_middle_is_decided_as_it_was_tuned(upper: float) -> None:
    """Probabilities of a very sure network crowd together below 1, down to neighbouring floating-point numbers."""
    lower = np.nextafter(upper, 0)
    for below in (lower, np.nextafter(lower, 0)):
        probabilities = np.array([[below], [below], [upper], [upper]])
        targets = np.array([[0], [0], [1], [1]], np.uint8)
        for tuned in tune_thresholds(probabilities, targets).values():
            np.testing.assert_array_equal(probabilities >= tuned, targets.astype(bool))


def test_every_attribute_has_its_own_threshold() -> None:
    generator = np.random.default_rng(4)
    probabilities, targets = generator.random((300, 3)), (generator.random((300, 3)) < 0.3).astype(np.uint8)
    together = tune_thresholds(probabilities, targets)
    for score in TUNED_SCORES:
        alone = [tune_thresholds(probabilities[:, [i]], targets[:, [i]])[score][0] for i in range(3)]
        np.testing.assert_array_equal(together[score], alone)


# --- reliability


def test_the_bins_hold_every_picture_once() -> None:
    generator = np.random.default_rng(1)
    probabilities = np.concatenate([generator.random(500), [0.0, 1.0]])
    targets = (generator.random(502) < 0.5).astype(np.uint8)
    confidence, frequency, count = reliability(probabilities, targets, bins=10)
    assert count.sum() == 502
    for place in range(10):
        within = (probabilities >= place / 10) & (probabilities < (place + 1) / 10)
        within |= (probabilities == 1) & (place == 9)
        assert count[place] == within.sum()
        assert confidence[place] == pytest.approx(probabilities[within].mean())
        assert frequency[place] == pytest.approx(targets[within].mean())


def test_empty_bins_are_undefined_and_warn_of_nothing() -> None:
    with np.errstate(all="raise", invalid="ignore"):
        confidence, frequency, count = reliability(np.array([0.05, 0.95]), np.array([0, 1], np.uint8), bins=4)
    assert count.tolist() == [1, 0, 0, 1]
    assert np.isnan(confidence).tolist() == np.isnan(frequency).tolist() == [False, True, True, False]


def test_the_calibration_error_is_the_weighted_distance() -> None:
    probabilities = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    targets = np.array([0, 0, 0, 1, 1, 1], np.uint8)
    assert expected_calibration_error(probabilities, targets, bins=5) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert expected_calibration_error(targets.astype(float), targets) == 0
    assert expected_calibration_error(1.0 - targets, targets) == 1


def test_honest_probabilities_have_a_small_calibration_error() -> None:
    generator = np.random.default_rng(3)
    p = generator.random(50_000)
    targets = (generator.random(50_000) < p).astype(np.uint8)
    assert expected_calibration_error(p, targets) < 0.02
    assert expected_calibration_error(p**3, targets) > 0.1
