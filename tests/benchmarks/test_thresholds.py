"""benchmarks/thresholds.py: people are on one side alone, and thresholds buy the score that they are tuned for."""

import sys

import numpy as np
import pytest
from launching import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from thresholds import divisions, in_markdown, judged

from distrib.scoring.metrics import score_decisions

IDENTITY = np.repeat(np.arange(60), 20)


def test_nobody_is_on_both_sides() -> None:
    for tuned, rest in divisions(IDENTITY):
        assert (tuned ^ rest).all()
        assert not set(IDENTITY[tuned]) & set(IDENTITY[rest])
        assert tuned.sum() == rest.sum()


def test_each_kind_has_the_highest_of_its_own_score() -> None:
    """One image in ten shows the attribute, and few probabilities reach 1/2, as of a model that is trained plainly."""
    random = np.random.default_rng(0)
    targets = (random.random((len(IDENTITY), 3)) < 0.1).astype(np.uint8)
    probabilities = 1 / (1 + np.exp(-(random.normal(size=targets.shape) - 3 + 2 * targets)))
    found = judged(probabilities, targets, IDENTITY, targets.mean(axis=0))
    plain = score_decisions(("a", "b", "c"), probabilities >= 0.5, targets).mean()
    assert found["1/2"]["accuracy"] == pytest.approx(plain["accuracy"], abs=1e-12)  # the halves are equally large
    assert found["balanced_accuracy"]["balanced_accuracy"] > found["f1"]["balanced_accuracy"]
    assert found["f1"]["balanced_accuracy"] > found["1/2"]["balanced_accuracy"] + 0.05
    assert found["accuracy"]["accuracy"] > found["f1"]["accuracy"] > found["balanced_accuracy"]["accuracy"]
    share = found["share of positives in training"]  # best for balanced accuracy, of probabilities that are right
    assert share["balanced_accuracy"] > found["f1"]["balanced_accuracy"]
    assert share["accuracy"] > found["balanced_accuracy"]["accuracy"] - 0.05
    assert "| tuned for balanced accuracy | " in in_markdown("run", found)
