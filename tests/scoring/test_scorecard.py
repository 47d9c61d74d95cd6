import numpy as np

from distrib.scoring.bootstrap import paired_bootstrap
from distrib.scoring.calibration import sigmoid
from distrib.scoring.predictions import Predictions
from distrib.scoring.scorecard import Scorecard, comparison_json, comparison_text


def card(truth: list[list[int]], logits: list[list[float]], names: tuple[str, ...]) -> Scorecard:
    targets, values = np.array(truth, np.uint8), np.array(logits, np.float32)
    files = [str(row) for row in range(len(targets))]
    found = Predictions("test", names, files, np.arange(len(targets)), values, targets, None)
    return Scorecard.of(found, sigmoid(values), {"f1": THIRDS[: len(names)], "accuracy": HALVES[: len(names)]}, "f1")


THIRDS, HALVES = (1 / 3, 1 / 3), (0.5, 0.5)


def test_what_is_undefined_is_empty_in_csv_and_nan_in_print() -> None:
    """Every image has Male: there is no ROC AUC."""
    made = card([[1, 1], [1, 0], [1, 1]], [[2, 1], [1, -1], [-1, 3]], ("Male", "Young"))
    header, male, young, mean = (line.split(",") for line in made.as_csv().splitlines())
    assert (male[0], young[0], mean[0]) == ("Male", "Young", "mean")
    column = header.index("roc_auc")
    assert (male[column], young[column], mean[column]) == ("", "1.0", "1.0")
    assert (mean[header.index("positives")], male[header.index("positives")]) == ("", "3")
    lines = made.as_text().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len({len(line) for line in made.thresholds_as_text().splitlines()}) == 1
    assert "nan" in lines[1]
    assert "nan" not in lines[2]


def test_scores_stand_side_by_side_at_one_half_and_at_the_tuned_thresholds() -> None:
    """At 1/2 one of four is found, at 1/3 both, with one false alarm."""
    made = card([[1], [1], [0], [0]], [[1], [-0.5], [-0.6], [-3]], ("Male",))
    tree = made.as_json()
    assert tree["tuned_for"] == "f1"
    for row in (tree["mean"], tree["attributes"]["Male"]):
        assert (row["accuracy"], row["balanced_accuracy"], row["recall"]) == (0.75, 0.75, 0.5)
        assert (row["tuned"]["accuracy"], row["tuned"]["balanced_accuracy"], row["tuned"]["recall"]) == (0.75, 0.75, 1)
        assert list(row["by_thresholds"]) == ["f1", "accuracy"]
        assert row["by_thresholds"]["accuracy"]["recall"] == 0.5
    assert tree["attributes"]["Male"]["by_thresholds"]["f1"] == {"threshold": 1 / 3, **row["tuned"]}
    header, male, _ = (line.split(",") for line in made.as_csv().splitlines())
    assert [male[header.index(name)] for name in ("balanced_accuracy", "tuned_balanced_accuracy")] == ["0.75", "0.75"]
    half, tuned, other = (line.split("  ")[-1].strip() for line in made.thresholds_as_text().splitlines()[1:])
    assert (half, tuned, other) == ("0.6667", "0.8000", "0.6667")
    assert "tuned for F1, as above" in made.thresholds_as_text()


def test_the_attributes_that_differ_clearly_are_listed() -> None:
    """One model is right about a, as the other is; and about b, where the other guesses."""
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 2, (300, 3)).astype(np.uint8)
    targets[:, 2] = 1
    right = np.where(targets, 1, -1).astype(np.float32)
    guessing = right.copy()
    guessing[:, 1] = generator.normal(size=300)
    comparison = paired_bootstrap(right, guessing, targets, None, 200, 0)
    text = comparison_text(comparison, ("a", "b", "c"))
    overall, listed = text.split("1 of 3 attributes in common differ clearly in ROC AUC:\n")
    (line,) = listed.splitlines()
    assert line.split()[:2] == ["b", "1.0000"]
    assert "images resampled" in overall
    tree = comparison_json(comparison, ("a", "b", "c"))
    assert tree["attributes"]["b"]["roc_auc"]["interval"][0] > 0
    assert tree["attributes"]["c"]["roc_auc"]["interval"] is None
    backwards = comparison_text(paired_bootstrap(guessing, right, targets, None, 200, 0), ("a", "b", "c"))
    assert backwards.splitlines()[-1].split()[0] == "b"


def test_models_that_are_alike_have_none() -> None:
    targets = np.random.default_rng(0).integers(0, 2, (50, 2)).astype(np.uint8)
    logits = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    text = comparison_text(paired_bootstrap(logits, logits, targets, None, 50, 0), ("a", "b"))
    assert "no attribute differs clearly in ROC AUC, of 2 in common" in text
