import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics

from distrib.config import SCORES
from distrib.scoring.metrics import Scores, better, score


def column(values: list[float], truth: list[int]) -> dict[str, float]:
    """The scores of one attribute."""
    logits = np.array(values, dtype=np.float32)[:, None]
    return score(("Bald",), logits, np.array(truth, dtype=np.uint8)[:, None]).by_attribute()["Bald"]


def random_case(count: int = 500, attributes: int = 4) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, (count, attributes)).astype(np.uint8)
    logits = generator.normal(0, 2, (count, attributes)) + targets
    return logits.astype(np.float32), targets


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.booleans(), st.integers(-9, 9), st.booleans()), min_size=1, max_size=60)
)
def test_scores_are_scikit_learns(rows: list[tuple[int, bool, int, bool]]) -> None:
    logits = np.array([(one / 3, two / 7) for one, _, two, _ in rows], np.float32)
    targets = np.array([(one, two) for _, one, _, two in rows], np.uint8)
    found = score(("one", "two"), logits, targets).values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(2):
            truth, decided = targets[:, i], logits[:, i] >= 0
            expected = {
                "accuracy": metrics.accuracy_score(truth, decided),
                "precision": metrics.precision_score(truth, decided, zero_division=0.0),
                "recall": metrics.recall_score(truth, decided, zero_division=np.nan),
                "f1": metrics.f1_score(truth, decided, zero_division=np.nan) if truth.any() else np.nan,
                "average_precision": metrics.average_precision_score(truth, logits[:, i]) if truth.any() else np.nan,
                "roc_auc": metrics.roc_auc_score(truth, logits[:, i]) if 0 < truth.mean() < 1 else np.nan,
            }
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][i], value, rtol=0, atol=1e-12, err_msg=name)


