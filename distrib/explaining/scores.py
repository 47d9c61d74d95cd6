"""The jobs that say how good the model is: scores, curves, confusion, calibration, fairness, correlation.

All is of the test images unless it says otherwise. The calibrated probabilities and the tuned thresholds come from
validation alone. What is undefined is NaN or None, and null on the page.

Legend: N images, A attributes, T thresholds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from distrib.base.errors import UserError
from distrib.base.words import words
from distrib.config import SCORES, ExplainConfig
from distrib.explaining.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    height_of_rows,
    label,
    new,
    rows_of_attributes,
)
from distrib.explaining.finished_run import Finding, FinishedRun
from distrib.model.trained import TrainedModel
from distrib.scoring.bootstrap import Interval, Intervals, bootstrap
from distrib.scoring.calibration import expected_calibration_error, negative_log_likelihood, reliability, sigmoid
from distrib.scoring.fairness import GroupScores, score_groups
from distrib.scoring.metrics import Scores, majority_accuracy, score, score_decisions
from distrib.scoring.predictions import Predictions

# The scores that depend on the threshold.
DECISION_SCORES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1")
SCORES_WITH_INTERVAL = ("roc_auc", "average_precision", "f1", "accuracy", "balanced_accuracy")
BINS = 15
# An attribute's thresholds on the page, at most.
OPERATING_POINTS = 256
# Where the mean over attributes of a curve is taken.
_GRID = np.linspace(0, 1, 201)
# With more attributes than these a figure has no colour for each, and shows the lowest ones in colour.
_FEW = 5

T = TypeVar("T")

_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def scores(run: FinishedRun) -> Finding:
    """Every score of every attribute on validation and test, at 1/2 and at the tuned threshold, beside the baseline.

    Of a data set without validation images, on test alone.
    """
    parts = [run.predictions[split] for split in run.scored]
    names = parts[0].attributes
    plain = [score(names, each.logits_NA, each.targets_NA) for each in parts]
    tuned = [score_decisions(each.attributes, run.model.decisions(each.logits_NA), each.targets_NA) for each in parts]
    baseline = [majority_accuracy(each.targets_NA) for each in parts]
    positives = [each.targets_NA.sum(axis=0, dtype=np.int64) for each in parts]
    intervals = _intervals(run)

    def by_split(values: Iterable[T]) -> dict[str, T]:
        return dict(zip(run.scored, values, strict=True))

    rows = [
        {
            "name": name,
            "positives": by_split(int(each[i]) for each in positives),
            "images": by_split(len(each) for each in parts),
            "baseline_accuracy": by_split(float(each[i]) for each in baseline),
            **by_split(each.by_attribute()[name] for each in plain),
            "threshold": run.model.description.thresholds[i],
            "tuned": by_split(_of_decisions(each.by_attribute()[name]) for each in tuned),
            "interval": _reported(intervals.by_attribute[i]),
        }
        for i, name in enumerate(names)
    ]
    means = {
        **by_split(each.mean() for each in plain),
        "tuned": by_split(_of_decisions(each.mean()) for each in tuned),
        "baseline_accuracy": by_split(float(each.mean()) for each in baseline),
        "interval": _reported(intervals.mean),
    }
    data = {
        "splits": list(run.scored),
        "test_images": hashlib.sha256("\n".join(parts[-1].names).encode()).hexdigest(),
        "attributes": rows,
        "means": means,
        "resampled": intervals.resampled,
        "resamples": intervals.resamples,
    }
    figure = _scores_figure(names, plain[-1], tuned[-1], baseline[-1], intervals)
    return Finding(data, {"scores": figure}, {"scores": _scores_table(rows, run.scored)})


def roc(run: FinishedRun) -> Finding:
    """The ROC curve of each attribute and the area under it."""
    test = run.predictions["test"]
    areas = score(test.attributes, test.logits_NA, test.targets_NA).values["roc_auc"]
    intervals = [each["roc_auc"] for each in _intervals(run).by_attribute]
    curves: dict[int, _Curve] = {}
    for i in np.flatnonzero(np.isfinite(areas)).tolist():
        false_positive_rate, true_positive_rate, _ = roc_curve(test.targets_NA[:, i], test.logits_NA[:, i])
        curves[i] = false_positive_rate, true_positive_rate
    means = [np.interp(_GRID, *curve) for curve in curves.values()]
    marks = [
        (tally["fp"] / (tally["fp"] + tally["tn"]), tally["tp"] / (tally["tp"] + tally["fn"]))
        for tally in _tallies_of_one(run.model, test)
    ]
    figure, curve_axes, row_axes = _curve_figure(
        test.attributes, curves, means, areas, intervals, marks, "area", "lower right"
    )
    curve_axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, zorder=0)
    curve_axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC curve, test images")
    if row_axes is not None:
        row_axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
        row_axes.set(xlabel="with 95 % interval; dotted: chance", title="Area under the ROC curve")
    found = {
        name: {"auc": float(areas[i]), "interval": _listed(intervals[i])} for i, name in enumerate(test.attributes)
    }
    return Finding({"attributes": found}, {"roc": figure})


def precision_recall(run: FinishedRun) -> Finding:
    """The precision-recall curve of each attribute and the average precision."""
    test = run.predictions["test"]
    averages = score(test.attributes, test.logits_NA, test.targets_NA).values["average_precision"]
    prevalence = test.targets_NA.mean(axis=0)
    intervals = [each["average_precision"] for each in _intervals(run).by_attribute]
    curves: dict[int, _Curve] = {}
    for i in np.flatnonzero(np.isfinite(averages)).tolist():
        precision, recall, _ = precision_recall_curve(
            test.targets_NA[:, i], test.logits_NA[:, i], drop_intermediate=True
        )
        curves[i] = recall[::-1], precision[::-1]  # from the highest threshold to the lowest
    # A recall is reached in steps; the precision of the highest threshold that reaches it counts.
    means = [precision[np.searchsorted(recall, _GRID)] for recall, precision in curves.values()]
    marks = [
        (tally["tp"] / (tally["tp"] + tally["fn"]), tally["tp"] / (tally["tp"] + tally["fp"]))
        for tally in _tallies_of_one(run.model, test)
        if tally["tp"]
    ]
    figure, curve_axes, row_axes = _curve_figure(
        test.attributes, curves, means, averages, intervals, marks, "average precision", "lower left"
    )
    curve_axes.set(xlabel="recall", ylabel="precision", title="Precision-recall curve, test images")
    if row_axes is None:
        curve_axes.axhline(prevalence[0], color=GREY, linestyle=":", linewidth=1, zorder=0)
    else:
        order = _falling(averages)
        row_axes.scatter(prevalence[order], np.arange(len(order)), color=GREY, marker="|", s=40)
        row_axes.set(xlabel="with 95 % interval; grey: share of positives (chance)", title="Average precision")
    found = {
        name: {
            "average_precision": float(averages[i]),
            "interval": _listed(intervals[i]),
            "prevalence": float(prevalence[i]),
        }
        for i, name in enumerate(test.attributes)
    }
    return Finding({"attributes": found}, {"precision_recall": figure})


def confusion(run: FinishedRun) -> Finding:
    """The confusion matrix of each attribute, at 1/2 and at the tuned threshold."""
    test = run.predictions["test"]
    at_half, tuned = _tallies(run.model, test)
    thresholds = run.model.description.thresholds
    found = {
        name: {"at_half": at_half[i], "tuned": tuned[i], "threshold": thresholds[i]}
        for i, name in enumerate(test.attributes)
    }
    table = [
        [name, threshold, *tally.values()]
        for i, name in enumerate(test.attributes)
        for threshold, tally in ((0.5, at_half[i]), (thresholds[i], tuned[i]))
    ]
    return Finding(
        {"attributes": found},
        {
            "confusion": _confusion_figure(test.attributes, at_half, "present from a probability of 1/2"),
            "confusion_tuned": _confusion_figure(test.attributes, tuned, "present from the tuned threshold"),
        },
        {"confusion": (["attribute", "threshold", "tp", "fp", "fn", "tn"], table)},
    )


def operating(run: FinishedRun) -> Finding:
    """The counts of the test images at every threshold."""
    return Finding(operating_points(run.predictions["test"], run.model))


def operating_points(predictions: Predictions, model: TrainedModel) -> dict[str, Any]:
    """How many images each threshold takes for present, exactly, for the page's slider.

    Where there are more different probabilities than `OPERATING_POINTS`, the thresholds are those at even shares of the
    positives and of the negatives, so that neither axis of the ROC curve has a hole. 1/2, the tuned threshold, 0 and
    one above every probability are always among them.

    Returns:
        {"attributes": [{"name", "positives", "negatives", "default": 0.5, "tuned", "thresholds", "tp", "fp"}]}; the
        thresholds are calibrated probabilities and fall, and tp and fp count images of at least that probability.
    """
    found = []
    for name, probability, truth, tuned in zip(
        predictions.attributes,
        model.probabilities(predictions.logits_NA).T,
        predictions.targets_NA.T.astype(bool),
        model.description.thresholds,
        strict=True,
    ):
        positives, negatives = np.sort(probability[truth]), np.sort(probability[~truth])
        fixed = [np.nextafter(probability.max(), 2), 0.5, tuned, 0.0]
        chosen = np.unique(probability)
        if len(chosen) > OPERATING_POINTS - len(fixed):
            shares = np.linspace(0, 1, (OPERATING_POINTS - len(fixed)) // 2)
            chosen = np.concatenate(
                [np.quantile(each, shares, method="nearest") for each in (positives, negatives) if len(each)]
            )
        thresholds = np.unique([*chosen, *fixed])[::-1]
        found.append(
            {
                "name": name,
                "positives": len(positives),
                "negatives": len(negatives),
                "default": 0.5,
                "tuned": tuned,
                "thresholds": thresholds.tolist(),
                "tp": (len(positives) - np.searchsorted(positives, thresholds)).tolist(),
                "fp": (len(negatives) - np.searchsorted(negatives, thresholds)).tolist(),
            }
        )
    return {"attributes": found}


def calibration(run: FinishedRun) -> Finding:
    """Whether the probabilities mean what they say, before and after the temperature."""
    test = run.predictions["test"]
    stages = {"before": sigmoid(test.logits_NA), "after": run.model.probabilities(test.logits_NA)}
    temperatures = run.model.description.temperature
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(test.attributes):
        logits, targets = test.logits_NA[:, i].astype(np.float64), test.targets_NA[:, i]
        row: dict[str, Any] = {"name": name, "temperature": temperatures[i]}
        for stage, probabilities in stages.items():
            row[f"ece_{stage}"] = expected_calibration_error(probabilities[:, i], targets, BINS)
        row["nll_before"] = negative_log_likelihood(logits, targets)
        row["nll_after"] = negative_log_likelihood(logits / temperatures[i], targets)
        for stage, probabilities in stages.items():
            row[stage] = _diagram(probabilities[:, i], targets)
        rows.append(row)
    numbers = ("temperature", "ece_before", "ece_after", "nll_before", "nll_after")
    means = {number: float(np.mean([row[number] for row in rows])) for number in numbers}
    pooled = {stage: _diagram(each.ravel(), test.targets_NA.ravel()) for stage, each in stages.items()}
    table = [[row["name"], *(row[number] for number in numbers)] for row in rows]
    return Finding(
        {"bins": BINS, "attributes": rows, "means": means},
        {"calibration": _calibration_figure(rows, means, pooled)},
        {"calibration": (["attribute", *numbers], table)},
    )


def fairness(run: FinishedRun) -> Finding:
    """Each score within the images that have the attribute `explain.group` and within those that have it not.

    Where nobody has asked for a group, a data set without that of CelebA's users, or with one of the two groups alone,
    has nothing to show here, which is no failure.

    Raises:
        UserError: if the data set has not the attribute that was asked for, or all test images are in one group.
    """
    test = run.predictions["test"]
    group = run.config.explain.group
    groups = [words(group), f"not {words(group)}"]
    try:
        has = run.group_labels(group)[test.rows]
        within = score_groups(test.attributes, test.logits_NA, test.targets_NA, 1 - has, len(groups))
        if not within.images.all():
            alike = groups[0 if within.images[0] else 1]
            raise UserError(
                f"explain.group is {group}, but every test image is {alike}: choose an attribute that some have and "
                "some have not"
            )
    except UserError as error:
        if group == ExplainConfig().group:
            return Finding({"absent": str(error)})
        raise
    gaps = {name: within.gap(name) for name in SCORES}
    worst = {name: within.worst(name) for name in SCORES}
    rows = [
        {
            "name": attribute,
            "positives": within.positives[:, i].tolist(),
            "values": {name: within.values[name][:, i].tolist() for name in SCORES},
            "worst": {name: worst[name][i] for name in SCORES},
            "gap": {name: float(gaps[name][i]) for name in SCORES},
        }
        for i, attribute in enumerate(test.attributes)
    ]
    data = {
        "group": group,
        "groups": groups,
        "images": within.images.tolist(),
        "scores": list(SCORES),
        "attributes": rows,
    }
    table = [
        [attribute, groups[g], int(within.images[g]), int(within.positives[g, i])]
        + [float(within.values[name][g, i]) for name in SCORES]
        for i, attribute in enumerate(test.attributes)
        for g in range(len(groups))
    ]
    return Finding(
        data,
        {"fairness": _fairness_figure(test.attributes, groups, within)},
        {"fairness": (["attribute", "group", "images", "positives", *SCORES], table)},
    )


def correlation(run: FinishedRun) -> Finding:
    """How attributes go together in the labels, and in the model's decisions at the tuned thresholds."""
    test = run.predictions["test"]
    names = test.attributes
    labels = correlations(test.targets_NA)
    decided = correlations(run.model.decisions(test.logits_NA))
    pairs: list[list[Any]] = [
        [names[i], names[j], float(labels[i, j]), float(decided[i, j])]
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
    ]
    comparable = [pair for pair in pairs if np.isfinite(pair[2] - pair[3])]
    comparable.sort(key=lambda pair: -abs(pair[2] - pair[3]))
    data = {
        "attributes": list(names),
        "labels": labels.tolist(),
        "predictions": decided.tolist(),
        "largest_differences": comparable[:10],
    }
    if not pairs:
        return Finding(data)
    return Finding(
        data,
        {"correlation": _correlation_figure(names, labels, decided)},
        {"correlation": (["attribute", "other", "labels", "predictions"], pairs)},
    )


