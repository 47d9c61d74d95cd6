"""The scores of a model as people and programs read them: table, CSV, JSON; and two models side by side.

Legend: N images, A attributes.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distrib.config import TunedScore
from distrib.scoring.bootstrap import Comparison, Difference
from distrib.scoring.metrics import TITLES, Scores, majority_accuracy, score, score_decisions
from distrib.scoring.predictions import Predictions

# The scores that depend on the threshold.
TUNED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1")
# The score by which attributes are said to differ: it depends on no threshold.
DECISIVE = "roc_auc"


@dataclass(frozen=True)
class Scorecard:
    """All scores of one model on some images.

    Attributes:
        half: deciding at sigmoid(logit) >= 1/2, as training does.
        by_thresholds: deciding by the thresholds that are tuned for each score; of these, `TUNED` mean something.
        positives: int64 [A].
        baseline: float64 [A], accuracy of always saying what most of the images have.
        thresholds: score -> A thresholds that are tuned for it, on the calibrated probability.
        tuned_for: the score whose thresholds the model decides by.
    """

    half: Scores
    by_thresholds: Mapping[TunedScore, Scores]
    positives: NDArray[np.int64]
    baseline: NDArray[np.float64]
    thresholds: Mapping[TunedScore, tuple[float, ...]]
    tuned_for: TunedScore

    @property
    def tuned(self) -> Scores:
        """By the thresholds that the model decides by."""
        return self.by_thresholds[self.tuned_for]

    @classmethod
    def of(
        cls,
        found: Predictions,
        probabilities_NA: NDArray[np.float64],
        thresholds: Mapping[TunedScore, tuple[float, ...]],
        tuned_for: TunedScore,
    ) -> "Scorecard":
        """The scorecard of a model that said this of some images.

        Args:
            found: its logits, and the labels.
            probabilities_NA: float64 [N, A], calibrated.
            thresholds: score -> A thresholds that are tuned for it.
            tuned_for: the score whose thresholds the model decides by.
        """
        return cls(
            half=score(found.attributes, found.logits_NA, found.targets_NA),
            by_thresholds={
                name: score_decisions(found.attributes, probabilities_NA >= np.array(values_A), found.targets_NA)
                for name, values_A in thresholds.items()
            },
            positives=found.targets_NA.sum(axis=0, dtype=np.int64),
            baseline=majority_accuracy(found.targets_NA),
            thresholds=thresholds,
            tuned_for=tuned_for,
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each attribute, and at the end the means over the attributes that have a score."""
        half, tuned = self.half.by_attribute(), self.tuned.by_attribute()
        thresholds = self.thresholds[self.tuned_for]
        rows = [
            {
                "attribute": name,
                "positives": int(self.positives[i]),
                **half[name],
                "baseline_accuracy": float(self.baseline[i]),
                "threshold": thresholds[i],
                **{f"tuned_{score}": tuned[name][score] for score in TUNED},
            }
            for i, name in enumerate(self.half.attributes)
        ]
        means = {
            "attribute": "mean",
            "positives": None,
            **self.half.mean(),
            "baseline_accuracy": float(self.baseline.mean()),
            "threshold": None,
            **{f"tuned_{score}": self.tuned.mean()[score] for score in TUNED},
        }
        return [*rows, means]

    def as_csv(self) -> str:
        """The rows as CSV; what is undefined is empty."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if value != value else value for name, value in row.items()})
        return text.getvalue()

    def as_json(self) -> dict[str, Any]:
        """The rows as a tree: "mean", and "attributes" by name.

        The scores at the thresholds that the model decides by are in "tuned", and those at all thresholds that it has
        in "by_thresholds", by the score that these are tuned for; "tuned_for" says which it decides by.
        """
        *attributes, mean = (_branch(row) for row in self.rows())
        mean["by_thresholds"] = {
            score: {name: found.mean()[name] for name in TUNED} for score, found in self.by_thresholds.items()
        }
        for i, row in enumerate(attributes):
            row["by_thresholds"] = {
                score: {"threshold": self.thresholds[score][i]} | {name: float(found.values[name][i]) for name in TUNED}
                for score, found in self.by_thresholds.items()
            }
        return {
            "tuned_for": self.tuned_for,
            "mean": {
                name: value for name, value in mean.items() if name not in ("attribute", "positives", "threshold")
            },
            "attributes": {row.pop("attribute"): row for row in attributes},
        }

    def as_text(self) -> str:
        """The rows as a table for people."""
        rows = self.rows()
        width = max(len("Attribute"), *(len(row["attribute"]) for row in rows))
        header = (
            f"{'Attribute':<{width}} {'Positives':>9} {'Loss':>8} {'Accuracy':>9} {'Baseline':>9} {'Bal. acc.':>9}"
            f" {'Precision':>10} {'Recall':>8} {'F1':>8} {'ROC AUC':>8} {'AP':>8}  {'Threshold':>9} {'Tuned acc.':>10}"
            f" {'Tuned bal.':>10} {'Tuned F1':>8}"
        )
        return "\n".join([header, *(_line(row, width) for row in rows)])

    def thresholds_as_text(self) -> str:
        """The means at 1/2 and at each of the tuned thresholds, below each other, for people."""
        titles = {score: f"tuned for {TITLES[score]}" for score in self.by_thresholds}
        titles[self.tuned_for] += ", as above"
        found = {"1/2": self.half, **{titles[score]: scores for score, scores in self.by_thresholds.items()}}
        width = max(map(len, found))
        header = f"{'Thresholds':<{width}}" + "".join(f"  {TITLES[name]:>{_wide(name)}}" for name in TUNED)
        lines = [
            f"{title:<{width}}" + "".join(f"  {scores.mean()[name]:>{_wide(name)}{_form(name)}}" for name in TUNED)
            for title, scores in found.items()
        ]
        return "\n".join([header, *lines])


def _branch(row: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in row.items() if not name.startswith("tuned_")}
    return {**plain, "tuned": {name: row[f"tuned_{name}"] for name in TUNED}}


def _line(row: dict[str, Any], width: int) -> str:
    positives = "" if row["positives"] is None else f"{row['positives']:,}"
    threshold = "" if row["threshold"] is None else f"{row['threshold']:.4f}"
    return (
        f"{row['attribute']:<{width}} {positives:>9} {row['loss']:>8.4f} {row['accuracy']:>9.2%} "
        f"{row['baseline_accuracy']:>9.2%} {row['balanced_accuracy']:>9.2%} {row['precision']:>10.4f} "
        f"{row['recall']:>8.4f} {row['f1']:>8.4f} {row['roc_auc']:>8.4f} {row['average_precision']:>8.4f}  "
        f"{threshold:>9} {row['tuned_accuracy']:>10.2%} {row['tuned_balanced_accuracy']:>10.2%} {row['tuned_f1']:>8.4f}"
    )


def _form(score: str) -> str:
    """As the table has it."""
    return ".2%" if score.endswith("accuracy") else ".4f"


def _wide(score: str) -> int:
    return max(len(TITLES[score]), 9)


def comparison_json(comparison: Comparison, attributes: Sequence[str]) -> dict[str, Any]:
    """A comparison as a tree: "mean" and "attributes" by name, each score with first, second, difference, interval.

    Args:
        comparison: of two models.
        attributes: A names.
    """
    tree = asdict(comparison)
    return tree | {"attributes": dict(zip(attributes, tree.pop("by_attribute"), strict=True))}


def comparison_text(comparison: Comparison, attributes: Sequence[str]) -> str:
    """A comparison for people: the difference of each mean score, and the attributes that differ clearly.

    An attribute differs clearly if the 95 % interval of its difference in ROC AUC leaves out 0.

    Args:
        comparison: of two models.
        attributes: A names.
    """
    header = f"{'':<20} {'this':>8} {'other':>8} {'difference':>11}   95 % interval ({comparison.resampled} resampled)"
    lines = [header, *(_difference_line(TITLES[score], each) for score, each in comparison.mean.items())]
    clear = [
        (name, row[DECISIVE])
        for name, row in zip(attributes, comparison.by_attribute, strict=True)
        if _is_clear(row[DECISIVE])
    ]
    if not clear:
        return "\n".join([*lines, "", f"no attribute differs clearly in ROC AUC, of {len(attributes)} in common"])
    lines += ["", f"{len(clear)} of {len(attributes)} attributes in common differ clearly in ROC AUC:"]
    clear.sort(key=lambda each: each[1].difference)
    return "\n".join([*lines, *(_difference_line(*each) for each in clear)])


def _is_clear(difference: Difference) -> bool:
    interval = difference.interval
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _difference_line(name: str, each: Difference) -> str:
    interval = "undefined" if each.interval is None else f"{each.interval[0]:+.4f} … {each.interval[1]:+.4f}"
    return f"{name:<20} {each.first:>8.4f} {each.second:>8.4f} {each.difference:>+11.4f}   {interval}"