def test_a_case_computed_by_hand() -> None:
    # decided:       yes  yes  yes  no   no   no
    found = column([3.0, 1.0, 0.5, -0.5, -1.0, -3.0], [1, 0, 1, 1, 0, 0])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    # 9 pairs of a positive and a negative; 3.0 beats 3 of them, 0.5 and -0.5 beat 2 each
    assert found["roc_auc"] == pytest.approx(7 / 9)
    # at each positive from the top: 1/1, 2/3, 3/4
    assert found["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    losses = [math.log1p(math.exp(-x)) for x in (3.0, -1.0, 0.5, -0.5, 1.0, 3.0)]
    assert found["loss"] == pytest.approx(sum(losses) / 6)


def test_an_unbalanced_case_computed_by_hand() -> None:
    found = column([1.0, 1.0, -1.0, -1.0, -1.0], [1, 0, 0, 0, 1])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    # ties count half: positives 1.0 -> (0.5 + 1 + 1), -1.0 -> (0 + 0.5 + 0.5) of 6 pairs
    assert found["roc_auc"] == pytest.approx(3.5 / 6)


def test_a_perfect_model() -> None:
    found = column([5.0, -5.0, 5.0, -5.0], [1, 0, 1, 0])
    assert {name: value for name, value in found.items() if name != "loss"} == dict.fromkeys(SCORES[1:], 1.0)
    assert found["loss"] == pytest.approx(math.log1p(math.exp(-5)))


def test_a_probability_of_exactly_one_half_is_a_yes() -> None:
    assert column([0.0, -1.0], [1, 0])["accuracy"] == 1.0
    assert column([0.0, -1.0], [0, 0])["accuracy"] == 0.5


def test_every_score_of_every_attribute_is_there() -> None:
    logits, targets = random_case()
    names = ("a", "b", "c", "d")
    found = score(names, logits, targets)
    assert tuple(found.values) == SCORES
    assert all(values.shape == (4,) for values in found.values.values())
    assert list(found.by_attribute()) == list(names)
    assert all(tuple(row) == SCORES for row in found.by_attribute().values())
    for i, name in enumerate(names):
        assert found.by_attribute()[name] == pytest.approx(column(logits[:, i].tolist(), targets[:, i].tolist()))


def test_the_loss_is_torch_s() -> None:
    logits, targets = random_case()
    logits[:3, 0] = (300.0, -300.0, 0.0)
    wanted = F.binary_cross_entropy_with_logits(
        torch.from_numpy(logits).double(), torch.from_numpy(targets).double(), reduction="none"
    ).mean(dim=0)
    found = score(("a", "b", "c", "d"), logits, targets)
    np.testing.assert_allclose(found.values["loss"], wanted.numpy(), rtol=1e-14)
    assert found.mean()["loss"] == pytest.approx(float(wanted.mean()), rel=1e-14)


def test_large_logits_do_not_overflow() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = column([3e38, -3e38, 3e38], [1, 0, 0])
    assert found["loss"] == pytest.approx(1e38, rel=1e-6)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_the_means_are_over_attributes() -> None:
    logits, targets = random_case()
    found = score(("a", "b", "c", "d"), logits, targets)
    for name, mean in found.mean().items():
        assert mean == pytest.approx(np.mean([row[name] for row in found.by_attribute().values()]))


@pytest.mark.parametrize("truth", [[0, 0, 0], [1, 1, 1]])
def test_an_attribute_of_one_class_has_no_roc_auc(truth: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = column([1.0, -1.0, 2.0], truth)
    assert math.isnan(found["roc_auc"])
    assert math.isnan(found["balanced_accuracy"])
    assert math.isfinite(found["loss"])
    assert found["accuracy"] == pytest.approx(1 / 3 if truth[0] == 0 else 2 / 3)


def test_without_positives_there_is_no_average_precision() -> None:
    assert math.isnan(column([1.0, -1.0, 2.0], [0, 0, 0])["average_precision"])


def test_where_nothing_is_found_precision_and_f1_are_nought() -> None:
    found = column([-1.0, -2.0, -3.0], [1, 0, 0])
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, 0.0, 0.0)


def test_attributes_without_a_score_are_left_out_of_its_mean() -> None:
    logits, targets = random_case()
    targets[:, 1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(("a", "b", "c", "d"), logits, targets)
        means = found.mean()
    others = [found.by_attribute()[name]["roc_auc"] for name in ("a", "c", "d")]
    assert means["roc_auc"] == pytest.approx(np.mean(others))
    assert np.isfinite(list(means.values())).all()


def test_the_mean_of_a_score_that_no_attribute_has_is_nan() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = score(("a",), np.array([[1.0], [2.0]], dtype=np.float32), np.zeros((2, 1), dtype=np.uint8)).mean()
    assert math.isnan(means["roc_auc"])
    assert math.isfinite(means["loss"])


def test_logits_that_are_not_finite_do_not_stop_the_scoring() -> None:
    logits, targets = random_case()
    logits[0, 1], logits[0, 2] = np.nan, np.inf
    found = score(("a", "b", "c", "d"), logits, targets)
    assert math.isnan(found.by_attribute()["b"]["loss"])
    assert math.isnan(found.by_attribute()["b"]["roc_auc"])
    assert np.isfinite(list(found.by_attribute()["a"].values())).all()


def test_rank_scores_do_not_depend_on_the_scale_of_the_logits() -> None:
    logits, targets = random_case()
    small, large = (score(("a", "b", "c", "d"), logits * scale, targets) for scale in (0.25, 4.0))
    for name in ("accuracy", "f1", "roc_auc", "average_precision"):
        np.testing.assert_allclose(small.values[name], large.values[name])


def test_confident_logits_are_still_told_apart() -> None:
    # A sigmoid in float32 would make these ties.
    found = column([40.0, 30.0, 20.0], [1, 1, 0])
    assert found["roc_auc"] == 1.0


def test_a_single_image() -> None:
    found = score(("a", "b"), np.array([[1.0, -1.0]], dtype=np.float32), np.array([[1, 1]], dtype=np.uint8))
    assert found.values["accuracy"].tolist() == [1.0, 0.0]


def test_scores_know_their_attributes() -> None:
    made = Scores(("a", "b"), {"loss": np.array([0.5, 1.5])})
    assert made.by_attribute() == {"a": {"loss": 0.5}, "b": {"loss": 1.5}}
    assert made.mean() == {"loss": 1.0}


@pytest.mark.parametrize("name", SCORES)
def test_better(name: str) -> None:
    low, high = (0.2, 0.1) if name == "loss" else (0.1, 0.2)
    assert better(name, high, low)
    assert not better(name, low, high)
    assert not better(name, low, low), "an equal score is no improvement"
    assert better(name, low, None)
    assert not better(name, math.nan, None)
    assert not better(name, math.nan, low)
