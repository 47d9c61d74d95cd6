"""The jobs that say how good the model is: scores, curves, confusion, calibration, fairness, correlation.

All is of the test images unless it says otherwise. The calibrated probabilities and the tuned thresholds come from
validation alone. What is undefined is NaN or None, and null on the page.

Legend: N images, A attributes, T thresholds.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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
from distrib.scoring.bootstrap import Interval, Intervals, bootstrap
from distrib.scoring.calibration import expected_calibration_error, negative_log_likelihood, reliability, sigmoid
from distrib.scoring.fairness import GroupScores, score_groups
from distrib.scoring.metrics import score
from distrib.scoring.scorecard import Scorecard

SCORES_WITH_INTERVAL = ("roc_auc", "average_precision", "f1", "accuracy", "balanced_accuracy")
BINS = 15
# An attribute's thresholds on the page, at most.
OPERATING_POINTS = 256
# Where the mean over attributes of a curve is taken.
_GRID = np.linspace(0, 1, 201)
# With more attributes than these a figure has no colour for each, and shows the lowest ones in colour.
_FEW = 5

_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
# How many images an attribute is rightly and wrongly said of, and rightly and wrongly not: "tp", "fp", "fn", "tn".
_Tally = dict[str, int]


def scores(run: FinishedRun) -> Finding:
    """Every score of every attribute on validation and test, at 1/2 and at the tuned threshold, beside the baseline.

    Of a data set without validation images, on test alone.
    """
    test, thresholds, intervals = run.predictions["test"], run.model.description.thresholds, _intervals(run)
    cards = {split: run.model.scorecard(run.predictions[split]) for split in run.scored}
    trees = {split: card.as_json() for split, card in cards.items()}

    def told(found: Mapping[str, Mapping[str, Any]], ends: Mapping[str, Interval | None]) -> dict[str, Any]:
        """What the splits' cards have of an attribute, or of the mean."""
        return {
            **{split: {name: row[name] for name in SCORES} for split, row in found.items()},
            "baseline_accuracy": {split: row["baseline_accuracy"] for split, row in found.items()},
            "tuned": {split: row["tuned"] for split, row in found.items()},
            "by_thresholds": {split: row["by_thresholds"] for split, row in found.items()},
            "interval": {name: ends[name] for name in SCORES_WITH_INTERVAL},
        }

    rows = []
    for i, name in enumerate(test.attributes):
        found = {split: tree["attributes"][name] for split, tree in trees.items()}
        row = {
            "name": name,
            "positives": {split: row["positives"] for split, row in found.items()},
            "images": {split: len(run.predictions[split]) for split in found},
            "threshold": thresholds[i],
        }
        rows.append(row | told(found, intervals.by_attribute[i]))
    data = {
        "splits": list(run.scored),
        "tuned_for": run.model.description.tuned_for,
        "test_images": hashlib.sha256("\n".join(test.names).encode()).hexdigest(),
        "attributes": rows,
        "means": told({split: tree["mean"] for split, tree in trees.items()}, intervals.mean),
        "resampled": intervals.resampled,
        "resamples": intervals.resamples,
    }
    figure = _scores_figure(test.attributes, cards["test"], intervals)
    return Finding(data, {"scores": figure}, {"scores": _scores_table(rows, run.scored)})


def roc(run: FinishedRun) -> Finding:
    """The ROC curve of each attribute and the area under it."""
    areas, intervals = _on_test(run, "roc_auc")
    figure, curve_axes, row_axes = _curve_figure(
        run,
        areas,
        intervals,
        curve_of=lambda truth, logits: roc_curve(truth, logits)[:2],
        height_of=lambda curve: np.interp(_GRID, *curve),
        mark_of=lambda tp, fp, fn, tn: (fp / (fp + tn), tp / (tp + fn)),
        word="area",
        corner="lower right",
    )
    curve_axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, zorder=0)
    curve_axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC curve, test images")
    if row_axes is not None:
        row_axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
        row_axes.set(xlabel="with 95 % interval; dotted: chance", title="Area under the ROC curve")
    found = {name: {"auc": float(areas[i]), "interval": intervals[i]} for i, name in enumerate(run.model.attributes)}
    return Finding({"attributes": found}, {"roc": figure})