def correlations(values_NA: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pearson's correlation of 0/1 values (the phi coefficient), [A, A]; NaN with an attribute that is constant."""
    centred = values_NA - values_NA.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(centred.T @ centred / np.outer(lengths, lengths))


def _intervals(run: FinishedRun) -> Intervals:
    test = run.predictions["test"]
    return bootstrap(
        test.logits_NA, test.targets_NA, test.identity_N, run.config.explain.bootstrap, run.config.train.seed
    )


def _of_decisions(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in DECISION_SCORES}


def _reported(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    return {name: _listed(intervals[name]) for name in SCORES_WITH_INTERVAL}


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _tallies(model: TrainedModel, predictions: Predictions) -> list[list[dict[str, int]]]:
    """The confusion matrix of each attribute at 1/2, and of each at its tuned threshold."""
    truth = predictions.targets_NA.astype(bool)
    return [
        [
            {
                "tp": int((decided & true).sum()),
                "fp": int((decided & ~true).sum()),
                "fn": int((~decided & true).sum()),
                "tn": int((~decided & ~true).sum()),
            }
            for decided, true in zip(decided_NA.T, truth.T, strict=True)
        ]
        for decided_NA in (predictions.logits_NA >= 0, model.decisions(predictions.logits_NA))
    ]


def _tallies_of_one(model: TrainedModel, predictions: Predictions) -> list[dict[str, int]]:
    """At 1/2 and at the tuned threshold, where there is one attribute alone and it has both classes."""
    targets = predictions.targets_NA
    if targets.shape[1] > 1 or targets.min() == targets.max():
        return []
    return [tallies[0] for tallies in _tallies(model, predictions)]


def _diagram(probabilities: NDArray[np.float64], targets: NDArray[np.uint8]) -> dict[str, list[Any]]:
    confidence, frequency, count = reliability(probabilities, targets, BINS)
    return {"confidence": confidence.tolist(), "frequency": frequency.tolist(), "count": count.tolist()}


def _scores_table(rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """A row for each attribute, with every number of the scores job."""
    table: list[dict[str, Any]] = []
    for row in rows:
        flat: dict[str, Any] = {"attribute": row["name"], "threshold": row["threshold"]}
        for split in splits:
            flat[f"{split}_images"] = row["images"][split]
            flat[f"{split}_positives"] = row["positives"][split]
            flat[f"{split}_baseline_accuracy"] = row["baseline_accuracy"][split]
            flat |= {f"{split}_{name}": value for name, value in row[split].items()}
            flat |= {f"{split}_tuned_{name}": value for name, value in row["tuned"][split].items()}
        for name, interval in row["interval"].items():
            flat[f"test_{name}_low"], flat[f"test_{name}_high"] = interval or (None, None)
        table.append(flat)
    return list(table[0]), [list(flat.values()) for flat in table]


def _falling(values: NDArray[np.float64]) -> list[int]:
    """Attributes from the highest value to the lowest, undefined ones last."""
    return [int(i) for i in np.argsort(-values, kind="stable")]


def _draw_rows(
    axes: Axes,
    values: NDArray[np.float64],
    intervals: Sequence[Interval | None],
    colour: str = BLUE,
    name: str | None = None,
) -> None:
    """A dot for each attribute in its row, with a line for its interval."""
    for row, interval in enumerate(intervals):
        if interval is not None:
            axes.plot(interval, [row, row], color=colour, linewidth=1.5, alpha=0.5, solid_capstyle="butt")
    axes.scatter(values, np.arange(len(values)), color=colour, s=16, zorder=3, label=name)


def _scores_figure(
    attributes: Sequence[str],
    plain: Scores,
    tuned: Scores,
    baseline: NDArray[np.float64],
    intervals: Intervals,
) -> Figure:
    order = _falling(plain.values["accuracy"])
    height = height_of_rows(len(order), least=2.8)
    figure = new(10, height)
    left, right = figure.subplots(1, 2)
    left.scatter(baseline[order], np.arange(len(order)), color=GREY, marker="|", s=60, label="the majority's label")
    for axes, name, text in ((left, "accuracy", "the model"), (right, "f1", "present from 1/2")):
        ends = [intervals.by_attribute[i][name] for i in order]
        _draw_rows(axes, plain.values[name][order], ends, name=text)
        rows_of_attributes(axes, [attributes[i] for i in order])
    right.scatter(
        tuned.values["f1"][order],
        np.arange(len(order)),
        color=ORANGE,
        marker="D",
        s=14,
        label="from the tuned threshold",
    )
    right.tick_params(axis="y", labelleft=False)
    left.set(xlabel="accuracy", title="Accuracy on the test images")
    right.set(xlabel="F1", title="F1 on the test images")
    for axes in (left, right):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=2, frameon=False)
    return figure


def _curve_figure(
    attributes: Sequence[str],
    curves: Mapping[int, _Curve],
    means: Sequence[NDArray[np.float64]],
    values: NDArray[np.float64],
    intervals: Sequence[Interval | None],
    marks: Sequence[tuple[float, float]],
    word: str,
    corner: str,
) -> tuple[Figure, Axes, Axes | None]:
    """The curves of all attributes, and beside them, where there are several, the value of each with its interval.

    Args:
        attributes: A names.
        curves: x and y of the attributes that have a curve.
        means: their heights at `_GRID`.
        values: what belongs to each curve, [A].
        intervals: of the values, A.
        marks: the points at 1/2 and at the tuned threshold, of the one attribute.
        word: what the value is.
        corner: where a good curve leaves room for the legend.
    """
    several = len(attributes) > 1
    if several:
        figure = new(11.5, height_of_rows(len(attributes)))
        curve_axes, row_axes = figure.subplots(1, 2, width_ratios=[5, 4.2])
        order = _falling(values)
        _draw_rows(row_axes, values[order], [intervals[i] for i in order])
        rows_of_attributes(row_axes, [attributes[i] for i in order])
    else:
        figure = new(5.6, 5.6)
        curve_axes, row_axes = figure.subplots(), None
    coloured = [i for i in _falling(values) if i in curves]
    if len(coloured) > _FEW:
        coloured = coloured[-3:]
    colours = dict(zip(coloured, (RED, ORANGE, PURPLE, GREEN, SKY), strict=False))
    for i in (i for i in _falling(values) if i in curves):
        (x, y), interval = curves[i], intervals[i]
        text = f"{label(attributes[i])}, {word} {values[i]:.3f}"
        if interval is not None and not several:
            text += f"\n95 %: {interval[0]:.3f} to {interval[1]:.3f}"
        if not several:
            curve_axes.plot(x, y, color=BLUE, linewidth=2, label=text)
        elif i in colours:
            curve_axes.plot(x, y, color=colours[i], linewidth=1.2, label=text, zorder=2.5)
        else:
            curve_axes.plot(x, y, color="#9DB8CC", linewidth=0.7, alpha=0.8)
    if several and means:
        curve_axes.plot(
            _GRID,
            np.mean(means, axis=0),
            color="black",
            linewidth=2.6,
            label=f"mean of {len(means)}, {word} {np.nanmean(values):.3f}",
            zorder=3,
        )
    for point, marker, text in zip(marks, ("o", "D"), ("at 1/2", "at the tuned threshold"), strict=False):
        curve_axes.scatter(*point, marker=marker, s=50, color=ORANGE, edgecolor="black", zorder=4, label=text)
    curve_axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    curve_axes.set_box_aspect(1)
    curve_axes.set_anchor("N")
    if curves:
        curve_axes.legend(fontsize=8, loc=corner, framealpha=0.9)
    return figure, curve_axes, row_axes


def _confusion_figure(attributes: Sequence[str], tallies: Sequence[Mapping[str, int]], how: str) -> Figure:
    """A small matrix for each attribute; the shade is the share of the row."""
    columns = min(8, len(attributes))
    rows = -(-len(attributes) // columns)
    size, side = (7, 1.8) if columns > 2 else (12, 4.0)
    figure = new(side * columns + 0.4, side * rows + 0.8)
    # One pair of axes holds all of them: forty take seconds to lay out. A matrix is 2 by 2 on a grid of steps of 3.
    axes = figure.subplots()
    for place, (attribute, tally) in enumerate(zip(attributes, tallies, strict=True)):
        left, top = 3 * (place % columns), 3 * (place // columns)
        matrix = np.array([[tally["tn"], tally["fp"]], [tally["fn"], tally["tp"]]])
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, extent=(left, left + 2, top + 2, top))
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.55 else "black"
            text = f"{count:,}\n{share[row, column]:.0%}"
            axes.text(left + column + 0.5, top + row + 0.5, text, ha="center", va="center", fontsize=size, color=colour)
        for step, word in enumerate(("no", "yes")):
            axes.text(left - 0.08, top + step + 0.5, word, ha="right", va="center", fontsize=size)
            axes.text(left + step + 0.5, top + 2.08, word, ha="center", va="top", fontsize=size)
        axes.text(left + 1, top - 0.1, label(attribute, 22), ha="center", va="bottom", fontsize=size + 1)
    axes.set(xlim=(-0.5, 3 * columns - 0.8), ylim=(3 * rows - 0.6, -0.5))
    axes.set_axis_off()
    figure.suptitle(f"Test images, {how}", fontsize=11)
    figure.supxlabel("the model's decision", fontsize=10)
    figure.supylabel("the label", fontsize=10)
    return figure


def _calibration_figure(
    rows: Sequence[Mapping[str, Any]], means: Mapping[str, float], pooled: Mapping[str, Mapping[str, list[Any]]]
) -> Figure:
    """The reliability diagram of all attributes together, and the error of each before and after."""
    several = len(rows) > 1
    if several:
        figure = new(11.5, height_of_rows(len(rows)))
        left, right = figure.subplots(1, 2, width_ratios=[5, 4.2])
    else:
        figure = new(5.6, 5.6)
        left = figure.subplots()
    error = "mean ECE" if several else "ECE"
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for stage, colour, text in (
        ("before", ORANGE, "as trained"),
        ("after", BLUE, "with the temperature from validation"),
    ):
        count = np.array(pooled[stage]["count"])
        left.plot(
            pooled[stage]["confidence"],
            pooled[stage]["frequency"],
            color=colour,
            marker="o",
            markersize=4,
            label=f"{text}, {error} {means[f'ece_{stage}']:.3f}",
        )
        left.bar(
            (np.arange(BINS) + 0.5) / BINS, 0.2 * count / count.max(), 0.9 / BINS, color=colour, alpha=0.25, zorder=0
        )
    left.set(
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        xlabel="probability that the model gives",
        ylabel="share that has the attribute",
        title=f"Reliability, {'all attributes together' if several else label(rows[0]['name'])}",
    )
    left.set_box_aspect(1)
    left.set_anchor("N")
    left.legend(fontsize=8, loc="upper left", title="bars: how many images", title_fontsize=8)
    if several:
        order = np.argsort([row["ece_before"] for row in rows])
        before, after = (np.array([rows[i][f"ece_{stage}"] for i in order]) for stage in ("before", "after"))
        right.hlines(np.arange(len(order)), before, after, color="#CCCCCC", linewidth=1.5, zorder=1)
        _draw_rows(right, before, [], ORANGE)
        _draw_rows(right, after, [], BLUE)
        rows_of_attributes(right, [rows[i]["name"] for i in order])
        right.set(xlabel="expected calibration error (ECE)", title="ECE of each, before and after")
        right.set_xlim(left=0)
    return figure


def _fairness_figure(attributes: Sequence[str], groups: Sequence[str], within: GroupScores) -> Figure:
    """Each attribute's area under the ROC curve and recall within the groups, the largest gap on top."""
    height = height_of_rows(len(attributes), least=2.8)
    figure = new(11, height)
    panels = figure.subplots(1, 2)
    gap = within.gap("roc_auc")
    order = _falling(gap)
    for axes, name, title in zip(
        panels, ("roc_auc", "recall"), ("Area under the ROC curve", "Recall (equal opportunity)"), strict=True
    ):
        first, second = within.values[name][:, order]
        axes.hlines(np.arange(len(order)), first, second, color="#CCCCCC", linewidth=1.5, zorder=1)
        for values, colour, group, images in zip((first, second), (BLUE, ORANGE), groups, within.images, strict=True):
            _draw_rows(axes, values, [], colour, f"{label(group)} ({images:,} images)")
        rows_of_attributes(axes, [attributes[i] for i in order])
        axes.set(title=title)
    panels[1].tick_params(axis="y", labelleft=False)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _correlation_figure(attributes: Sequence[str], labels: NDArray[np.float64], decided: NDArray[np.float64]) -> Figure:
    side = max(3.4, 1.4 + 0.15 * len(attributes))
    figure = new(2 * side + 1.2, side + 0.8)
    panels = figure.subplots(1, 2)
    size = 6 if len(attributes) > 15 else 9
    ticks, names = np.arange(len(attributes)), [label(name) for name in attributes]
    for axes, values, title in zip(panels, (labels, decided), ("in the labels", "in the decisions"), strict=True):
        picture = axes.imshow(values, cmap="PuOr", vmin=-1, vmax=1)
        axes.grid(visible=False)
        axes.set_xticks(ticks, names, rotation=90, fontsize=size)
        axes.set_yticks(ticks, names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_title(f"Correlation {title}")
    panels[1].tick_params(axis="y", labelleft=False)
    figure.colorbar(picture, ax=panels.tolist(), shrink=0.7, label="phi coefficient")
    return figure
