import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from distrib.config import SCORES
from distrib.scoring.fairness import score_groups

NAMES = ("Blond_Hair", "Smiling")


def unfair_case(images: int = 2000) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int64]]:
    """A model that sees Blond_Hair well in group 0 and hardly in group 1, and Smiling alike in both."""
    generator = np.random.default_rng(0)
    group = generator.integers(0, 2, images)
    targets = (generator.random((images, 2)) < 0.4).astype(np.uint8)
    signal = np.stack([np.where(group == 0, 4.0, 0.5), np.full(images, 2.0)], axis=1)
    logits = generator.normal(0, 1, (images, 2)) + signal * (targets - 0.5)
    return logits.astype(np.float32), targets, group


def test_scores_within_a_group_are_scikit_learn_s() -> None:
    logits, targets, group = unfair_case()
    found = score_groups(NAMES, logits, targets, group, 2)
    assert tuple(found.values) == SCORES
    for g in range(2):
        chosen = group == g
        assert found.images[g] == chosen.sum()
        for i in range(2):
            truth, said = targets[chosen, i], logits[chosen, i]
            assert found.positives[g, i] == truth.sum()
            assert found.values["roc_auc"][g, i] == pytest.approx(roc_auc_score(truth, said))
            assert found.values["recall"][g, i] == pytest.approx(recall_score(truth, said >= 0))
            assert found.values["f1"][g, i] == pytest.approx(f1_score(truth, said >= 0))


def test_an_unfair_model_shows_a_gap() -> None:
    logits, targets, group = unfair_case()
    found = score_groups(NAMES, logits, targets, group, 2)
    for name in SCORES:
        assert found.worst(name)[0] == 1, name
        assert found.gap(name)[0] > 0.2
        assert found.gap(name)[1] < 0.1


def test_the_worst_loss_is_the_highest() -> None:
    logits, targets, group = unfair_case()
    logits[group == 0, 1] *= -5
    found = score_groups(NAMES, logits, targets, group, 2)
    assert found.worst("loss")[1] == 0
    assert found.worst("accuracy")[1] == 0


def test_what_is_undefined_in_a_group_has_no_gap() -> None:
    logits, targets, group = unfair_case()
    targets[group == 1, 0] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_groups(NAMES, logits, targets, group, 2)
        gaps = {name: found.gap(name) for name in SCORES}
    for name in ("roc_auc", "average_precision", "balanced_accuracy", "recall", "f1", "precision"):
        assert math.isnan(found.values[name][1, 0]), name
        assert math.isfinite(found.values[name][0, 0])
        assert math.isnan(gaps[name][0])
        assert found.worst(name)[0] is None
        assert math.isfinite(gaps[name][1])
    assert found.positives.tolist()[1][0] == 0
    assert found.worst("accuracy")[0] is not None


def test_groups_that_fare_alike_have_no_worst() -> None:
    logits, targets, _ = unfair_case(200)
    twice, group = np.concatenate([logits, logits]), np.repeat([0, 1], 200)
    found = score_groups(NAMES, twice, np.concatenate([targets, targets]), group, 2)
    assert found.worst("roc_auc") == [None, None]
    assert found.gap("roc_auc").tolist() == [0, 0]


def test_an_empty_group_has_no_scores() -> None:
    logits, targets, _ = unfair_case(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_groups(NAMES, logits, targets, np.zeros(50, dtype=np.int64), 2)
    assert found.images.tolist() == [50, 0]
    assert np.isnan([values[1] for values in found.values.values()]).all()


def test_several_groups() -> None:
    logits, targets, _ = unfair_case(900)
    group = np.arange(900) % 3
    logits[group == 2, 1] = np.random.default_rng(1).normal(size=300)
    found = score_groups(NAMES, logits, targets, group, 3)
    values = found.values["roc_auc"][:, 1]
    assert found.worst("roc_auc")[1] == 2
    assert found.gap("roc_auc")[1] == pytest.approx(values.max() - values.min())