def precision_recall(run: FinishedRun) -> Finding:
    """The precision-recall curve of each attribute and the average precision."""

    def curve_of(truth: NDArray[np.uint8], logits: NDArray[np.float32]) -> _Curve:
        precision, recall, _ = precision_recall_curve(truth, logits, drop_intermediate=True)
        return recall[::-1], precision[::-1]  # from the highest threshold to the lowest

    averages, intervals = _on_test(run, "average_precision")
    prevalence = run.predictions["test"].targets_NA.mean(axis=0)
    figure, curve_axes, row_axes = _curve_figure(
        run,
        averages,
        intervals,
        curve_of,
        # A recall is reached in steps; the precision of the highest threshold that reaches it counts.
        height_of=lambda curve: curve[1][np.searchsorted(curve[0], _GRID)],
        mark_of=lambda tp, fp, fn, tn: (tp / (tp + fn), tp / (tp + fp)) if tp else None,
        word="average precision",
        corner="lower left",
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
            "interval": intervals[i],
            "prevalence": float(prevalence[i]),
        }
        for i, name in enumerate(run.model.attributes)
    }
    return Finding({"attributes": found}, {"precision_recall": figure})


def confusion(run: FinishedRun) -> Finding:
    """The confusion matrix of each attribute, at 1/2 and at the tuned threshold."""
    names, thresholds = run.predictions["test"].attributes, run.model.description.thresholds
    at_half, tuned = _tallies(run)
    found: dict[str, dict[str, Any]] = {
        name: {"at_half": half, "tuned": best, "threshold": threshold}
        for name, half, best, threshold in zip(names, at_half, tuned, thresholds, strict=True)
    }
    table = [
        [name, threshold, *tally.values()]
        for name, each in found.items()
        for threshold, tally in ((0.5, each["at_half"]), (each["threshold"], each["tuned"]))
    ]
    return Finding(
        {"attributes": found},
        {
            "confusion": _confusion_figure(names, at_half, "present from a probability of 1/2"),
            "confusion_tuned": _confusion_figure(names, tuned, "present from the tuned threshold"),
        },
        {"confusion": (["attribute", "threshold", "tp", "fp", "fn", "tn"], table)},
    )


def operating(run: FinishedRun) -> Finding:
    """How many test images each threshold takes for present, exactly, for the page's slider.

    Where there are more different probabilities than `OPERATING_POINTS`, the thresholds are those at even shares of the
    positives and of the negatives, so that neither axis of the ROC curve has a hole. 1/2, the tuned threshold, 0 and
    one above every probability are always among them.

    Returns:
        {"attributes": [{"name", "positives", "negatives", "default": 0.5, "tuned", "thresholds", "tp", "fp"}]}; the
        thresholds are calibrated probabilities and fall, and tp and fp count images of at least that probability.
    """
    test = run.predictions["test"]
    found = []
    for name, probability, truth, tuned in zip(
        test.attributes,
        run.model.probabilities(test.logits_NA).T,
        test.targets_NA.T.astype(bool),
        run.model.description.thresholds,
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
    return Finding({"attributes": found})


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
        has = run.group_labels()[test.rows]
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
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.atleast_2d(np.corrcoef(values_NA, rowvar=False))


def _intervals(run: FinishedRun) -> Intervals:
    test = run.predictions["test"]
    return bootstrap(
        test.logits_NA, test.targets_NA, test.identity_N, run.config.explain.bootstrap, run.config.train.seed
    )


def _on_test(run: FinishedRun, name: str) -> tuple[NDArray[np.float64], list[Interval | None]]:
    """A score of each attribute, [A], and its intervals."""
    test = run.predictions["test"]
    values = score(test.attributes, test.logits_NA, test.targets_NA).values[name]
    return values, [each[name] for each in _intervals(run).by_attribute]


def _tallies(run: FinishedRun) -> list[list[_Tally]]:
    """The confusion matrix of each attribute at 1/2, and of each at its tuned threshold."""
    test = run.predictions["test"]
    truth, found = test.targets_NA.astype(bool), []
    for decided in (test.logits_NA >= 0, run.model.decisions(test.logits_NA)):
        cells = {"tp": decided & truth, "fp": decided & ~truth, "fn": ~decided & truth, "tn": ~decided & ~truth}
        counts = np.array([cell.sum(axis=0) for cell in cells.values()])
        found.append([dict(zip(cells, of_attribute, strict=True)) for of_attribute in counts.T.tolist()])
    return found


def _diagram(probabilities: NDArray[np.float64], targets: NDArray[np.uint8]) -> dict[str, list[Any]]:
    confidence, frequency, count = reliability(probabilities, targets, BINS)
    return {"confidence": confidence.tolist(), "frequency": frequency.tolist(), "count": count.tolist()}


def _scores_table(rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """A row for each attribute, with every number of the scores job."""
    table: list[dict[str, Any]] = []
    for row in rows:
        flat: dict[str, Any] = {"attribute": row["name"], "threshold": row["threshold"]}
        for split in splits:
            flat |= {f"{split}_{name}": row[name][split] for name in ("images", "positives", "baseline_accuracy")}
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


def _draw_pairs(
    axes: Axes, attributes: Sequence[str], ends: Mapping[str, NDArray[np.float64]], order: Sequence[int]
) -> None:
    """Two dots for each attribute in its row, joined by a line: blue and orange, as the names of the ends are given."""
    first, second = (values[order] for values in ends.values())
    axes.hlines(np.arange(len(order)), first, second, color="#CCCCCC", linewidth=1.5, zorder=1)
    for name, values, colour in zip(ends, (first, second), (BLUE, ORANGE), strict=True):
        _draw_rows(axes, values, [], colour, name)
    rows_of_attributes(axes, [attributes[i] for i in order])


def _square_and_rows(attributes: int) -> tuple[Figure, Axes, Axes | None]:
    """A figure of shares against shares, and beside them, where there are several attributes, a row for each."""
    if attributes > 1:
        figure = new(11.5, height_of_rows(attributes))
        square, rows = figure.subplots(1, 2, width_ratios=[5, 4.2])
    else:
        figure = new(5.6, 5.6)
        square, rows = figure.subplots(), None
    square.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    square.set_box_aspect(1)
    square.set_anchor("N")
    return figure, square, rows


def _scores_figure(attributes: Sequence[str], card: Scorecard, intervals: Intervals) -> Figure:
    plain, order = card.half.values, _falling(card.half.values["accuracy"])
    rows, height = np.arange(len(order)), height_of_rows(len(order), least=2.8)
    figure = new(10, height)
    left, right = figure.subplots(1, 2)
    left.scatter(card.baseline[order], rows, color=GREY, marker="|", s=60, label="the majority's label")
    for axes, name, text in ((left, "accuracy", "the model"), (right, "f1", "present from 1/2")):
        _draw_rows(axes, plain[name][order], [intervals.by_attribute[i][name] for i in order], name=text)
        rows_of_attributes(axes, [attributes[i] for i in order])
    tuned = card.by_thresholds.get("f1", card.tuned).values["f1"][order]
    right.scatter(tuned, rows, color=ORANGE, marker="D", s=14, label="from the threshold tuned for it")
    right.tick_params(axis="y", labelleft=False)
    left.set(xlabel="accuracy", title="Accuracy on the test images")
    right.set(xlabel="F1", title="F1 on the test images")
    for axes in (left, right):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.6 / height), ncols=2, frameon=False)
    return figure


def _curve_figure(
    run: FinishedRun,
    values: NDArray[np.float64],
    intervals: Sequence[Interval | None],
    curve_of: Callable[[NDArray[np.uint8], NDArray[np.float32]], _Curve],
    height_of: Callable[[_Curve], NDArray[np.float64]],
    mark_of: Callable[..., tuple[float, float] | None],
    word: str,
    corner: Literal["lower left", "lower right"],
) -> tuple[Figure, Axes, Axes | None]:
    """The curves of all attributes, and beside them, where there are several, the value of each with its interval.

    Args:
        run: whose test images they are of.
        values: what belongs to each curve, [A]; an attribute without one has no curve.
        intervals: of the values, A.
        curve_of: x and y, of labels and logits [N].
        height_of: of a curve at `_GRID`.
        mark_of: the point of a threshold, by its tally; None: there is none.
        word: what the value is.
        corner: where a good curve leaves room for the legend.
    """
    test = run.predictions["test"]
    attributes, several = test.attributes, len(test.attributes) > 1
    figure, curve_axes, row_axes = _square_and_rows(len(attributes))
    order = _falling(values)
    if row_axes is not None:
        _draw_rows(row_axes, values[order], [intervals[i] for i in order])
        rows_of_attributes(row_axes, [attributes[i] for i in order])
    curves = {i: curve_of(test.targets_NA[:, i], test.logits_NA[:, i]) for i in order if np.isfinite(values[i])}
    coloured = list(curves) if len(curves) <= _FEW else list(curves)[-3:]
    colours = dict(zip(coloured, (RED, ORANGE, PURPLE, GREEN, SKY), strict=False))
    for i, curve in curves.items():
        interval, text = intervals[i], f"{label(attributes[i])}, {word} {values[i]:.3f}"
        if interval is not None and not several:
            text += f"\n95 %: {interval[0]:.3f} to {interval[1]:.3f}"
        if not several:
            curve_axes.plot(*curve, color=BLUE, linewidth=2, label=text)
        elif i in colours:
            curve_axes.plot(*curve, color=colours[i], linewidth=1.2, label=text, zorder=2.5)
        else:
            curve_axes.plot(*curve, color="#9DB8CC", linewidth=0.7, alpha=0.8)
    if several and curves:
        mean = np.mean([height_of(curve) for curve in curves.values()], axis=0)
        text = f"mean of {len(curves)}, {word} {np.nanmean(values):.3f}"
        curve_axes.plot(_GRID, mean, color="black", linewidth=2.6, label=text, zorder=3)
    if not several and 0 < test.targets_NA.mean() < 1:
        points = [mark_of(**tally) for (tally,) in _tallies(run)]
        for point, marker, text in zip(points, ("o", "D"), ("at 1/2", "at the tuned threshold"), strict=True):
            if point is not None:
                curve_axes.scatter(*point, marker=marker, s=50, color=ORANGE, edgecolor="black", zorder=4, label=text)
    if curves:
        curve_axes.legend(fontsize=8, loc=corner, framealpha=0.9)
    return figure, curve_axes, row_axes


def _confusion_figure(attributes: Sequence[str], tallies: Sequence[_Tally], how: str) -> Figure:
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
    figure, left, right = _square_and_rows(len(rows))
    error = "ECE" if right is None else "mean ECE"
    left.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for stage, colour, text in (
        ("before", ORANGE, "as trained"),
        ("after", BLUE, "with the temperature from validation"),
    ):
        bins, count = pooled[stage], np.array(pooled[stage]["count"])
        text = f"{text}, {error} {means[f'ece_{stage}']:.3f}"
        left.plot(bins["confidence"], bins["frequency"], color=colour, marker="o", markersize=4, label=text)
        places = (np.arange(BINS) + 0.5) / BINS
        left.bar(places, 0.2 * count / count.max(), 0.9 / BINS, color=colour, alpha=0.25, zorder=0)
    left.set(
        xlabel="probability that the model gives",
        ylabel="share that has the attribute",
        title=f"Reliability, {label(rows[0]['name']) if right is None else 'all attributes together'}",
    )
    left.legend(fontsize=8, loc="upper left", title="bars: how many images", title_fontsize=8)
    if right is not None:
        errors = {stage: np.array([row[f"ece_{stage}"] for row in rows]) for stage in ("after", "before")}
        _draw_pairs(right, [row["name"] for row in rows], errors, np.argsort(errors["before"]).tolist())
        right.set(xlabel="expected calibration error (ECE)", title="ECE of each, before and after")
        right.set_xlim(left=0)
    return figure


def _fairness_figure(attributes: Sequence[str], groups: Sequence[str], within: GroupScores) -> Figure:
    """Each attribute's area under the ROC curve and recall within the groups, the largest gap on top."""
    figure = new(11, height_of_rows(len(attributes), least=2.8))
    panels = figure.subplots(1, 2)
    order = _falling(within.gap("roc_auc"))
    names = [f"{label(group)} ({images:,} images)" for group, images in zip(groups, within.images, strict=True)]
    for axes, name, title in zip(
        panels, ("roc_auc", "recall"), ("Area under the ROC curve", "Recall (equal opportunity)"), strict=True
    ):
        _draw_pairs(axes, attributes, dict(zip(names, within.values[name], strict=True)), order)
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
